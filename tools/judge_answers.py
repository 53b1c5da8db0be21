"""`run.py judge`: one model compares the answers of two others -> who wins how often, with an interval, and how far
the judge is to be trusted.

The answers lie in files, or two models give them to the questions of --prompts. The judge sees each pair in both
orders. OUT then holds

    verdicts.jsonl   each question: both answers, the verdict, the preference in each order
    report.json      who judged what; win rate, ties, position and length bias; the judge's verdicts on planted pairs
    report.md        the same as tables
"""

import argparse
import copy
import json
import math
import os
import shutil
import sys
import zlib
from pathlib import Path

from answer_files import read_both, read_prompts
from evaluate import fingerprint, hold_settings
from resumable_command import end_well

from minillama.backends import use_kernels
from minillama.chat import Conversation
from minillama.cli import flags
from minillama.cli.model_arguments import load_from_args, open_model, take_template
from minillama.config_checks import MOST, Range
from minillama.evaluate.exact_match import write_texts
from minillama.evaluate.judge import (
    PROMPT,
    both_orders,
    grades,
    judge,
    planted_pairs,
    preferences,
    summarize,
    wilson_interval,
)
from minillama.evaluate.likelihood import encode_pair
from minillama.evaluate.standard_error import paired_difference, ratio_and_error
from minillama.peft.adapter_file import load_adapter
from minillama.system.claim import claims
from minillama.system.files import atomic_write
from minillama.system.terminal import one_line, tqdm

PIECE = 16  # pairs judged and kept at once
KNOWN = {"itself": "an answer against itself: the first preferred",
         "repeated": "an answer said twice: preferred to once",
         "stray": "an answer against one to another question: preferred"}


def asked_of(arguments, path):
    """The arguments with the model in `path`, as it is, in the place of the judge."""
    ours = copy.copy(arguments)
    ours.model, ours.adapter, ours.tokenizer, ours.dtype = path, None, None, None
    return ours


def answers_of(arguments, path, questions, kept):
    """What the model in `path` answers, greedily and in its own template; kept in a file, from which a later start
    reads it."""
    ours = asked_of(arguments, path)
    model, tokenizer = load_from_args(ours)
    use_kernels(model.eval(), ours.kernels)
    settings = {"model": fingerprint(model), "questions": zlib.crc32(repr(questions).encode()),
                "max_new_tokens": arguments.max_new_tokens}
    hold_settings(kept.with_suffix(".settings.json"), settings)
    template = take_template(ours, tokenizer, "question_answer")
    return in_pieces(kept.parent, kept.stem, questions, lambda part: write_replies(
        model, Conversation(tokenizer, template), part, arguments.max_new_tokens, arguments.batch_size))


