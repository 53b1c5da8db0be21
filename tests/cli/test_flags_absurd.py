"""Absurd values of every numeric flag of every command: refused in one line within seconds, or right."""

import argparse
import json
import sys

import pytest
from forked_runs import ForkedRuns

from minillama.cli.command_line import build_parser

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits a child's memory as Linux counts it")

VALUES = ("0", "-1", "1.5", "1e-45", "1e40", "nan", "inf", "-inf", "cdua", "", "1000000000000", str(2**63), str(2**64),
          "9" * 30, "1e-300", "999999999", "-0.0", "0x10", "1_0")
SECONDS = 5
WORDS = {  # a command that works, as small as it can be
    "tokenizer train": "--text {a}/text.txt --vocab-size 330 --out {out}",
    "pretrain": "--text {a}/text.txt --tokenizer {a}/t.model --out {out} --steps 2 --warmup-steps 0 --batch-size 1 "
                "--seq-len 8 --eval-windows 1",
    "generate": "--model {a}/base --prompt a --max-new-tokens 2",
    "chat": "--model {a}/base --max-new-tokens 2",
    "sft": "--model {a}/base --data {a}/data.jsonl --out {out} --steps 2 --warmup-steps 0 --batch-size 8 "
           "--template question_answer",
    "reward": "--model {a}/base --pairs {a}/pairs.jsonl --out {out} --batch-size 8 --max-new-tokens 2",
    "ppo": "--model {a}/base --reward {a}/reward --prompts {a}/pairs.jsonl --out {out} --iterations 1 --batch-size 2 "
           "--max-new-tokens 2",
    "quantize": "{a}/base {out} --nf4",
    "filter": "--data {a}/data.jsonl --out {out}",
    "tour": "--text {a}/text.txt --out {out} --documents 100 --steps 31 --text-steps 31 --no-progress",
    "simt run": "{a}/none.cu",
}
ENDLESS = ("steps", "iterations", "epochs", "documents", "grad_accumulation", "max_words", "limit_seconds")


def numeric_flags():
    """(command, flag) of all flags that take a number."""
    found = []
    for command in WORDS:
        parser = build_parser(command.split()[0])
        for word in command.split():
            action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = action.choices[word]
        found += [(command, action.option_strings[0]) for action in parser._actions
                  if action.option_strings and action.type is not None]
    return found


CASES = [(command, flag, value) for command, flag in numeric_flags() for value in VALUES]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Small inputs of all commands, and the process that forks."""
    a = tmp_path_factory.mktemp("absurd")
    (a / "text.txt").write_text("".join(f"Line {n} tells of {n * n} things that come again.\n" for n in range(300)))
    records = [{"instruction": f"Count to {n}.", "output": "one " * n} for n in range(1, 60)]
    (a / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = [{"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."} for n in range(60)]
    (a / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with ForkedRuns() as runs:
        for command, out in (("tokenizer train", "t.model"), ("pretrain", "base"), ("reward", "reward")):
            words = WORDS[command].format(a=a, out=a / out).split()
            ended = runs.run([*command.split(), *words], 120, 8)
            assert ended.code == 0, ended.said
            if out == "base":  # an answer without end is soon at the model's end
                shape = json.loads((a / "base/params.json").read_text())
                (a / "base/params.json").write_text(json.dumps(shape | {"max_seq_len": 64}))
        yield a, runs


def verdict(place, number, command, flag, value):
    """What is wrong with the outcome of one command, or ""."""
    a, runs = place
    out = a / f"out{number}"
    words = WORDS[command].format(a=a, out=out).split()
    ended = runs.run([*command.split(), *words, f"{flag}={value}"], SECONDS)
    lines = [line for line in ended.said.replace("\r", "\n").splitlines() if line.strip()]
    told = f"{command} {flag}={value}: {ended.code} after {ended.seconds:.1f} s, {lines[-3:]}"
    if ended.code is None:  # at work: a huge number of steps is what was asked for
        return "" if flag.strip("-").replace("-", "_").endswith(ENDLESS) or command == "tour" else told
    if ended.code == 0 or "none.cu is no file" in ended.said:  # the value was taken
        return told if "Traceback" in ended.said or "nan" in ended.said.split("\n")[-2:] else ""
    errors = [line for line in lines if line.startswith("minillama: ")]
    if ended.code not in (1, 2, 3) or len(errors) != 1 or errors[0] != lines[-1] or "Traceback" in ended.said:
        return told
    if out.exists() and not (out.is_file() or command == "tour"):
        return f"{told}; left {[path.name for path in out.iterdir()]}"
    named = (flag, flag.strip("-").replace("-", "_"), value)
    foreign = ("Expected", "at::", "torch.", "c10", "MemoryError", "Invalid", "overflow")
    return told if any(word in errors[0] for word in foreign) or not any(name in errors[0] for name in named) else ""


@pytest.mark.parametrize("part", range(5))
def test_a_hundred_absurd_values_are_refused_in_one_line_or_right(place, part):
    chosen = CASES[::len(CASES) // 100][part * 20:(part + 1) * 20]
    wrong = [verdict(place, f"q{part}_{n}", *case) for n, case in enumerate(chosen)]
    assert len(chosen) == 20 and not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.long
def test_all_absurd_values_are_refused_in_one_line_or_right(place):
    assert len(CASES) > 1000
    wrong = [verdict(place, n, *case) for n, case in enumerate(CASES)]
    assert not any(wrong), "\n".join(filter(None, wrong))
