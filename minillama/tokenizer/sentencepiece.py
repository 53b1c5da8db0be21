"""SentencePiece's .model file (LLaMA 1 and 2, Mistral) and the tokenizer made from it.

The file is a protobuf message: pieces (text, score, kind), a trainer_spec and a normalizer_spec
(google/sentencepiece, src/sentencepiece_model.proto). Ordinary text never becomes a control token: `<s>` typed by a
user is text.
"""

import codecs
import struct
from typing import NamedTuple

from minillama.system.files import atomic_write

from .added_tokens import AddedToken, Tokenizer
from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, BpeEncoder
from .character_map import CharacterMap
from .characters_and_words import CharacterEncoder, WordEncoder
from .compiled import CompiledEncoder, choose_backend
from .protobuf import BYTES, FIXED32, VARINT, int32_of, read_fields, write_fields
from .unigram import UnigramEncoder
from .word_counts import EACH_BYTE, SPACE

ENCODERS = {"unigram": UnigramEncoder, "word": WordEncoder, "char": CharacterEncoder}  # bpe: by its backend
MODEL_TYPES = {"unigram": 1, "bpe": 2, "word": 3, "char": 4}
MAX_PIECE_BYTES = 8000  # SentencePiece's own limit
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]


class Piece(NamedTuple):
    """One row of the vocabulary."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


class Rules(NamedTuple):
    """How text is normalised before and after matching."""

    byte_fallback: bool = True
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False
    model_type: str = "bpe"
    character_map: CharacterMap | None = None


def _last(fields, number, wire, default):
    """The value of a field; the last one counts, one with another wire type is unknown, an absent one defaults."""
    return next((value for n, w, value in reversed(fields) if (n, w) == (number, wire)), default)


def _text(fields, number, default):
    """A string field; an empty one counts as absent, as in SentencePiece."""
    try:
        return _last(fields, number, BYTES, b"").decode("utf-8") or default
    except UnicodeDecodeError as error:
        raise ValueError(f"field {number} is not UTF-8 ({error.reason}): not a SentencePiece model") from None


def _row_fields(data):
    """(text, score, kind) of one piece as stored; a row as SentencePiece writes it is read without looking further."""
    end = data[1] + 2 if len(data) > 1 and data[0] == 0x0A and data[1] < 0x80 else len(data)
    if len(data) == end + 5 and data[end] == 0x15:
        return data[2:end], data[end + 1 :], NORMAL
    if len(data) == end + 7 and data[end] == 0x15 and data[end + 5] == 0x18 and data[end + 6] < 0x80:
        return data[2:end], data[end + 1 : end + 5], data[end + 6]
    fields = {(number, wire): value for number, wire, value in read_fields(data)}  # of equals the last one counts
    return fields.get((1, BYTES), b""), fields.get((2, FIXED32), bytes(4)), int32_of(fields.get((3, VARINT), NORMAL))


def _read_piece(data, index, byte_fallback):
    text, score, kind = _row_fields(data)
    if not text or len(text) >= MAX_PIECE_BYTES:
        raise ValueError(f"piece {index} has {len(text)} bytes: 1 to {MAX_PIECE_BYTES - 1} are allowed")
    try:
        text = text.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"piece {index} ({text!r}) is not UTF-8: not a SentencePiece model") from None
    if text == "\0" and byte_fallback:  # some converters add this piece; SentencePiece 0.2.3 makes it unused too
        kind = UNUSED
    return Piece(text, struct.unpack("<f", score)[0], kind if 1 <= kind <= 6 else NORMAL)


def _read_rules(trainer, normalizer):
    """Check that the model is of a form we encode, and return its rules. proto2 defaults where a field is absent."""
    number = int32_of(_last(trainer, 3, VARINT, 1))
    kind = next((name for name, known in MODEL_TYPES.items() if known == number), None)
    if kind is None:
        raise ValueError(f"the model is of type {number}: only {', '.join(MODEL_TYPES)} are known")
    table = _last(normalizer, 2, BYTES, b"")
    return Rules(*(bool(_last(spec, number, VARINT, default)) for spec, number, default in (
        (trainer, 35, 0), (normalizer, 3, 1), (normalizer, 4, 1), (normalizer, 5, 1), (trainer, 24, 0))),
        kind, CharacterMap(table) if table else None)


def _check_pieces(pieces, byte_fallback):
    """The same demands SentencePiece makes: unique pieces, one unknown, the 256 bytes or none."""
    seen = {}
    for index, (text, _, kind) in enumerate(pieces):
        if "\0" in text and not (text == "\0" and kind == UNUSED):
            raise ValueError(f"piece {index} ({text!r}) holds a NUL character")
        if text in seen and text != "\0":
            raise ValueError(f"piece {text!r} stands twice in the vocabulary, as {seen[text]} and {index}")
        seen[text] = index
        if kind == BYTE and (text not in BYTE_PIECES or not byte_fallback):
            raise ValueError(f"piece {index} ({text!r}) is a byte piece: it must be one of <0x00> to <0xFF>, "
                             "and the trainer_spec must say byte_fallback")
    unknown = [index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    if len(unknown) > 1 or not (unknown or byte_fallback):
        raise ValueError(f"the vocabulary has {len(unknown)} unknown pieces: exactly one is needed")
    if byte_fallback and sum(piece.kind == BYTE for piece in pieces) != 256:
        raise ValueError("byte_fallback needs the 256 pieces <0x00> to <0xFF>; some are missing")
    return unknown[0] if unknown else None


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer with LLaMA's behaviour, made from the bytes of a .model file of type bpe, unigram, char or word.

    encode("Hello") gives the ids SentencePiece gives; `bos` and `eos` add their tokens. Ids are int; errors are
    ValueError (a damaged model, an id out of range, a lone surrogate) and TypeError. `backend`: "python" or "cpp",
    None for `default_backend()`; the ids are the same.
    """

    def __init__(self, model, training_report=None, backend=None):
        fields = read_fields(model)
        rows = [value for number, wire, value in fields if (number, wire) == (1, BYTES)]
        others = [field for field in fields if field[0] != 1]
        trainer, normalizer, denormalizer = (  # of a nested message several are one, put one after the other
            read_fields(b"".join(value for n, w, value in others if (n, w) == (number, BYTES))) for number in (2, 3, 5))
        if _last(denormalizer, 2, BYTES, b""):
            raise ValueError("the model has a denormalizer with a precompiled_charsmap: not supported")
        self.model, self.training_report, self._asked = bytes(model), training_report, backend
        self.backend = choose_backend(backend)
        self.rules = _read_rules(trainer, normalizer)
        self.pieces = [_read_piece(row, index, self.rules.byte_fallback) for index, row in enumerate(rows)]
        self.unk_id = _check_pieces(self.pieces, self.rules.byte_fallback)
        self._vocabulary, self.vocab_size = tuple(self.pieces), len(self.pieces)
        self._ids = {piece.text: index for index, piece in enumerate(self.pieces)}
        self.bos_id, self.eos_id, self.pad_id = (
            self._control_id(_text(trainer, number, default))
            for number, default in ((46, "<s>"), (47, "</s>"), (48, "<pad>")))
        has_surface = any(field[:2] == (44, BYTES) for field in trainer)
        self.unk_surface = _text(trainer, 44, "") if has_surface else " \u2047 "
        self._bytes = {i: bytes([int(p.text[3:5], 16)]) for i, p in enumerate(self.pieces) if p.kind == BYTE}
        self.added = {p.text: AddedToken(p.text, i) for i, p in enumerate(self.pieces) if p.kind == CONTROL}
        self.prefix = "sentencepiece" if self.rules.add_dummy_prefix else "never"
        self._encoders = {}

    def puts_space(self, text, continues=False):
        """Whether a space is put in front of a text, or of one behind an added token (`TokenSettings.prefix`)."""
        wanted = self.prefix == "always" or self.prefix == "first" and not continues
        return self.prefix == "sentencepiece" or wanted and not text.startswith((" ", SPACE))

    def encoder_of(self, prefix):
        """The encoder of ordinary text, with or without a space put in front."""
        if prefix not in self._encoders:
            rules, unk_id = self.rules._replace(add_dummy_prefix=prefix), -1 if self.unk_id is None else self.unk_id
            of_bpe = CompiledEncoder if self.backend == "cpp" else BpeEncoder
            self._encoders[prefix] = ENCODERS.get(rules.model_type, of_bpe)(self._vocabulary, unk_id, rules)
        return self._encoders[prefix]

    def save(self, path):
        """Write the .model file, byte for byte as it was read."""
        with atomic_write(path) as file:
            file.write(self.model)

    def _control_id(self, text):
        index = self._ids.get(text)
        return index if index is not None and self.pieces[index].kind == CONTROL else None

    def _encode_text(self, text, continues):
        return self.encoder_of(self.puts_space(text, continues)).encode(text)

    def _vocabulary_id(self, name):
        return self._ids.get(name)

    def _add(self, token):
        super()._add(token)
        self.pieces += [Piece("", 0.0, UNUSED)] * (self.vocab_size - len(self.pieces))  # rows without a token
        known = self.pieces[token.id]
        if known.kind not in (BYTE, UNKNOWN):
            self.pieces[token.id] = Piece(token.text, known.score, CONTROL if token.special else USER_DEFINED)

    def decoder(self, show_special=False, space_in_front=None):
        """An incremental decoder: `push(id)` returns the text that is certain so far, `flush()` the rest.
        space_in_front: whether `encode` put one there; None: as it does in a text of its own."""
        return SentencePieceDecoder(self, show_special, space_in_front)

    def id_to_piece(self, index):
        """The vocabulary's string of an id, e.g. "▁the" or "<0x0A>"; "" for a row of the model without a token."""
        return self.piece(index).text

    def piece(self, index):
        """The `Piece` of an id; ValueError for one that is out of range."""
        self._check_id(index)
        return self.pieces[index] if index < self.vocab_size else Piece("", 0.0, UNUSED)

    def __reduce__(self):
        own = {**self.__dict__, "_encoders": {}}
        return SentencePieceTokenizer, (self.model, self.training_report, self._asked), own


