"""Self-instruct around the filter: a teacher that needs no model, with tasks from a grammar and slips of each kind that
the filter names, the loop that asks it, and ROUGE-L of two texts."""

import random
from collections import Counter
from typing import NamedTuple

from minillama.corpus import stories
from minillama.corpus.grammar import Grammar
from minillama.train.self_instruct import InstructionFilter, bits_of, common_length, words_of

TASKS = Grammar({
    "do": ["Write", "Invent", "List", "Explain", "Translate", "Rank", "Shorten", "Correct", "Continue", "Rhyme"],
    "count": ["two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "tone": ["funny", "gloomy", "short", "famous", "old", "honest", "silly", "secret", "modern", "foreign"],
    "form": ["riddles", "proverbs", "recipes", "letters", "rules", "questions", "poems", "excuses", "rumours", "jokes"],
    "subject": stories.RULES["treasure"],
    "place": stories.RULES["place"],
    "reader": ["children", "sailors", "bakers", "judges", "poets", "thieves", "teachers", "kings", "nurses", "clowns"],
    "manner": ["in plain words", "without using commas", "as a dialogue", "with one surprise", "before breakfast",
               "for a wager", "like a lawyer", "and give reasons"],
}, start="{do} {count} {tone} {form} about {subject} {place} for {reader}, {manner}.")

# What a teacher does wrong, by the reason for which the filter must drop it.
MISHAPS = {
    "too short": lambda task: " ".join(task.split()[:3]) + ".",
    "too long": lambda task: " ".join([task] * 20),
    "blacklisted word": lambda task: "Draw a picture, then: " + task,
    "asks for a program": lambda task: "Write a program to do this: " + task,
    "begins with punctuation": lambda task: "- " + task,
    "not in English": lambda task: "\u8bf7: " + task,
    "too similar": lambda task: task[:-1] + " again.",
}


def seed_tasks(n, seed=0):
    """`n` tasks of the grammar that pass the filter beside each other, in place of those written by people."""
    rng, keeper = random.Random(f"seed tasks {seed}"), InstructionFilter()
    while len(keeper.texts) < n:
        keeper.why_not(TASKS.sample(rng).text)
    return keeper.texts


def procedural_teacher(rng, examples):
    """Five tasks: new ones, and one time in four an example with one of the `MISHAPS`."""
    tasks = []
    for _ in range(5):
        slip = rng.random() < 0.25
        tasks.append(rng.choice(list(MISHAPS.values()))(rng.choice(examples)) if slip else TASKS.sample(rng).text)
    return tasks


def rouge_l(a, b):
    """ROUGE-L of two texts: F = 2 L / (m + n), with L the length of the longest common subsequence of their m and n
    words (Lin 2004, equation 4 with beta 1; precision is L / m, recall L / n). 0 where one has no words.

    >>> rouge_l("the cat sat", "the cat lay there")  # the cat: 2 * 2 / (3 + 4)
    0.5714285714285714
    """
    a, b = words_of(a), words_of(b)
    return 2 * common_length(bits_of(a), len(a), b) / (len(a) + len(b)) if a and b else 0.0


class Harvest(NamedTuple):
    """tasks: those kept, the seeds not among them; dropped: (task, `Dropped`) of all others; requests: how often the
    teacher was asked."""

    tasks: list
    dropped: list
    requests: int

    def counts(self):
        """{reason: how many were dropped for it}."""
        return Counter(why.reason for _, why in self.dropped)


def self_instruct(seeds, teacher, wanted, seed=0, rules=None, shown=3, most_requests=10_000):
    """Ask `teacher(rng, examples)` for tasks, `shown` of the seeds at a time, until `wanted` are kept -> `Harvest`.

    The examples come from the seeds alone, as in Alpaca, so that slips of the teacher do not breed. A teacher that
    only repeats itself is asked `most_requests` times at most; then there are fewer tasks than wanted.
    """
    if len(seeds) < shown:
        raise ValueError(f"{len(seeds)} seeds: give at least the {shown} that the teacher is shown")
    rng, keeper = random.Random(f"self-instruct {seed}"), InstructionFilter(rules)
    for task in seeds:
        keeper.add(task)
    tasks, dropped, requests = [], [], 0
    while len(tasks) < wanted and requests < most_requests:
        requests += 1
        for task in teacher(rng, rng.sample(seeds, shown)):
            why = keeper.why_not(task)
            if why is None:
                tasks.append(task)
            else:
                dropped.append((task, why))
    return Harvest(tasks, dropped, requests)
