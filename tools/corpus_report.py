"""The files that a cleaned corpus becomes, and a report of what was kept and what went, with samples to read."""

import json
import re
from collections import Counter
from contextlib import ExitStack
from textwrap import indent

from lessons.cleaning import without_lines
from minillama.system.files import atomic_write
from minillama.system.terminal import visible

BLANK_LINES = re.compile(r"\n\s*\n")
BUCKETS = ("head", "middle", "tail")
SHOWN, SHOWN_CHARACTERS = 3, 300  # samples of each reason and bucket in the report


def write_corpus(out, shards, boilerplate, verdicts):
    """OUT/LANGUAGE/BUCKET.txt, OUT/dropped.jsonl and OUT/report.md, which is written last; the counts."""
    counts, samples, verdicts = Counter(), {}, iter(verdicts)
    with ExitStack() as stack:
        files = {"": stack.enter_context(atomic_write(out / "dropped.jsonl", "w"))}
        for shard in shards:
            for offset, text in shard.documents():
                reason, detail, language, bucket, perplexity = next(verdicts)
                place = f"{language}/{BUCKETS[bucket]}" if not reason else ""
                if not reason:
                    text = BLANK_LINES.sub("\n", without_lines(text, boilerplate))
                    detail = f"perplexity {perplexity:.1f}"
                if place not in files:
                    files[place] = stack.enter_context(atomic_write(out / f"{place}.txt", "w"))
                record = {"file": shard.path, "byte": offset, "reason": str(reason), "detail": str(detail)}
                files[place].write(text + "\n\n" if place else json.dumps(record, ensure_ascii=False) + "\n")
                name = place or str(reason)
                counts[name] += 1
                if len(samples.setdefault(name, [])) < SHOWN:
                    samples[name].append((f"{shard.path}, byte {offset}: {detail}", text[:SHOWN_CHARACTERS]))
    with atomic_write(out / "report.md", "w") as file:
        file.write(report(counts, samples, len(boilerplate)))
    return counts


def report(counts, samples, lines):
    """What was kept and what went, with the first documents of each kind to read."""
    total = max(counts.total(), 1)
    parts = ["# What was kept, and what went", f"{lines:,} different lines stood in many documents, and were left out "
             "of all.", "\n".join(["| | documents | share |", "|---|---|---|", *(
                 f"| {name} | {count:,} | {count / total:.1%} |" for name, count in counts.most_common())])]
    for name, found in sorted(samples.items()):
        parts.append(f"## {name}")
        parts += [f"{where}\n\n{indent(visible(text), '    ')}" for where, text in found]
    return "\n\n".join(parts) + "\n"