class SentencePieceDecoder:
    """Decoding one id at a time; never shows half a character.

    The pushes and the flush joined are what `decode` gives: the first token loses its leading space (it stems from
    the dummy prefix), byte tokens wait until their character is whole or certainly broken.
    """

    def __init__(self, tokenizer, show_special=False, space_in_front=None):
        self._tokenizer, self._show_special, rules = tokenizer, show_special, tokenizer.rules
        self._utf8 = codecs.getincrementaldecoder("utf-8")(EACH_BYTE)
        spaced = tokenizer.prefix != "never" if space_in_front is None else space_in_front
        self._at_start = spaced or rules.remove_extra_whitespaces

    def push(self, index):
        """The text that this id completes, maybe empty."""
        tokenizer = self._tokenizer
        text, _, kind = tokenizer.piece(index)
        if kind == BYTE:
            shown = self._utf8.decode(tokenizer._bytes[index])
            self._at_start = self._at_start and not shown
            return shown
        shown = self.flush()
        if kind == CONTROL and not self._show_special:
            return shown
        eaten = self._at_start and text.startswith(SPACE)
        if kind == UNKNOWN:
            shown += tokenizer.unk_surface
        else:
            shown += text[eaten:].replace(SPACE, " ")
        if shown or (eaten and not tokenizer.rules.remove_extra_whitespaces):
            self._at_start = False
        return shown

    def flush(self):
        """What was held back: bytes that wait for the rest of their character, each as one U+FFFD."""
        shown = self._utf8.decode(b"", True)
        self._at_start = self._at_start and not shown
        return shown


