"""The benchmarks of what runs on a CPU, one after another, and the page docs/speed.md: ours, the peer, their ratio,
the limit and our share of it; and each goal, met or missed.

With one thread the benchmarks count CPU time, with two the wall's; the page says how busy the machine was.
"""

import datetime
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import _rounds

BENCH = Path(__file__).parent
RUNS = {  # name: benchmark with its flags, threads
    "decoding": ("decoding", 1), "far": ("decoding --position 2000 --cache-dtype bfloat16", 1),
    "two-threads": ("decoding", 2), "large": ("decoding --shape 1b1", 1), "products": ("products", 1),
    "attention": ("attention", 1), "training": ("training", 1)}
SHOWN = ("what", "size", "ours", "peer", "ratio", "limit", "share of limit", "rounds")


@dataclass(frozen=True)
class Goal:
    """At least `wanted` in a column of every row that it finds."""

    what: str  # regular expressions, searched for
    size: str
    wanted: float
    column: str = "ratio"


GOALS = (
    Goal(r"^decoding.*engine NF4 x int8 activations, head int8, against llama.cpp Q4_0", "", 1.3),
    Goal(r"^decoding.*engine NF4, head int8, against llama.cpp Q4_0", "", 1.0),
    Goal(r"^decoding.*engine int8, head int8, against llama.cpp Q8_0", "", 1.1),
    Goal(r"^decoding.*engine fp32, against llama.cpp F32", "", 1.0),
    Goal(r"^decoding.*engine GGUF Q4_0 x int8 activations, against llama.cpp Q4_0", "", 1.0),
    Goal(r"^decoding.*engine GGUF Q8_0 x int8 activations, against llama.cpp Q8_0", "", 1.0),
    Goal(r"^decoding.*engine NF4 x int8 activations, head int8, against bitsandbytes", "", 4.0),
    Goal(r"^decoding.*engine NF4, head int8, against bitsandbytes", "", 3.0),
    Goal(r"^reading a prompt.*engine NF4 x int8 activations, head int8, against llama.cpp Q4_0", "", 1.3),
    Goal(r"^reading a prompt.*engine int8, head int8, against llama.cpp Q8_0", "", 1.3),
    Goal(r"^reading a prompt.*engine fp32, against llama.cpp F32", "", 1.2),
    Goal(r"^reading a prompt.*engine fp32, against transformers", "", 1.0),
    Goal(r"^NF4 exact, best, against PyTorch", "^1 x", 60, "share of limit"),
    Goal(r"^NF4 int8 activations, best", "^1 x", 80, "share of limit"),
    Goal(r"^NF4 exact, best, against PyTorch", "^256 x", 0.9),
    Goal(r"^attention.*forward, against SDPA", r"T=(256|512) .*float32", 1.5),
    Goal(r"^attention.*forward, against SDPA", "T=1024 .*float32", 1.25),
    Goal(r"^attention.*forward, against SDPA", "T=2048 .*float32", 1.1),
    Goal(r"^attention.*forward, against SDPA", "T=4096 .*float32", 1.0),
    Goal(r"^attention.*backward, against SDPA", r"T=(256|512|1024) .*float32", 1.3),
    Goal(r"^attention.*backward, against cast", "bfloat16", 1.5),
    Goal(r"^training step.*against transformers", "", 1.2),
    Goal(r"^training step.*against torch.compile", "", 1.0),
    Goal(r"^LoRA.*against peft", "256 tokens", 1.1),
    Goal(r"^QLoRA.*against peft", " 64 tokens", 1.6),
)


