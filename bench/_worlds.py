"""Two little worlds that the defaults of feedback were not chosen on: their texts, answers, pairs, and what is good.

A question asks about a few things; an answer is a row of sentences, each of a kind, in a fixed order. A sentence has a
worth, and the quality of an answer is the sum of what its sentences are worth, less one for each sentence that does not
belong there. `kitchen` values modesty, measures and naming the dish; `harbour` values bare facts: time and place.
"""

import itertools
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

SLOT = re.compile(r"\{(\w+)\}")
MALFORMED = -1  # what is wrong costs, each time


class World(NamedTuple):
    """question: a template; named: the slots that an answer may repeat; words: {slot: options}; kinds: {kind of
    sentence: ({template: its worth}, probability that an answer has one)}, in the order of an answer."""

    question: str
    named: tuple
    words: dict
    kinds: dict


KITCHEN = World(
    "What should I serve with a {taste} {dish} on {day}?", ("dish",),
    {"taste": ["smoky", "bitter", "sweet", "salty", "mild", "spicy", "sour", "plain"],
     "dish": ["stew", "omelette", "salad", "pudding", "curry", "soup", "roast", "pancake", "noodle", "risotto", "pie",
              "fritter", "casserole", "dumpling", "trout", "quiche"],
     "day": ["Monday", "Friday", "Sunday", "Easter"],
     "measure": ["two spoons", "half a cup", "a pinch", "three slices"],
     "side": ["parsley", "yoghurt", "lentils", "ginger", "almonds", "mustard", "rice", "beans"],
     "when": ["at noon", "while it is hot", "before guests arrive", "after it has cooled"]},
    {"opening": ({"Perhaps this helps.": 1, "Only one idea from me.": 1, "Hello there.": 0,
                  "Everyone praises my food.": -1, "I have won prizes for this.": -1}, 0.8),
     "core": ({"Put {measure} of {side} on the {dish} {when}.": 2, "Put some {side} on the {dish} {when}.": 1,
               "Put {measure} of {side} on the plate.": 0, "Put some {side} on the plate.": -1}, 1.0),
     "why": ({"It makes the {dish} taste less dull.": 1, "Nobody knows why.": -1}, 0.5),
     "end": ({"Enjoy the meal.": 1, "I would try it once.": 1, "That will do.": 0, "Come to my restaurant.": -1,
              "Buy my book of recipes.": -1}, 0.8)})

HARBOUR = World(
    "When does the {size} {vessel} for {port} leave?", ("vessel", "port"),
    {"size": ["old", "white", "fast", "narrow", "crowded", "new"],
     "vessel": ["ferry", "steamer", "barge", "cutter", "trawler", "yacht"],
     "port": ["Lisbon", "Bergen", "Odessa", "Genoa", "Cork", "Hull", "Riga", "Malta", "Turku", "Brest"],
     "hour": ["six", "nine", "eleven", "four", "seven", "ten"], "half": ["sharp", "thirty"],
     "pier": ["north pier", "fish market", "lighthouse", "customs house", "second dock", "long bridge"]},
    {"greeting": ({"Ahoy my friend!": -1, "What a lovely morning!": -1, "Listen.": 0}, 0.5),
     "doubt": ({"I may be mistaken.": -1, "Somebody told me so.": -1, "The list says this.": 1}, 0.6),
     "core": ({"The {vessel} to {port} leaves at {hour} {half} from the {pier}.": 3,
               "The {vessel} to {port} leaves at {hour}.": 2, "It leaves from the {pier}.": 1,
               "It leaves some day.": -1}, 1.0),
     "fare": ({"Tickets are sold at the {pier}.": 1, "Tickets cost more than they should.": -1}, 0.4),
     "chatter": ({"My uncle sailed once.": -1, "The gulls are loud today.": -1}, 0.5)})

WORLDS = {"kitchen": KITCHEN, "harbour": HARBOUR}


def questions_of(world):
    """All questions of a world, {text: {slot: word}}."""
    slots = SLOT.findall(world.question)
    rows = (dict(zip(slots, words, strict=True)) for words in itertools.product(*(world.words[s] for s in slots)))
    return {world.question.format(**row): row for row in rows}


def sample_answer(world, asked, rng):
    """An answer as the world's people give it, good and bad."""
    said = [rng.choice(list(templates)) for templates, share in world.kinds.values() if rng.random() < share]
    return " ".join(SLOT.sub(lambda slot: asked.get(slot[1]) or rng.choice(world.words[slot[1]]), template)
                    for template in said)


def judged(world, asked, answer):
    """(quality, whether the answer is malformed): malformed is what nobody there could have answered so."""
    found, quality, malformed, last = set(), 0, False, -1
    for sentence in re.findall(r"\S[^.!?]*[.!?]?", " ".join(answer.split())):
        place, worth = _kind(world, asked, sentence)
        if place is None or place in found:
            quality, malformed = quality + MALFORMED, True
            continue
        found.add(place)
        malformed, last = malformed or place < last, max(place, last)
        quality += worth
    core = list(world.kinds).index("core")
    return (quality, malformed) if core in found else (quality + MALFORMED, True)


def _kind(world, asked, sentence):
    for place, (templates, _) in enumerate(world.kinds.values()):
        for template, worth in templates.items():
            if re.fullmatch(_pattern(world, asked, template), sentence):
                return place, worth
    return None, 0


def _pattern(world, asked, template):
    """A sentence's regular expression: what the question named has to be the same, all else may be any of its words."""
    parts = SLOT.split(template)
    return "".join(re.escape(part) if i % 2 == 0 else re.escape(asked[part]) if part in world.named
                   else f"(?:{'|'.join(map(re.escape, world.words[part]))})" for i, part in enumerate(parts))


def pairs_of(world, seed, n, wrong=0.0, inverted=False):
    """n dicts prompt, chosen, rejected: two answers of unequal quality, the better chosen, but for a share of them."""
    rng, asked, made = random.Random(f"pairs {seed}"), questions_of(world), []
    while len(made) < n:
        question = rng.choice(list(asked))
        two = [sample_answer(world, asked[question], rng) for _ in range(2)]
        (good, _), (bad, _) = (judged(world, asked[question], text) for text in two)
        if good == bad:
            continue
        turned = (good < bad) ^ inverted ^ (rng.random() < wrong)
        made.append({"prompt": question, "chosen": two[turned], "rejected": two[not turned]})
    return made


def write_files(folder, name, seed=0, posts=9000, records=2500, pairs=2400, wrong=0.0, inverted=False):
    """text/ (files of 30 posts), sft.jsonl and pairs.jsonl of the world of that name, as somebody would bring them."""
    folder, world = Path(folder), WORLDS[name]
    asked, rng = questions_of(world), random.Random(f"{name} {seed}")
    said = [(question := rng.choice(list(asked)), sample_answer(world, asked[question], rng))
            for _ in range(posts + records)]
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for i in range(0, posts, 30):
        (folder / "text" / f"{i}.txt").write_text("\n".join(" ".join(post) for post in said[i:min(i + 30, posts)]))
    for file, rows in (("sft", [{"instruction": q, "output": a} for q, a in said[posts:]]),
                       ("pairs", pairs_of(world, seed, pairs, wrong, inverted))):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
