"""WordPiece (Schuster and Nakajima 2012; BERT, arXiv:1810.04805): a word is cut into its longest known beginning, then
the longest known beginning of the rest, and so on. Pieces inside a word are written with "##" in front.

Nobody published BERT's trainer. The score here is the one that is told of it, f(ab) / (f(a) f(b)), and beside it the
likelihood that a merge gains. (Hugging Face's trainer of this name joins the most frequent pair: it is BPE.)

Text is normalized first: control characters go, Chinese characters stand alone, letters lose case and accents. Words
end at spaces and around punctuation. So decoding gives the words that were encoded, and not the text around them.
"""

import json
import math
import os
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import regex

from minillama.system.files import atomic_write
from minillama.system.settings import check_known, flag, read_settings
from minillama.system.terminal import tqdm

from .added_tokens import AddedToken, Tokenizer
from .bpe import join_pair
from .token_settings import MAX_BYTES, added_tokens, read_token_settings
from .tokenizer_json import PARTS, file_bytes, fill_ends, unknown_part
from .word_counts import sources_of

INSIDE = "##"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_CHARACTERS = 100  # of a word; a longer one is [UNK]
CHINESE = regex.compile("[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
                        "\U0002b820-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]")
CONTROL_CHARACTER = regex.compile(r"(?V1)[\p{C}\ufffd--[\t\n\r]]")
WORD = regex.compile(r"[^\s\p{P}$+<=>^`|~]+|[\p{P}$+<=>^`|~]")  # BERT counts all signs of ASCII as punctuation


class BertRules(NamedTuple):
    """How text is normalized; strip_accents None: as `lowercase` says."""

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None
    lowercase: bool = True


UNCASED = BertRules()
SETTINGS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
            "tokenize_chinese_chars": "handle_chinese_chars"}  # of tokenizer_config.json


def split_words(text, rules=UNCASED):
    """The words and punctuation characters of a text, normalized by `rules`.

    >>> split_words("Caf\\u00e9 don't")
    ['cafe', 'don', "'", 't']
    """
    if rules.clean_text:
        text = CONTROL_CHARACTER.sub("", text)
    if rules.handle_chinese_chars:
        text = CHINESE.sub(r" \g<0> ", text)
    if rules.lowercase if rules.strip_accents is None else rules.strip_accents:
        text = regex.sub(r"\p{Mn}", "", unicodedata.normalize("NFD", text))
    if rules.lowercase:
        text = "".join(character.lower() for character in text)  # one by one: the last sigma of a word is as others
    return WORD.findall(text)


def longest_match(word, vocabulary):
    """The pieces of a word, the longest known beginning first; None where a rest has no known beginning.

    >>> longest_match("unhappy", {"un", "##hap", "##happy", "##p"})
    ['un', '##happy']
    """
    pieces, start = [], 0
    while start < len(word):
        front = INSIDE if start else ""
        end = next((end for end in range(len(word), start, -1) if front + word[start:end] in vocabulary), None)
        if end is None:
            return None
        pieces.append(front + word[start:end])
        start = end
    return pieces


def ratio_score(pair, left, right, total):
    """f(ab) / (f(a) f(b)), up to a factor how much more often b follows a than if pieces stood in random order; the
    logarithm is their pointwise mutual information. Pairs of rare pieces come first."""
    return pair / (left * right)


def gain_score(pair, left, right, total):
    """f(ab) log(f(ab) N / (f(a) f(b))), N pieces in all: nearly the log-likelihood that a merge gains. Frequent pairs
    come first."""
    return pair * math.log(pair * total / (left * right))


def symbols_of(word):
    """The single characters of a word as pieces: ["h", "##u", "##g"]."""
    return [*word[:1], *(INSIDE + character for character in word[1:])]