def rows_in(text):
    """The rows of all tables that a benchmark printed, as {column: cell}."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(_rounds.COLUMNS, row, strict=True)) for row in cells
            if row != list(_rounds.COLUMNS) and set(row) != {"---"}]


def printed_by(name, threads, chosen):
    """What a benchmark prints; SystemExit with its last words where it fails."""
    name, *flags = name.split()
    command = [sys.executable, str(BENCH / f"{name}.py"), *flags, "--threads", str(threads)]
    command += ["--rounds", str(chosen.rounds)] + ["--small"] * chosen.small
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def first_number(cell):
    """"1.23 (1.1 to 1.4)" -> 1.23, "62 %" -> 62.0; None where the cell holds none."""
    found = re.match(r"[\d.]+", cell)
    return float(found[0]) if found else None


def judged(rows, goals=GOALS):
    """(words, goal, measured, met) of each goal and row; a goal that finds no row comes once, with None and False."""
    found = []
    for goal in goals:
        here = [row for row in rows if re.search(goal.what, row["what"]) and re.search(goal.size, row["size"])]
        for row in here:
            measured = first_number(row[goal.column])
            threads = re.search(r"threads: \d+", row["machine"])
            words = f"{row['what']}; {row['size']}; {threads[0] if threads else ''}"
            found.append((words, goal, measured, measured is not None and measured >= goal.wanted))
        if not here:
            words = f"{goal.what} {goal.size}".replace("^", "").replace(".*", " ").replace("|", " or ").strip()
            found.append((words, goal, None, False))
    return found


def goals_in_words(found):
    """The lines of the page that say which goals are met, the missed ones first."""
    met = sum(ok for *_, ok in found)
    lines = [f"{met} of {len(found)} goals are met. Each is a ratio to the peer or, where it says so, a share of the "
             "limit.", "",
             "| goal | wanted | measured | |", "|---|---|---|---|"]
    for words, goal, measured, ok in sorted(found, key=lambda one: (one[3], one[2] is None)):
        said, verdict = ("-", "not measured") if measured is None else (f"{measured:g}", "met" if ok else "missed")
        share = " % of limit" if goal.column != "ratio" else ""
        lines.append(f"| {words} | {goal.wanted:g}{share} | {said} | {verdict} |")
    return lines


def page(tables, loads, options):
    """The text of docs/speed.md. tables: {(name, threads): rows}; loads: how many programs ran at a time, before
    and after; options: of the command that made it."""
    rows = [row for table in tables.values() for row in table]
    machine = re.sub(r", threads: \d+", "", rows[0]["machine"]) if rows else _rounds.machine()
    busy = max(loads) > os.cpu_count() + 0.5
    lines = ["# Speed on a CPU", "",
             f"Made by `python3 run.py bench speed {options}`, {datetime.date.today().isoformat()}, on {machine}.", "",
             "Medians of rounds in which contenders took turns. A ratio compares ours with the peer in the same",
             "round (in brackets: least and most); above 1, ours is better. With one thread the numbers count",
             "CPU time, with two the wall's. The limit of decoding and of products is the time in which the",
             "weights' bytes are read, that of attention the same FLOPs by torch.mm, which may use narrower",
             "instructions than ours: more than 100 % then. \"best\" are the widest instructions that this CPU",
             "has.",
             f"Load average before and after: {loads[0]:.1f} and {loads[1]:.1f},",
             f"on {os.cpu_count()} cores." + (" So the machine was busy, and the wall's numbers are worth little."
                                              if busy else ""),
             "", "## Goals", "", *goals_in_words(judged(rows))]
    for (name, threads), table in tables.items():
        lines += ["", f"## {name}, {threads} thread{'s' * (threads > 1)}", "",
                  "| " + " | ".join(SHOWN) + " |", "|" + "---|" * len(SHOWN)]
        lines += ["| " + " | ".join(row[column] for column in SHOWN) + " |" for row in table]
    return "\n".join(lines) + "\n"


def main(argv=None):
    def place(parser):
        parser.add_argument("--out", default=str(BENCH.parent / "docs" / "speed.md"), help="the page (docs/speed.md)")
        parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME",
                            help="these of %(choices)s (default: all): far is decoding at position 2000, large of "
                                 "1.1 B weights")

    chosen = _rounds.options(__doc__, argv, place)
    before, tables = os.getloadavg()[0], {}
    for called, (name, threads) in RUNS.items():
        wanted = not chosen.only or called in chosen.only
        if wanted and (BENCH / f"{name.split()[0]}.py").exists() and threads <= chosen.threads:
            print(f"{name}, threads: {threads}", file=sys.stderr)
            text = printed_by(name, threads, chosen)
            print(text, flush=True)
            tables[name, threads] = rows_in(text)
    options = f"--rounds {chosen.rounds} --threads {chosen.threads}"
    options += f" --only {' '.join(chosen.only)}" if chosen.only else ""
    Path(chosen.out).write_text(page(tables, (before, os.getloadavg()[0]), options), encoding="utf-8")
    print(f"{chosen.out}: written", file=sys.stderr)


if __name__ == "__main__":
    main()
