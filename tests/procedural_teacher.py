"""A teacher for self-instruct that needs no model: tasks from a grammar, slips of each kind that the filter names."""

import random

from minillama.corpus import stories
from minillama.corpus.grammar import Grammar
from minillama.train.self_instruct import InstructionFilter

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