def wordpiece_merges(word_counts, score=ratio_score, least=1):
    """Yield merges (left, right) learnt from {word: count}: each joins the pair with the greatest score.

    Of equal scores the more frequent pair wins, then the one whose left, then whose right piece has the lower code
    points. least: pairs that occur less often are left alone.

    >>> merges = wordpiece_merges({"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5})
    >>> next(merges), next(merges)
    (('##g', '##s'), ('p', '##u'))
    """
    words, weights = [tuple(symbols_of(word)) for word in word_counts], list(word_counts.values())
    singles, pairs, places = Counter(), Counter(), defaultdict(set)

    def count(number, sign):
        for symbol in words[number]:
            singles[symbol] += sign * weights[number]
        for pair in pairwise(words[number]):
            pairs[pair] += sign * weights[number]
            places[pair].add(number)

    def order(pair):
        return -score(pairs[pair], singles[pair[0]], singles[pair[1]], total), -pairs[pair], pair

    for number in range(len(words)):
        count(number, 1)
    while frequent := [pair for pair, found in pairs.items() if found >= least]:
        total = singles.total()
        best = min(frequent, key=order)
        for number in places.pop(best):
            count(number, -1)
            words[number] = join_pair(words[number], best, piece_of(*best))
            count(number, 1)
        yield best


def piece_of(left, right):
    """The piece that two neighbours make."""
    return left + right.removeprefix(INSIDE)


def train_wordpiece(texts_or_files, vocab_size, rules=UNCASED, score=ratio_score, least=2, progress=False):
    """Train a WordPieceTokenizer, whose `save` writes a tokenizer.json.

    texts_or_files: as for `train_bpe`. vocab_size: `SPECIALS`, the characters, then joined pieces. least: how often a
    pair must occur; with 1 the ratio prefers what occurs once. ValueError for a size that is impossible.
    """
    counts = Counter()
    for source in sources_of(texts_or_files):
        source = Path(source).read_bytes() if isinstance(source, os.PathLike) else source
        counts.update(split_words(source if isinstance(source, str) else source.decode("utf-8", "replace"), rules))
    pieces = dict.fromkeys([*SPECIALS, *sorted({symbol for word in counts for symbol in symbols_of(word)})])
    fixed, merges = len(pieces), wordpiece_merges(counts, score, least)
    with tqdm(desc="merging", total=vocab_size, initial=fixed, unit="piece", disable=not progress) as bar:
        while len(pieces) < vocab_size and (best := next(merges, None)):
            pieces[piece_of(*best)] = None
            bar.update(len(pieces) - bar.n)
    if len(pieces) != vocab_size:
        most = f"to {len(pieces)}" if len(pieces) < vocab_size else "or more"
        raise ValueError(f"vocab_size {vocab_size} is impossible for this text: give {fixed} {most}")
    return WordPieceTokenizer({piece: index for index, piece in enumerate(pieces)}, rules)


class WordPieceTokenizer(Tokenizer):
    """BERT's tokenizer. ids: {piece: id}. Begin and end of a text are [CLS] and [SEP]; a word that cannot be cut is
    [UNK]. file: the bytes that `save` writes, a tokenizer.json if None. ValueError for a vocabulary without [UNK] or
    with an id that two pieces share."""

    ids_are_ranks = False  # as the byte-level tokenizers of files other than tiktoken's

    def __init__(self, ids, rules=UNCASED, file=None):
        self.ids, self.rules, self._file = ids, rules, file
        self._bytes = dict(zip(ids.values(), ids, strict=True))
        numbers = all(type(index) is int and 0 <= index < 1 << 31 for index in ids.values())
        if "[UNK]" not in ids or len(self._bytes) < len(ids) or not numbers:
            raise ValueError("a WordPiece vocabulary needs the piece [UNK], and a number of its own for each piece")
        self.vocab_size, self.unk_id, self.pad_id = max(self._bytes) + 1, ids["[UNK]"], ids.get("[PAD]")
        self.bos_id, self.eos_id = ids.get("[CLS]"), ids.get("[SEP]")
        self.added = {name: AddedToken(name, ids[name]) for name in SPECIALS if name in ids}

    def _vocabulary_id(self, name):
        return self.ids.get(name)

    def _encode_text(self, text, continues):
        return [index for word in split_words(text, self.rules) for index in self._word_ids(word)]

    def _word_ids(self, word):
        pieces = longest_match(word, self.ids) if len(word) <= MAX_CHARACTERS else None
        return [self.ids[piece] for piece in pieces or ["[UNK]"]]

    def id_to_piece(self, index):
        """The piece of an id, "" for a row of the model without one; ValueError for one that is out of range."""
        self._check_id(index)
        return self._by_id[index].text if index in self._by_id else self._bytes.get(index, "")

    def decoder(self, show_special=False):
        """An incremental decoder: `push(id)` returns the text of this id, `flush()` nothing."""
        return WordPieceDecoder(self, show_special)

    def save(self, path):
        """Write the file as it was read, or a tokenizer.json."""
        with atomic_write(path) as file:
            file.write(self._file or wordpiece_json(self))


