"""A tokenizer that replaces characters before it reads: `run.py tokenizer train ... --normalization MODEL`.

The rule, such as nmt_nfkc, is the one of another SentencePiece model (T5's, ALBERT's, XLNet's, Marian's, one of your
own): its table (`minillama.tokenizer.character_map` says how it is laid out) replaces characters of the text to learn
from, and goes into the new file, so that every reader of such files gives the same ids.
"""

import sys
from pathlib import Path

from minillama.cli import tokenizer_commands
from minillama.cli.command_line import main as minillama
from minillama.system.files import require_regular
from minillama.tokenizer.bpe_encoder import USER_DEFINED, own_pattern
from minillama.tokenizer.character_map import CharacterMap
from minillama.tokenizer.protobuf import read_fields, write_fields
from minillama.tokenizer.sentencepiece import MODEL_TYPES, SentencePieceTokenizer
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.word_counts import EACH_BYTE, blocks_of

FLAG = "--normalization"
BYTES = 2  # protobuf's wire type
RULES, NAME, TABLE = 3, 1, 2  # numbers of fields: a model's normalizer_spec; in it the rule's name and its table


def take_model(words):
    """(the file after --normalization, the other words)."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(FLAG + "=") else [word])]
    at = words.index(FLAG)
    if words[:2] != ["tokenizer", "train"]:
        raise ValueError(f"{FLAG} goes with tokenizer train, not with {' '.join(words[:2])}")
    if at + 1 == len(words) or words[at + 1].startswith("--"):
        raise ValueError(f"{FLAG} names no file: give a SentencePiece model whose rule is to be taken over")
    return words[at + 1], words[:at] + words[at + 2:]


def read_rule(path):
    """(name, table) of a SentencePiece model's rule; ValueError where it replaces nothing."""
    data = require_regular(Path(path)).read_bytes()
    try:
        SentencePieceTokenizer(data)
    except ValueError as error:
        raise ValueError(f"{FLAG} {path}: {error}") from None
    fields = [field for number, _, value in read_fields(data) if number == RULES for field in read_fields(value)]
    found = {number: value for number, wire, value in fields if wire == BYTES}
    if not found.get(TABLE):
        raise ValueError(f"{FLAG} {path}: that model replaces no characters; without {FLAG} none are replaced either")
    return found.get(NAME, b""), found[TABLE]


def replace_lines(texts_or_files, table, user_defined_symbols):
    """Yield the lines of the texts, replaced; strings of user-defined pieces stay."""
    character_map, rest = CharacterMap(table), b""
    own = own_pattern([(text, 0.0, USER_DEFINED) for text in user_defined_symbols])
    for block, is_last in blocks_of(texts_or_files):
        *lines, rest = (rest + block).split(b"\n")
        for line in [*lines, rest] if is_last else lines:
            yield character_map.replace(line.decode("utf-8", EACH_BYTE), own)
        rest = b"" if is_last else rest


def train_normalized(rule, texts_or_files, vocab_size, model_type, **options):
    """`train_sentencepiece` of the replaced text -> a tokenizer whose file holds the rule, (name, table)."""
    name, table = rule
    lines = replace_lines(texts_or_files, table, options.get("user_defined_symbols", ()))
    plain = train_sentencepiece(lines, vocab_size, model_type, **options)
    put = {NAME: name, TABLE: table}
    fields = [(number, wire, write_fields([(n, w, put.get(n, v)) for n, w, v in read_fields(value)])
               if number == RULES else value) for number, wire, value in read_fields(plain.model)]
    return SentencePieceTokenizer(write_fields(fields), plain.training_report)


def main(argv=None):
    """`tokenizer train` with a rule."""
    try:
        path, words = take_model(list(sys.argv[1:] if argv is None else argv))
        kind = words[words.index("--type") + 1] if "--type" in words[:-1] else "bpe"
        if kind not in MODEL_TYPES:
            raise ValueError(f"{FLAG} goes with SentencePiece's types, {', '.join(MODEL_TYPES)}, not with {kind}")
        rule = read_rule(path)
    except (OSError, ValueError) as error:
        print(f"minillama: {error}", file=sys.stderr)
        return 1
    plain = tokenizer_commands.train_sentencepiece
    tokenizer_commands.train_sentencepiece = lambda *given, **options: train_normalized(rule, *given, **options)
    try:
        return minillama(words)
    finally:
        tokenizer_commands.train_sentencepiece = plain


if __name__ == "__main__":
    sys.exit(main())
