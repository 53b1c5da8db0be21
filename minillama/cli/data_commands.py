"""The commands that prepare training: `filter` for instructions, `tokenizer extend` for another language."""

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


def add_extend(actions):
    """tokenizer extend --model PATH [--add T.model] [--special-tokens TEXT ...] --out DST [--split-digits]"""
    extend = command(actions, "extend", run_extend, "add the pieces of another tokenizer, as Chinese-LLaMA did")
    extend.add_argument("--model", required=True, metavar="PATH",
                        help="a BPE tokenizer (SentencePiece's or byte-level), or a model folder that holds one")
    extend.add_argument("--add", metavar="T.model", help="a SentencePiece tokenizer, unigram too, or a byte-level one")
    extend.add_argument("--special-tokens", nargs="+", default=[], metavar="TEXT", help="such as a chat's marks")
    extend.add_argument("--out", required=True, metavar="DST",
                        help="a tokenizer; a model folder where --model is one, with rows for the new pieces")
    extend.add_argument("--split-digits", action=argparse.BooleanOptionalAction, default=False,
                        help="leave out pieces with a digit in company, so that each digit stays a token")


@claims("tokenizer extend", "model", "add")
def run_extend(arguments):
    """The merged vocabulary (`tokenizer.extend`), and rows for it (`train.vocabulary.grow_vocabulary`)."""
    from minillama.checkpoint import load_model
    from minillama.tokenizer import load_tokenizer
    from minillama.tokenizer.extend import extend_tokenizer, joins_digits, pieces_of

    if not (arguments.add or arguments.special_tokens):
        raise ValueError("nothing to add: give --add T.model, --special-tokens TEXT, or both")
    source, out = Path(arguments.model), Path(arguments.out)
    pieces = pieces_of(Path(arguments.add)) if arguments.add else []
    model, old = load_model(source) if source.is_dir() else (None, load_tokenizer(source))
    new = extend_tokenizer(old, pieces, arguments.split_digits, arguments.special_tokens)
    texts = map(new.id_to_piece, range(old.vocab_size, new.vocab_size - len(arguments.special_tokens)))
    digits = sum(joins_digits(text) for text in texts if "\\x" not in text)  # parts of characters are shown so
    note = f"; {digits} hold digits in company (--split-digits leaves them out)" if digits else ""
    note += f"; special: {' '.join(arguments.special_tokens)}" if arguments.special_tokens else ""
    if model is None:
        new.save(out)
    else:
        from minillama.checkpoint.convert import save_with_tokenizer
        from minillama.system.files import atomic_folder
        from minillama.train.vocabulary import grow_vocabulary

        grow_vocabulary(model, max(new.vocab_size, model.config.vocab_size))
        with atomic_folder(out) as folder:
            save_with_tokenizer(folder, model, new)
    print(f"{out}: {old.vocab_size} pieces and {new.vocab_size - old.vocab_size} new ones of {len(pieces)} make "
          f"{new.vocab_size}{note}", file=sys.stderr)


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
