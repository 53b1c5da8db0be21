"""Byte-level BPE: the text is cut into words by a pattern, and the UTF-8 bytes of each word are joined pair by pair.

Every text has ids, since every byte has one. Llama 3 and GPT-2 work this way; they differ in the pattern and in what
ranks a pair: the id of the joined bytes (tiktoken), or its place in a list of merges (Hugging Face, GGUF).
The patterns speak of letters and numbers; `character_classes` says what counts as one.

Where the compiled core is built (csrc/cpu/byte_bpe.cpp) it cuts and joins; it gives the same ids.
"""

import codecs
import functools

import regex  # `re` knows no \p{L}

from minillama.system.files import atomic_write

from .added_tokens import AddedToken, Tokenizer
from .bpe import join_pairs, remember_words
from .character_classes import pin_classes, ranges
from .compiled import byte_encoder, choose_backend

LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SINGLE_DIGITS = r"\p{N}"
KNOWN_PATTERNS = (LLAMA3_WORDS, GPT2_WORDS, SINGLE_DIGITS)  # as in csrc/cpu/byte_bpe.h


def _byte_characters():
    """GPT-2's spelling of bytes as printable characters, for files that hold text: 0x20 becomes U+0120 and so on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def read_spelling(text):
    """The bytes that a vocabulary entry in GPT-2's spelling stands for; None if it is not in that spelling.

    >>> read_spelling("\\u0120the")
    b' the'
    """
    values = [CHARACTER_TO_BYTE.get(character) for character in text]
    return None if None in values else bytes(values)


def spell_bytes(token):
    """The inverse of `read_spelling`: bytes in GPT-2's spelling."""
    return "".join(map(BYTE_TO_CHARACTER.get, token))


class ByteBpeTokenizer(Tokenizer):
    """A byte-level BPE tokenizer.

    ids: {bytes: id}. specials: {name: id}, never found in a text unless asked for. words: the patterns that cut a
    text, each applied to what the one before left. merges: {(left, right): rank}, or None where a pair ranks by the
    id of the joined bytes. whole_words: a word that is in the vocabulary is one token without any joining.
    file: the bytes to write in `save`, or a function of the tokenizer that makes them. backend: "python" or "cpp", None
    for the default; a pattern that the compiled core does not know is Python's. ValueError for a vocabulary in which
    two entries share an id.
    """

    def __init__(self, ids, specials, words, merges=None, whole_words=True, bos=None, eos=None, pad=None, file=b"",
                 prefix_space=False, backend=None):
        self.added = {name: AddedToken(name, index) for name, index in specials.items()}
        self.ids = ids
        self._merges, self._file = merges, file
        self.ids_are_ranks = merges is None  # as in Llama 3's own file
        self.whole_words, self.prefix_space = whole_words, prefix_space
        self.words, self.backend = list(words), choose_backend(backend)
        self._bytes = {index: token for token, index in ids.items()}
        if len({*self._bytes, *self._by_id}) < len(ids) + len(specials):
            raise ValueError("two entries of the vocabulary share an id: the file is damaged")
        self.vocab_size = max([*self._bytes, *self._by_id], default=-1) + 1
        self.bos_id, self.eos_id, self.pad_id = (specials.get(name) for name in (bos, eos, pad))

    @functools.cached_property
    def _compiled(self):
        known = self.backend == "cpp" and all(pattern in KNOWN_PATTERNS for pattern in self.words)
        return byte_encoder(self, ranges(), map(KNOWN_PATTERNS.index, self.words)) if known else None

    @functools.cached_property
    def _patterns(self):
        return [regex.compile(pin_classes(pattern)) for pattern in self.words]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name not in ("_compiled", "_word_ids")}

    def _vocabulary_id(self, name):
        return self.ids.get(read_spelling(name) or name.encode())

    def _encode_text(self, text, continues):
        try:
            text.encode()
        except UnicodeEncodeError:  # halves of surrogate pairs: join those that fit, the rest become U+FFFD
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self.prefix_space and text and not text.startswith(" "):
            text = " " + text
        if self._compiled:
            return self._compiled.encode(text)
        return [index for word in self.split(text) for index in self._word_ids(word)]

    def split(self, text):
        """The words of a text, before any joining; put together they are the text."""
        if self._compiled:
            return self._compiled.split(text)
        pieces = [text] if text else []
        for pattern in self._patterns:
            pieces = [part for piece in pieces for part in _isolate(pattern, piece)]
        return pieces

    @functools.cached_property
    def _word_ids(self):
        return remember_words(lambda word: self._join(word.encode()))

    def _join(self, word):
        if self.whole_words and word in self.ids:
            return [self.ids[word]]
        parts = join_pairs([bytes([byte]) for byte in word], self._rank)
        missing = [part for part in parts if part not in self.ids]
        if missing:
            raise ValueError(f"this vocabulary has no token for the byte 0x{missing[0][0]:02X}: the text cannot be "
                             "said in it")
        return [self.ids[part] for part in parts]

    def _rank(self, left, right):
        return self.ids.get(left + right) if self._merges is None else self._merges.get((left, right))

    def merges(self):
        """Pairs of bytes in the order of their ranks. Where ids are the ranks, the pair that makes a token is what
        joining stops at one step before it; a token that no joining reaches has none."""
        if self._merges is not None:
            return sorted(self._merges, key=self._merges.get)
        pairs = []
        for token, index in sorted(self.ids.items(), key=lambda item: item[1]):
            def rank_below(left, right, index=index):
                rank = self.ids.get(left + right)
                return rank if rank is not None and rank < index else None

            parts = join_pairs([bytes([byte]) for byte in token], rank_below)
            pairs += [tuple(parts)] if len(parts) == 2 else []
        return pairs

    def decoder(self, show_special=False):
        """An incremental decoder: `push(id)` returns the text that is certain so far, `flush()` the rest."""
        return ByteDecoder(self, show_special)

    def id_to_piece(self, index):
        """The name of an added token, or the bytes of another as text, e.g. " the" or "\\xe2\\x96"."""
        token = self.token_bytes(index)
        return self._by_id[index].text if token is None else token.decode("utf-8", "backslashreplace")

    def token_bytes(self, index):
        """The bytes of an id: None for an added token, none for a row of the model without a token; ValueError for an
        id that is out of range."""
        if index in self._by_id:
            return None
        self._check_id(index)
        return self._bytes.get(index, b"")

    def save(self, path):
        """Write the tokenizer file, byte for byte as it was read if it came from a file of its own."""
        with atomic_write(path) as file:
            file.write(self._file(self) if callable(self._file) else self._file)


class ByteDecoder:
    """Decoding one id at a time; bytes wait until their character is whole or certainly broken."""

    def __init__(self, tokenizer, show_special=False):
        self._tokenizer, self._show_special = tokenizer, show_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index):
        """The text that this id completes, maybe empty."""
        token = self._tokenizer.token_bytes(index)
        if token is not None:
            return self._utf8.decode(token)
        added = self._tokenizer._by_id[index]
        return self.flush() + (added.text if self._show_special or not added.special else "")

    def flush(self):
        """What was held back."""
        shown = self._utf8.decode(b"", True)
        self._utf8.reset()
        return shown


def _isolate(pattern, text):
    """The matches of the pattern, and what lies between them, in order; `split` would add what its groups match."""
    place, parts = 0, []
    for match in pattern.finditer(text):
        parts += [text[place:match.start()], match[0]]
        place = match.end()
    return [part for part in [*parts, text[place:]] if part]