class WordPieceDecoder:
    """Pieces with spaces between them, but none before what stands inside a word."""

    def __init__(self, tokenizer, show_special=False):
        self._tokenizer, self._show_special, self._space = tokenizer, show_special, ""

    def push(self, index):
        """The text of an id."""
        piece, added = self._tokenizer.id_to_piece(index), self._tokenizer._by_id.get(index)
        if not piece or added and added.special and piece != "[UNK]" and not self._show_special:
            return ""
        space, self._space = self._space, " "
        return piece.removeprefix(INSIDE) if piece.startswith(INSIDE) else space + piece

    def flush(self):
        """Nothing is held back."""
        return ""


def wordpiece_json(tokenizer):
    """The bytes of a tokenizer.json for a `WordPieceTokenizer`."""
    normalizer = {"type": "BertNormalizer", **tokenizer.rules._asdict()}
    return file_bytes(tokenizer, {"vocab": tokenizer.ids}, "WordPiece", **PARTS["of BERT"], normalizer=normalizer)


def looks_like_wordpiece(data):
    """Whether bytes are a vocab.txt, in which [UNK] is a line, or a tokenizer.json of WordPiece type."""
    return b"[UNK]" in data.splitlines() or regex.search(rb'"type"\s*:\s*"WordPiece"', data) is not None


def read_wordpiece(data, folder):
    """The tokenizer of a vocab.txt or tokenizer.json. Letters lose their case as the file says, or do_lower_case in
    tokenizer_config.json beside it, or else if no piece has a capital. ValueError for a damaged file, and for
    settings that BERT does not have."""
    path, is_json = Path(folder) / "tokenizer_config.json", data.lstrip()[:1] == b"{"
    ids, content, rules = _read_json(data) if is_json else _read_lines(data)
    config = read_settings(path, MAX_BYTES) if path.exists() else {}
    given = {name: flag(config, key, path, getattr(rules, name)) for key, name in SETTINGS.items()}
    tokenizer = WordPieceTokenizer(ids, rules._replace(**given), data)
    added = added_tokens(content.get("added_tokens", []), "tokenizer.json")
    settings = read_token_settings(folder, added, "tokenizer_config.json of BERT")
    return tokenizer.obey(fill_ends(settings, content, tokenizer) if is_json else settings)


def _read_lines(data):
    """({piece: id}, nothing else, rules) of a vocab.txt."""
    try:
        pieces = [line.rstrip("\r") for line in data.decode("utf-8").removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"the vocabulary is not UTF-8 ({error.reason}, byte {error.start}): fetch it again") from None
    for piece, count in Counter(pieces).items():
        if not piece or count > 1:
            raise ValueError(f"the line {piece!r:.40} of the vocabulary is empty or stands twice: the file is damaged")
    uncased = all(piece == piece.lower() or piece[0] == "[" for piece in pieces)
    return {piece: index for index, piece in enumerate(pieces)}, {}, BertRules(lowercase=uncased)


def _read_json(data):
    """({piece: id}, content, rules) of a tokenizer.json, of which all but the rules must be as BERT has it."""
    try:
        content = json.loads(data)
        given = {**content, "model": {name: value for name, value in content["model"].items() if name != "vocab"}}
        ids, rules = dict(content["model"]["vocab"].items()), dict(content["normalizer"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"no tokenizer.json of BERT, or damaged ({type(error).__name__}: {error!s:.80})") from None
    check_known(content, "tokenizer.json", "tokenizer.json")
    for name, part in {"model": PARTS["WordPiece"], **PARTS["of BERT"]}.items():
        if given.get(name) not in (part, {**part, "cleanup": True}):
            raise unknown_part(given.get(name), f"has another {name} than BERT's")
    if rules.pop("type", None) != "BertNormalizer" or rules.keys() != set(BertRules._fields) or not all(
            type(value) is bool or (name, value) == ("strip_accents", None) for name, value in rules.items()):
        raise unknown_part(content["normalizer"], "normalizes a text by")
    return ids, content, BertRules(**rules)
