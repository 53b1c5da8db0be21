"""Look-alikes of the benchmarks: files of the same forms, made from a seed, in English and in Chinese.

The real sets are to be fetched from their authors; these need no network. Every answer follows from a rule, its place
among the choices is drawn, and so a model that knows nothing scores at chance and one that knows the rule at 100 %.
The exams in English are `mmlu`, those in Chinese `ceval` and `cmmlu`; all others come in both languages.
"""

import csv
import io
import json
import random
from pathlib import Path
from typing import NamedTuple

from minillama.system.files import atomic_write


class Words(NamedTuple):
    """What the sentences of one language are made of."""

    colours: tuple
    things: tuple
    people: tuple
    days: tuple
    empty: str
    asks: str
    opens: str
    turns: str
    gives: str
    who: str
    takes: str
    then: str
    looks: str
    fits: tuple
    sums: str
    after: str
    join: str


ENGLISH = Words(
    ("red", "blue", "green", "white", "black", "yellow"), ("cup", "box", "bag", "ball", "book", "lamp"),
    ("Kim", "Lee", "Max", "Ann", "Tom"), ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "The {0} {2} holds a key. The {1} {2} is empty.", "does the {0} {1} hold a key", "open the {0} {1}",
    "Turn the {0} key.", "{0} gave {1} the {2} {3}.", "Who has it now?", "{0} takes the {1} {2}.", "{0}",
    "looks at the {0} {1}.", ("The {0} does not fit into the {1} because the _ is too large.",
                 "The {0} does not fit into the {1} because the _ is too small."),
    "What is {0} plus {1}?", "The day after {0} is", " ")
CHINESE = Words(
    ("红色", "蓝色", "绿色", "白色", "黑色", "黄色"), ("杯子", "盒子", "袋子", "球", "书", "灯"),
    ("小明", "小红", "小刚", "小丽", "小华"), ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
    "{0}的{2}里有一把钥匙。{1}的{2}是空的。", "{0}的{1}里有钥匙吗", "打开{0}的{1}", "转动{0}的钥匙。",
    "{0}把{2}的{3}给了{1}。", "现在东西在谁那里？", "{0}拿起{1}的{2}。", "{0}", "看着{0}的{1}。",
    ("{0}放不进{1}，因为_太大了。", "{0}放不进{1}，因为_太小了。"), "{0}加{1}等于几？", "{0}的后一天是", "")
LANGUAGES = {"english": ENGLISH, "chinese": CHINESE}


def _mixed(rng, right, wrong):
    """(all choices in a drawn order, the place of the right one)"""
    choices = [right, *wrong]
    rng.shuffle(choices)
    return choices, choices.index(right)


def _boolq(rng, words):
    one, other = rng.sample(words.colours, 2)
    thing, answer = rng.choice(words.things), rng.random() < 0.5
    return {"question": words.asks.format(one if answer else other, thing),
            "passage": words.empty.format(one, other, thing), "answer": answer}


def _piqa(rng, words):
    one, other = rng.sample(words.colours, 2)
    ways, label = _mixed(rng, words.turns.format(one), [words.turns.format(other)])
    return {"goal": words.opens.format(one, rng.choice(words.things)), "sol1": ways[0], "sol2": ways[1],
            "label": label}


def _siqa(rng, words):
    giver, taker, third = rng.sample(words.people, 3)
    names, label = _mixed(rng, taker, [giver, third])
    return {"context": words.gives.format(giver, taker, rng.choice(words.colours), rng.choice(words.things)),
            "question": words.who, **dict(zip(("answerA", "answerB", "answerC"), names, strict=True)),
            "label": str(label + 1)}


def _hellaswag(rng, words):
    person, thing = rng.choice(words.people), rng.choice(words.things)
    right, *wrong = (words.looks.format(colour, thing) for colour in rng.sample(words.colours, 4))
    endings, label = _mixed(rng, right, wrong)
    colour = next(colour for colour in words.colours if right == words.looks.format(colour, thing))
    return {"activity_label": "Tidying [header] up", "ctx_a": words.takes.format(person, colour, thing) + " [title]",
            "ctx_b": words.then.format(person).lower(), "endings": endings, "label": label}