def write_replies(model, conversation, questions, max_new_tokens, batch_size):
    """What `chat.reply` answers greedily to each question, in a conversation of its own; several at once."""
    context, rows = model.config.max_seq_len, []
    for question in questions:
        conversation.reset()
        conversation.ask(question)
        rows.append(conversation.prompt(context - min(max_new_tokens, context // 2)))
    texts = write_texts(model, conversation.tokenizer, rows, max_new_tokens, conversation.stop_texts(),
                        conversation.stop_ids(), batch_size)
    return [text.strip() for text in texts]


def is_file_of_answers(path):
    """Whether a side is answers, and no model that is to give them."""
    return Path(path).suffix in (".json", ".jsonl")


def read_or_make_pairs(arguments, work):
    """[(question, ours, theirs), ...] of the two files, or of two models, or of one of each."""
    sides = {name: Path(getattr(arguments, name)) for name in ("ours", "theirs")}
    files = {name: path for name, path in sides.items() if is_file_of_answers(path)}
    if len(files) == 2:
        return read_both(files["ours"], files["theirs"])[:arguments.limit]
    if arguments.prompts is None:
        raise ValueError(f"{next(str(sides[name]) for name in sides if name not in files)} is no file of answers "
                         "(.jsonl, .json): to let a model answer, give --prompts a file of questions")
    questions = read_prompts(arguments.prompts)[:arguments.limit]
    given = {name: read_both(path, path, questions) for name, path in files.items()}
    found = {name: [pair[1] for pair in given[name]] if name in files else
             answers_of(arguments, str(path), questions, work / f"{name}.json") for name, path in sides.items()}
    return list(zip(questions, found["ours"], found["theirs"], strict=True))


def require_room(model, tokenizer, pairs):
    """ValueError for a pair that the judge cannot read whole: it would lose the question."""
    for question, ours, theirs in both_orders(pairs):
        front, rest = encode_pair(tokenizer, PROMPT.format(question=question, first=ours, second=theirs), " A")
        if len(front) + len(rest) > model.config.max_seq_len + 1:
            raise ValueError(f"the question {one_line(question)[:40]!r} and its two answers make {len(front)} tokens, "
                             f"the judge reads {model.config.max_seq_len}: shorten the answers, or take another judge")


def in_pieces(work, name, pairs, ask):
    """ask(pairs) -> a list, piece by piece; each is kept in `work` as soon as it is done."""
    found = []
    for first in tqdm(range(0, len(pairs), PIECE), desc=name, unit=f" x {PIECE} pairs"):
        path = work / f"{name}-{first // PIECE:05}.json"
        if not path.exists():
            with atomic_write(path, "w") as file:
                json.dump(ask(pairs[first:first + PIECE]), file)
        found += json.loads(path.read_text(encoding="utf-8"))
    return found


def report_of(arguments, pairs, margins, known, marks):
    """What report.json holds. margins: the preferences of `both_orders(pairs)`; known: {name: those of planted pairs};
    marks: the grades of ours and theirs, or None."""
    verdicts = judge(lambda shown: margins, pairs)
    found = summarize(verdicts)
    report = {"judge": arguments.model, "ours": arguments.ours, "theirs": arguments.theirs, "questions": len(pairs),
              "won": sum(one.score == 1 for one in verdicts), "tied": sum(one.score == 0.5 for one in verdicts),
              "lost": sum(one.score == 0 for one in verdicts),
              **{name: None if math.isnan(value) else value for name, value in found._asdict().items()},
              "balanced_interval": wilson_interval(found.balanced, len(pairs)), "planted": {}}
    for name, ours in known.items():
        right = [shares_first(ours[i:i + 2]) if name == "itself" else shares_first([ours[i] - ours[i + 1]])
                 for i in range(0, len(ours), 2)]
        if right:
            share = sum(right) / len(right)
            report["planted"][name] = [share, *wilson_interval(share, len(right)), len(right)]
    if marks:
        ours, theirs = marks[::2], marks[1::2]
        report["grades"] = {"ours": sum(ours) / len(ours), "theirs": sum(theirs) / len(theirs),
                            "ratio": _finite(ratio_and_error(ours, theirs)),
                            "difference": _finite(paired_difference(ours, theirs)),
                            "higher": shares_first([a - b for a, b in zip(ours, theirs, strict=True)])}
    return report, verdicts


def shares_first(margins):
    """The share of margins above 0; one of 0 counts half."""
    return sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)


def _finite(numbers):
    return [None if math.isnan(number) else number for number in numbers]


def tables(report):
    """The report in Markdown, in per cent."""
    def percent(share):
        return "" if share is None else f"{100 * share:.1f}"

    def span(low, high):
        return f"{100 * low:.1f} to {100 * high:.1f}"

    ours, theirs, judge_name = (one_line(str(report[name])) for name in ("ours", "theirs", "judge"))
    lines = [f"{judge_name} judged {ours} against {theirs} on {report['questions']:,} questions.", "",
             "| measure | per cent | 95 % interval |", "|---|---:|---:|",
             f"| ours wins in both orders; a tie is half | {percent(report['win_rate'])} | "
             f"{span(report['low'], report['high'])} |",
             f"| ours wins by both orders together | {percent(report['balanced'])} | "
             f"{span(*report['balanced_interval'])} |",
             f"| won, tied, lost | {report['won']}, {report['tied']}, {report['lost']} | |",
             f"| the other order turns the verdict round | {percent(report['changed'])} | |",
             f"| the answer shown first is preferred | {percent(report['first_preferred'])} | |",
             f"| of decided pairs, the longer answer won | {percent(report['longer_preferred'])} | |"]
    lines += [f"| planted: {KNOWN[name]} | {percent(share)} | {span(low, high)} |"
              for name, (share, low, high, _) in report["planted"].items()]
    if "grades" in report:
        ratio, error = report["grades"]["ratio"]
        around = "" if error is None else span(ratio - 1.96 * error, ratio + 1.96 * error)
        lines += [f"| quality: our mean grade {report['grades']['ours']:.2f} of their "
                  f"{report['grades']['theirs']:.2f} | {percent(ratio)} | {around} |",
                  f"| cases: our grade is the higher one | {percent(report['grades']['higher'])} | |"]
    return "\n".join([*lines, "", distrust(report)]).rstrip()


def distrust(report):
    """A sentence where the planted pairs say that these verdicts are worth little; else ""."""
    stray, itself = (report["planted"].get(name) for name in ("stray", "itself"))
    if stray and stray[1] <= 0.5:
        return (f"Do not trust this judge: of {stray[3]} planted pairs it preferred the answer to the question over "
                f"one to another question in {stray[0]:.0%}, which may be chance.")
    if itself and not itself[1] <= 0.5 <= itself[2]:
        return (f"This judge prefers a place: the first of two equal answers in {100 * itself[0]:.0f} of 100 cases. "
                "Shown in one order only, its verdicts would say more of the order than of the answers.")
    return ""


def main(argv=None):
    """Parse, judge, print the tables; a bad input is one line and exit code 2."""
    return end_well(run_judge, parser().parse_args(argv))


def parser():
    """The flags: the judge, the two whose answers it compares, and how the judge runs."""
    found = argparse.ArgumentParser(prog="run.py judge", description="Let a model compare the answers of two others.")
    found.add_argument("--model", required=True, metavar="PATH", help="the judge: a model folder or file")
    found.add_argument("--adapter", metavar="DIR", help="what sft or peft has learned over it")
    found.add_argument("--tokenizer", metavar="T", help="needed where the judge brings none")
    for flag in ("--ours", "--theirs"):
        found.add_argument(flag, required=True, metavar="PATH", help="a file of answers (.jsonl or .json: question and "
                           "answer, or prompt and response), or a model that answers --prompts")
    found.add_argument("--prompts", metavar="FILE", help="the questions, where a model is to answer them")
    found.add_argument("--out", required=True, metavar="DIR", help="report.md, report.json and verdicts.jsonl; the "
                       "same command goes on with what was interrupted")
    found.add_argument("--grade", action="store_true", help="also let it grade each answer alone, from 1 to 9")
    found.add_argument("--template", help=argparse.SUPPRESS)
    flags.add_number(found, "--max-new-tokens", Range(1, MOST), 256, help="of each answer that a model gives")
    flags.add_number(found, "--limit", Range(1, MOST), help="only the first N questions")
    flags.add_number(found, "--planted", Range(0, MOST), 50, help="pairs of each kind whose verdict is known, to try "
                     "the judge on")
    flags.add_number(found, "--batch-size", Range(1, 4096), 16, help="texts read at once")
    flags.add_bits(found)
    flags.add_kernels_flag(found)
    flags.add_device(found)
    found.set_defaults(resume=True)
    return found


@claims("judge", "ours", "theirs", "prompts", "model", run=True)
def run_judge(arguments):
    """Read or make the answers, load the judge, judge, write, print."""
    out = Path(arguments.out)
    work = out / "work"
    if (out / "report.json").exists():
        raise ValueError(f"{out} holds a finished comparison: choose another --out")
    found = open_model(arguments)  # what cannot be loaded is refused before anything is written
    for path in {arguments.ours, arguments.theirs}:
        if arguments.prompts and not is_file_of_answers(path):
            open_model(asked_of(arguments, path))
    pairs = read_or_make_pairs(arguments, work)
    model, tokenizer = load_from_args(arguments, found=found)
    use_kernels(model, arguments.kernels)
    if arguments.adapter:
        load_adapter(arguments.adapter, model)
    planted = planted_pairs(pairs[:arguments.planted]) if arguments.planted else {}
    for some in (pairs, *planted.values()):
        require_room(model, tokenizer, some)
    hold_settings(work / "settings.json", {
        "judge": fingerprint(model), "answers": zlib.crc32(repr(pairs).encode()), "planted": arguments.planted,
        "kernels": arguments.kernels, "device": arguments.device, "dtype": arguments.dtype, "grade": arguments.grade})
    margins, *known = (in_pieces(work, name, some, lambda part: preferences(
        model, tokenizer, both_orders(part), arguments.batch_size)) for name, some in [("verdicts", pairs),
                                                                                       *planted.items()])
    marks = in_pieces(work, "grades", pairs, lambda part: grades(model, tokenizer, [
        (question, answer) for question, *both in part for answer in both], arguments.batch_size)) \
        if arguments.grade else None
    write_report(out, pairs, margins, *report_of(arguments, pairs, margins, dict(zip(planted, known, strict=True)),
                                                 marks))
    print((out / "report.md").read_text(encoding="utf-8"), end="")
    return 0


def write_report(out, pairs, margins, report, verdicts):
    """verdicts.jsonl and report.md, then report.json, which says that all is there; the pieces go."""
    with atomic_write(out / "verdicts.jsonl", "w") as file:
        for i, ((question, ours, theirs), verdict) in enumerate(zip(pairs, verdicts, strict=True)):
            file.write(json.dumps({"question": question, "ours": ours, "theirs": theirs, "score": verdict.score,
                                   "ours_first": margins[2 * i], "theirs_first": margins[2 * i + 1]},
                                  ensure_ascii=False) + "\n")
    with atomic_write(out / "report.md", "w") as file:
        file.write(tables(report) + "\n")
    with atomic_write(out / "report.json", "w") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
    shutil.rmtree(out / "work", ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
