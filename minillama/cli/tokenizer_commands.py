"""The commands that train a tokenizer and use one."""

import argparse
import json
import sys
import warnings
from pathlib import Path

from minillama.cli.flags import actions, add_number, command, spelled_as_flags
from minillama.config_checks import Range
from minillama.corpus.text_files import check_texts, read_documents
from minillama.system.claim import claims
from minillama.tokenizer import load_tokenizer
from minillama.tokenizer.byte_bpe_training import PATTERNS, train_byte_bpe
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.wordpiece import train_wordpiece


def add_tokenizer(commands):
    """tokenizer train, encode, decode, extend."""
    tokenizer = actions(commands, "tokenizer", "train a tokenizer, or use one")
    train = command(tokenizer, "train", run_tokenizer_train, "learn a vocabulary from text")
    train.add_argument("--text", nargs="+", required=True, metavar="FILE", help="text files or folders")
    add_number(train, "--vocab-size", Range(1, 1 << 30), required=True, help="pieces, from some 300 on")
    add_number(train, "--max-line-bytes", Range(10, 1 << 30), default=4192, help="longer lines are skipped, and told")
    train.add_argument("--type", choices=("bpe", "unigram", "char", "word", "byte", "wordpiece"),
                       default="bpe", help="byte: byte-level BPE; it and wordpiece write tokenizer.json; default: bpe")
    train.add_argument("--pattern", choices=tuple(PATTERNS), help="how byte cuts words; default: llama3")
    add_number(train, "--character-coverage", Range(0.98, 1), default=0.99995, kind=float, help="share of the text's "
               "characters that become pieces")
    train.add_argument("--user-defined-symbols", nargs="+", default=[], metavar="TEXT", help="always one piece each")
    train.add_argument("--byte-fallback", action=argparse.BooleanOptionalAction, default=None, help="256 pieces for "
                       "bytes, or <unk>; default: for bpe and unigram")
    train.add_argument("--out", required=True, metavar="T.model")
    encode = command(tokenizer, "encode", run_tokenizer_encode, "JSON strings on stdin, JSON lists of ids on stdout")
    encode.add_argument("--bos", action="store_true", help="begin each list with the start-of-text id")
    encode.add_argument("--eos", action="store_true", help="end each list with the end-of-text id")
    decode = command(tokenizer, "decode", run_tokenizer_decode, "JSON lists of ids on stdin, JSON strings on stdout")
    for action in (encode, decode):
        action.add_argument("--model", required=True, metavar="T.model")
    add_extend(tokenizer)


@claims("tokenizer train", "text")
def run_tokenizer_train(arguments):
    """Learn a vocabulary and write it as a SentencePiece model (`train_sentencepiece`)."""
    check_texts(arguments.text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are in the report
        tokenizer = _train(arguments, read_documents(arguments.text))
    tokenizer.save(arguments.out)
    for note in getattr(getattr(tokenizer, "training_report", None), "notes", ()):
        print(spelled_as_flags(note, arguments), file=sys.stderr)
    print(f"{arguments.out}: {tokenizer.vocab_size} pieces", file=sys.stderr)


def _train(arguments, texts):
    """The tokenizer of the wanted type; ValueError for a flag that this type would ignore."""
    usual = {"max_line_bytes": 4192, "character_coverage": 0.99995, "user_defined_symbols": [], "byte_fallback": None}
    options = {name: getattr(arguments, name) for name in usual}
    ignored = [name for name in options if options[name] != usual[name] and arguments.type in ("byte", "wordpiece")]
    ignored += ["pattern"] if arguments.pattern and arguments.type != "byte" else []
    if ignored:
        raise ValueError(f"--type {arguments.type} has no --{ignored[0].replace('_', '-')}: leave it out")
    if arguments.type == "byte":
        return train_byte_bpe(texts, arguments.vocab_size, arguments.pattern or "llama3", progress=True)
    if arguments.type == "wordpiece":
        return train_wordpiece(texts, arguments.vocab_size, progress=True)
    return train_sentencepiece(texts, arguments.vocab_size, arguments.type, progress=True, **options)


def run_tokenizer_encode(arguments):
    """One JSON string a line in, one JSON list of ids a line out."""
    tokenizer = load_tokenizer(arguments.model)
    for text in _json_lines(str, "a JSON string"):
        print(json.dumps(tokenizer.encode(text, bos=arguments.bos, eos=arguments.eos)), flush=True)


def run_tokenizer_decode(arguments):
    """One JSON list of ids a line in, one JSON string a line out."""
    tokenizer = load_tokenizer(arguments.model)
    for ids in _json_lines(list, "a JSON list of ids"):
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ValueError(f"{json.dumps(ids)[:60]} is not a list of whole numbers")
        print(json.dumps(tokenizer.decode(ids), ensure_ascii=False), flush=True)


def _json_lines(kind, wanted):
    for number, line in enumerate(sys.stdin, 1):
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"line {number} of stdin is not {wanted} ({error}): give one JSON value a line") from None
        if not isinstance(value, kind):
            raise ValueError(f"line {number} of stdin is {type(value).__name__}, not {wanted}")
        yield value


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
