"""`run.py evaluate`: a model on benchmark files -> what it scores, with standard errors, as a table and as JSON.

The questions are scored in pieces, each kept in OUT/work as soon as it is done, so that a stopped run goes on behind
the last of them and ends the same. OUT then holds

    items.jsonl   each item: where it stands, the log-likelihoods of its choices, which measures took the right one; or
                  what the model wrote; or the nats of a text, its tokens, bytes and words
    report.json   the model, the settings, and each mean with its standard error and number of items
    report.md     the table
"""

import argparse
import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import torch
from benchmark_lookalikes import LANGUAGES, write_lookalikes
from benchmark_scores import score
from benchmark_table import rows_of, table
from benchmark_tasks import TASKS, read_task
from resumable_command import end_well

from minillama.backends import use_kernels
from minillama.cli import flags
from minillama.cli.model_arguments import load_from_args, open_model
from minillama.config_checks import MOST, SEEDS, Range
from minillama.peft.adapter_file import load_adapter
from minillama.system.claim import claims
from minillama.system.files import atomic_write
from minillama.system.terminal import one_line, tqdm

PIECE = 32  # items scored and kept at once


def evaluate(model, tokenizer, asked, out, settings, batch_size=16, **options):
    """Score {task: [Question, ...]} -> the items, in order; each a dict as in items.jsonl.

    options: as `benchmark_scores.score` takes them. settings: what a result depends on; ValueError where `out` holds
    work of others.
    """
    work, items = Path(out) / "work", []
    hold_settings(work / "settings.json", settings)
    pieces = [(name, questions[first:first + PIECE]) for name, questions in asked.items()
              for first in range(0, len(questions), PIECE)]
    for number, (name, questions) in enumerate(tqdm(pieces, desc="evaluate", unit=f" x {PIECE} items")):
        path = work / f"{number:06}.json"
        if not path.exists():
            scored = score(model, tokenizer, name, questions, batch_size, **options)
            with atomic_write(path, "w") as file:
                json.dump(scored, file, ensure_ascii=False)
        items += json.loads(path.read_text(encoding="utf-8"))
    return items


def hold_settings(path, settings):
    """ValueError where a run of other settings, files or another model has left its work."""
    text = json.dumps(settings, indent=1, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path.parents[1]} holds unfinished work of another model, other settings or files: choose "
                         "another --out")
    with atomic_write(path, "w") as file:
        file.write(text)


def read_result(folder):
    """(report, items) of a finished evaluation; ValueError where `folder` holds none."""
    try:
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
        lines = (Path(folder) / "items.jsonl").read_text(encoding="utf-8").splitlines()
        return report, [json.loads(line) for line in lines]
    except (OSError, ValueError):
        raise ValueError(f"--against {folder} holds no finished evaluation: make one there with --model OTHER "
                         f"--out {folder}") from None


def compared_items(against, settings):
    """The items of the evaluation in `against`, which must be one of the same questions."""
    report, items = read_result(against)
    other = report.get("settings", {})
    for name in ("questions", "tasks"):
        if other.get(name) != settings[name]:
            raise ValueError(f"--against {against} has other {name}, {one_line(str(other.get(name)))[:80]}: evaluate "
                             "that model with the same --tasks, --data, --shots and --limit")
    return items


def fingerprint(model):
    """CRC-32 of all weights: tells one model from another, wherever it lies."""
    crc = 0
    for _, tensor in sorted(model.state_dict().items()):
        crc = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return crc


def main(argv=None):
    """Parse, evaluate, print the table; a bad input is one line and exit code 2."""
    return end_well(run_evaluate, parser().parse_args(argv))


