"""The command that prepares records for training: `filter`, which keeps instructions that differ."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from minillama.cli.flags import add_fields, command
from minillama.system.claim import claims
from minillama.system.files import atomic_write, require_regular

DROPPED = b'{"line": '  # how a line about a dropped record begins: only such a file is written anew


def add_filter(commands):
    """filter --data FILE --out KEPT.jsonl [--rejected FILE] [--pool FILE ...] and the fields of FilterRules."""
    from minillama.train.self_instruct import FilterRules

    parser = command(commands, "filter", run_filter, "keep instructions that differ from one another (self-instruct)")
    parser.add_argument("--data", required=True, metavar="FILE", help="JSON or JSONL, Alpaca or conversations")
    parser.add_argument("--out", required=True, metavar="KEPT.jsonl", help="the records kept, unchanged, one a line")
    parser.add_argument("--rejected", metavar="FILE", help="all others, with line and reason (default: beside --out)")
    parser.add_argument("--pool", nargs="+", default=[], metavar="FILE", help="records that new ones must differ from")
    add_fields(parser, FilterRules, similarity="ROUGE-L from which a task counts as told before",
               min_words="of an instruction", max_words="of an instruction",
               english="drop what begins with a letter beyond ASCII; --no-english compares words of any script")
    parser.add_argument("--blacklist", nargs="*", default=FilterRules.blacklist, metavar="WORD",
                        help="drop instructions with these words; none given: none (default: Alpaca's image, map, ...)")
    parser.add_argument("--skip-bad", action=argparse.BooleanOptionalAction, default=False,
                        help="put unreadable records on stderr and go on without them")


@claims("filter", "data", "pool")
def run_filter(arguments):
    """Read the records, judge one after another (`self_instruct.InstructionFilter`), write both sides, count."""
    from minillama.train.records import read_records
    from minillama.train.self_instruct import FilterRules, InstructionFilter

    keeper = InstructionFilter(FilterRules(arguments.similarity, arguments.min_words, arguments.max_words,
                                           arguments.english, tuple(arguments.blacklist)))
    out = Path(arguments.out)
    rejected = Path(arguments.rejected or out.with_suffix(".rejected.jsonl"))
    files = [Path(name).resolve() for name in (arguments.data, *arguments.pool, out, rejected)]
    if len(set(files)) < len(files):
        raise ValueError(f"--data, --pool, --out {out} and --rejected {rejected} must be different files")
    if rejected.exists() and require_regular(rejected).read_bytes()[:len(DROPPED)] not in (b"", DROPPED):
        raise ValueError(f"{str(rejected)!r} is there and no filter made it: give another file as --rejected")
    for path in arguments.pool:
        for record in read_records(path, arguments.skip_bad).records:
            keeper.add(" ".join([record.question, record.input]).strip())
    read = read_records(arguments.data, arguments.skip_bad)
    for line in read.skipped:
        print(line, file=sys.stderr)
    reasons = Counter()
    with atomic_write(out, "w") as kept, atomic_write(rejected, "w") as dropped:
        for record, (line, value) in zip(read.records, read.objects, strict=True):
            why = keeper.why_not(record.question, record.input)
            if why is None:
                kept.write(one_line(value))
            else:
                reasons[why.reason] += 1
                dropped.write(one_line({"line": line, "reason": why.reason, "found": why.detail, "record": value}))
    counts = "".join(f", {count} {reason}" for reason, count in reasons.most_common())
    print(f"{arguments.data}: {read.summary()}\n{out}: {len(read.records) - reasons.total()} kept\n"
          f"{rejected}: {reasons.total()} dropped{counts}", file=sys.stderr)


def one_line(value):
    """A value as a line of JSONL; letters as they are, unless half a surrogate pair is among them."""
    text = json.dumps(value, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        text = json.dumps(value)
    return text + "\n"
