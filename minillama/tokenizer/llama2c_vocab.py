"""llama2.c's `tokenizer.bin`: an int32 with the longest piece's bytes, then score, length and bytes of each piece.

It is a SentencePiece vocabulary with the kinds left out: U+2581 is already a space, ids 0, 1 and 2 are unknown, begin
and end, and <0x00> to <0xFF> are bytes. Source: tokenizer.py of karpathy/llama2.c.
"""

import struct

from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN
from .character_map import require_plain_bpe
from .sentencepiece import BYTE_PIECES, Piece, SentencePieceTokenizer, model_bytes
from .word_counts import SPACE

MARKS = {1: "\n<s>\n", 2: "\n</s>\n"}  # run.c prints pieces as they are, so its exporter dressed these up


def _records(data):
    """[(score, bytes)], or None if the data is not a row of records that ends where the data ends."""
    if len(data) < 4:
        return None
    longest, at, records = struct.unpack_from("<i", data)[0], 4, []
    while at < len(data):
        if len(data) - at < 8:
            return None
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 < length <= min(longest, len(data) - at - 8):
            return None
        records.append((score, data[at + 8:at + 8 + length]))
        at += 8 + length
    return records if len(records) > 3 and max(len(piece) for _, piece in records) == longest else None


def looks_like_llama2c_vocab(data):
    """Whether the records fill the data to the last byte: the form has no mark of its own."""
    return _records(data) is not None


def read_llama2c_vocab(data):
    """The tokenizer in the bytes of a tokenizer.bin. ValueError for damaged data."""
    records = _records(data)
    if records is None:
        raise ValueError("not a llama2.c tokenizer.bin, or cut short: fetch it again")
    pieces = []
    for index, (score, raw) in enumerate(records):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"piece {index} ({raw[:40]!r}) is not UTF-8: not a llama2.c tokenizer.bin") from None
        kind = {0: UNKNOWN, 1: CONTROL, 2: CONTROL}.get(index, BYTE if text in BYTE_PIECES else NORMAL)
        text = text.strip("\n") if text == MARKS.get(index) else text
        pieces.append(Piece(text.replace(" ", SPACE), score, kind))
    has_bytes = sum(piece.kind == BYTE for piece in pieces) == 256
    return SentencePieceTokenizer(model_bytes(pieces, byte_fallback=has_bytes))


def llama2c_vocab(tokenizer):
    """A `SentencePieceTokenizer` as the bytes of tokenizer.bin. ValueError unless unknown, begin, end are 0, 1, 2."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError(f"llama2.c's tokenizer.bin holds SentencePiece vocabularies, not a {tokenizer!r}")
    require_plain_bpe(tokenizer.rules, "llama2.c's tokenizer.bin")
    if (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) != (0, 1, 2):
        raise ValueError(f"unknown, begin and end have the ids {tokenizer.unk_id}, {tokenizer.bos_id} and "
                         f"{tokenizer.eos_id}: llama2.c has them fixed at 0, 1 and 2")
    texts = [MARKS.get(index, piece.text.replace(SPACE, " ")).encode() for index, piece in enumerate(tokenizer.pieces)]
    return struct.pack("<i", max(map(len, texts))) + b"".join(
        struct.pack("<fi", piece.score, len(text)) + text for piece, text in zip(tokenizer.pieces, texts, strict=True))