def parser():
    """The flags: model, benchmarks, where they lie, and how the model runs."""
    found = argparse.ArgumentParser(prog="run.py evaluate", description="Score a model on benchmark files.")
    found.add_argument("--model", required=True, metavar="PATH", help="a model folder or file")
    found.add_argument("--adapter", metavar="DIR", help="what sft or peft has learned over it")
    found.add_argument("--tokenizer", metavar="T", help="needed where the model brings none")
    found.add_argument("--tasks", required=True, nargs="+", choices=list(TASKS), metavar="NAME",
                       help=f"benchmarks: {', '.join(TASKS)}")
    found.add_argument("--data", metavar="DIR", help="a folder with NAME/ or NAME.jsonl for each: JSON, JSONL, CSV or "
                       "parquet as their authors or the hub hand them out (default: look-alikes made from --seed)")
    flags.add_number(found, "--seed", Range(0, SEEDS), 0, help="of the look-alikes")
    found.add_argument("--language", choices=LANGUAGES, default="english", help="of the look-alikes (default: english)")
    found.add_argument("--out", required=True, metavar="DIR", help="report.md, report.json and items.jsonl; the same "
                       "command goes on with what was interrupted")
    found.add_argument("--against", metavar="OUT", help="an earlier --out, of another model on the same questions: the "
                       "difference and its paired error")
    flags.add_number(found, "--shots", Range(0, 100), help="solved examples in front of each question (default: 5 for "
                     "exams by letter, else 0)")
    flags.add_number(found, "--max-new-tokens", Range(1, MOST), 256, help="of an answer that the model writes")
    flags.add_number(found, "--stride", Range(1, MOST), help="of the window over a text: how many tokens it moves on "
                     "(default: the model's whole context; less sees more before each token)")
    flags.add_number(found, "--limit", Range(1, MOST), help="of each subject only the first N items")
    flags.add_number(found, "--batch-size", Range(1, 4096), 16, help="texts read at once")
    flags.add_bits(found)
    flags.add_kernels_flag(found)
    flags.add_device(found)
    found.set_defaults(resume=True)
    return found


def tell_repeated(asked):
    """A line on stderr for each task of which a question stands more than once."""
    for name, questions in asked.items():
        first, again = {}, []
        for question in questions:
            if first.setdefault(question[:2], question) is not question:
                again.append((question.place, first[question[:2]].place))
        if again:
            print(f"{name}: {len(again)} questions stand there again, as {again[0][0]} that is {again[0][1]}: their "
                  "standard error takes them for questions of their own", file=sys.stderr)


@claims("evaluate", "data", "model", run=True)
def run_evaluate(arguments):
    """Read the questions, load the model, score, write, print."""
    out, names = Path(arguments.out), list(dict.fromkeys(arguments.tasks))
    if (out / "report.json").exists():
        raise ValueError(f"{out} holds a finished evaluation, of {_named(out)}: choose another --out")
    found = open_model(arguments)  # a model that cannot be loaded is refused before anything is written
    data = arguments.data or out / "work" / "lookalikes"
    if arguments.data is None:
        write_lookalikes(data, arguments.seed, language=arguments.language, names=names)
    asked = {name: read_task(data, name, arguments.shots, arguments.limit) for name in names}
    tell_repeated(asked if arguments.data else {})
    digest = zlib.crc32(repr([question[:3] for part in asked.values() for question in part]).encode())
    settings = {"tasks": names, "questions": digest, "shots": arguments.shots}
    theirs = compared_items(arguments.against, settings) if arguments.against else None
    model, tokenizer = load_from_args(arguments, found=found)
    use_kernels(model, arguments.kernels)
    if arguments.adapter:
        load_adapter(arguments.adapter, model)
    settings |= {"model": fingerprint(model), "dtype": str(model.tok_embeddings.weight.dtype).removeprefix("torch."),
                 "kernels": arguments.kernels, "device": arguments.device, "batch_size": arguments.batch_size,
                 **(options := {"stride": arguments.stride, "max_new_tokens": arguments.max_new_tokens})}
    items = evaluate(model, tokenizer, asked, out, settings, arguments.batch_size, **options)
    write_report(out, {"model": arguments.model, "settings": settings, "against": arguments.against,
                       "rows": rows_of(items, theirs)}, items)
    print((out / "report.md").read_text(encoding="utf-8"), end="")
    return 0


def _named(out):
    return one_line(str(read_result(out)[0].get("model")))


def write_report(out, report, items):
    """items.jsonl and report.md, then report.json, which says that all is there; the pieces go."""
    with atomic_write(out / "items.jsonl", "w") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    with atomic_write(out / "report.md", "w") as file:
        file.write(f"{table(report['rows'])}\n\nShares in per cent, ± one standard error")
        file.write(f"; difference in the first measure to {one_line(report['against'])}, item by item.\n"
                   if report["against"] else ".\n")
    with atomic_write(out / "report.json", "w") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    shutil.rmtree(out / "work", ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