def _winogrande(rng, words):
    one, other = rng.sample(words.things, 2)
    large = rng.random() < 0.5
    options, label = _mixed(rng, one if large else other, [other if large else one])
    return {"sentence": words.fits[not large].format(one, other), "option1": options[0], "option2": options[1],
            "answer": str(label + 1)}


def _sum(rng, n_choices):
    a, b = rng.randrange(10, 50), rng.randrange(10, 50)
    others = [value for value in range(a + b - 6, a + b + 7) if value != a + b]
    choices, label = _mixed(rng, str(a + b), [str(value) for value in rng.sample(others, n_choices - 1)])
    return a, b, choices, label


def _arc(rng, words):
    """A few have three or five choices, or numbers for labels, as in ARC."""
    a, b, choices, label = _sum(rng, rng.choice((3, 4, 4, 4, 4, 5)))
    labels = ("ABCDE" if rng.random() < 0.8 else "12345")[:len(choices)]
    return {"question": {"stem": words.sums.format(a, b), "choices": [
        {"text": text, "label": name} for text, name in zip(choices, labels, strict=True)]}, "answerKey": labels[label]}


def _obqa(rng, words):
    day = rng.randrange(7)
    wrong = rng.sample([name for i, name in enumerate(words.days) if i != (day + 1) % 7], 3)
    choices, label = _mixed(rng, words.days[(day + 1) % 7], wrong)
    return {"question_stem": words.after.format(words.days[day]), "choices": {"text": choices, "label": list("ABCD")},
            "answerKey": "ABCD"[label]}


def _exam(rng, words):
    a, b, choices, label = _sum(rng, 4)
    return [words.sums.format(a, b), *choices, "ABCD"[label]]


def _gsm8k(rng, words):
    a, b = rng.randrange(10, 50), rng.randrange(10, 50)
    return {"question": words.sums.format(a, b), "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"}


def _triviaqa(rng, words):
    giver, taker = rng.sample(words.people, 2)
    told = words.gives.format(giver, taker, rng.choice(words.colours), rng.choice(words.things))
    return {"question": f"{told} {words.who[:-1]}", "answer": {"value": taker, "aliases": [taker, taker + "!"]}}


def _document(rng, words):
    names = rng.sample(words.people, 2)
    told = [words.gives.format(*names, rng.choice(words.colours), rng.choice(words.things)) for _ in range(3)]
    return {"text": words.join.join(told) + "\n"}


MAKERS = {"boolq": _boolq, "piqa": _piqa, "siqa": _siqa, "hellaswag": _hellaswag, "winogrande": _winogrande,
          "arc_easy": _arc, "arc_challenge": _arc, "obqa": _obqa,
          "gsm8k": _gsm8k, "triviaqa": _triviaqa, "text": _document}
SPLITS = dict.fromkeys(("arc_easy", "arc_challenge", "obqa", "gsm8k", "text"), "test")  # where it is not val
EXAMS = {"mmlu": (None, "test", ("abstract_algebra", "elementary_mathematics", "philosophy")),
         "ceval": (("id", "question", "A", "B", "C", "D", "answer"), "val", ("accountant", "logic")),
         "cmmlu": (("", "Question", "A", "B", "C", "D", "Answer"), "test", ("agronomy", "arts"))}


def write_lookalikes(folder, seed=0, n=100, language="english", names=None):
    """Look-alikes below `folder`, n questions of each benchmark (of each of an exam's subjects) and some examples."""
    for name in names or (*MAKERS, *EXAMS):
        rng = random.Random(f"look-alikes {name} {language} {seed}")
        home = Path(folder) / name
        if name in MAKERS:
            for split, count in (("train", 12), (SPLITS.get(name, "val"), n)):
                rows = [MAKERS[name](rng, LANGUAGES[language]) for _ in range(count)]
                _write(home / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            continue
        header, split, subjects = EXAMS[name]
        words = ENGLISH if name == "mmlu" else CHINESE
        for subject in subjects:
            for part, count in (("dev", 5), (split, n)):
                rows = [_exam(rng, words) for _ in range(count)]
                stem = subject if name == "cmmlu" else f"{subject}_{part}"
                _write(home / part / f"{stem}.csv", _csv(rows, header))


def _csv(rows, header):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(header)
        rows = [[number, *row] for number, row in enumerate(rows)]
    writer.writerows(rows)
    return text.getvalue()


def _write(path, text):
    with atomic_write(path, "w") as file:
        file.write(text)