def _piece_field(piece):
    fields = [(1, BYTES, piece.text.encode()), (2, FIXED32, struct.pack("<f", piece.score)), (3, VARINT, piece.kind)]
    return 1, BYTES, write_fields(fields if piece.kind != NORMAL else fields[:2])


def model_bytes(pieces, coverage=0.99995, split_digits=True, byte_fallback=True, prefix=True, model_type="bpe"):
    """A .model file with these pieces and LLaMA's trainer and normalizer options; model_type: of `MODEL_TYPES`."""
    trainer = [(3, VARINT, MODEL_TYPES[model_type]), (4, VARINT, len(pieces)),
               (10, FIXED32, struct.pack("<f", coverage)), (25, VARINT, int(split_digits)), (26, VARINT, 1)]
    trainer += [(31, BYTES, piece.text.encode()) for piece in pieces if piece.kind == USER_DEFINED]
    trainer += [(35, VARINT, int(byte_fallback))]
    normalizer = [(1, BYTES, b"identity"), (2, BYTES, b""), (3, VARINT, int(prefix)), (4, VARINT, 0), (5, VARINT, 1)]
    return write_fields([*map(_piece_field, pieces), (2, BYTES, write_fields(trainer)),
                         (3, BYTES, write_fields(normalizer))])


def append_pieces(model, pieces):
    """The .model bytes with more pieces at the end of the vocabulary; all other fields are kept as they are."""
    fields = read_fields(model)
    end = max((place + 1 for place, field in enumerate(fields) if field[:2] == (1, BYTES)), default=0)
    return write_fields(fields[:end] + [_piece_field(piece) for piece in pieces] + fields[end:])
