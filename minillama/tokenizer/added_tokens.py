"""Tokens beside a vocabulary, found in a text as a whole, and the base of all tokenizers, which handles them.

A special one (`<s>`, `<|im_end|>`) steers the model: it comes only on request, is not shown, and the same letters typed
by a user stay text. Another (`<think>`) is a word of the text: always found, and shown.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import regex


class AddedToken(NamedTuple):
    """lstrip, rstrip: it takes the white space before and behind it; single_word: no letter may touch it; normalized:
    it is looked for in what those that are not have left."""

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenSettings:
    """What files say of a tokenizer's tokens. Names for bos, eos and pad; "" for none; None where they say nothing.

    add_bos, add_eos: whether a text gets that token. ends: further ids at which generation stops. prefix: where
    SentencePiece's space comes in front: "never"; "sentencepiece": always; as the tokenizers library's Metaspace does
    it, unless there is one: "first" (where the text begins) or "always" (behind added tokens too). space: whether one
    is demanded at all. specials: tokens that are special, by their texts. notes: what the user is to be told.
    """

    added: tuple = ()
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    ends: frozenset = frozenset()
    chat_template: str | None = None
    prefix: str | None = None
    space: bool | None = None
    specials: tuple = ()
    notes: tuple = ()


def cut_at(text, tokens):
    """The text as a list of str and `AddedToken`, cut at these tokens as the tokenizers library does it: the longest
    of those that begin leftmost, whatever its flags then make of it."""
    by_text, parts, place = {token.text: token for token in tokens}, [], 0
    names = "|".join(map(regex.escape, sorted(by_text, key=len, reverse=True)))
    for match in regex.finditer(names, text) if names else ():
        token, (start, end) = by_text[match[0]], match.span()
        if token.single_word and regex.search(r"\w", text[max(start - 1, 0):start] + text[end:end + 1]):
            continue
        while token.lstrip and start and regex.match(r"\s", text[start - 1]):
            start -= 1
        end = regex.compile(r"\s*").match(text, end).end() if token.rstrip else end
        parts, place = [*parts, text[place:start], token], end
    return [part for part in [*parts, text[place:]] if part]


class Tokenizer:
    """What all tokenizers share. A subclass encodes ordinary text (`_encode_text`) and knows its vocabulary's strings
    (`_vocabulary_id`).

    add_bos, add_eos: what the model reads a text with. end_ids: where generation stops. n_rows: rows of the model's
    embedding, maybe more than tokens; the ids between stand for no text. chat_template: the model's own, in Jinja.
    """

    bos_id = eos_id = unk_id = pad_id = chat_template = None
    add_bos, add_eos, n_rows, prefix, notes = None, False, 0, None, ()
    added: dict = {}
    further_ends: frozenset[int] = frozenset()

    @property
    def special_tokens(self):
        """{name: id} of the special ones among the added tokens."""
        return {token.text: token.id for token in self.added.values() if token.special}

    @cached_property
    def _by_id(self):
        return {token.id: token for token in self.added.values()}

    @property
    def _words(self):
        return [token for token in self.added.values() if not token.special]

    @property
    def begins(self):
        """Whether a text for the model begins with bos: as its files say, else where there is a bos."""
        return self.bos_id is not None and self.add_bos is not False

    @property
    def end_ids(self):
        """The ids at which generation stops; bos too where each text begins with it."""
        return self.further_ends | {self.eos_id, self.bos_id if self.begins else None} - {None}

    def obey(self, settings):
        """Take over what files say (`TokenSettings`); ValueError for a token that the vocabulary contradicts."""
        for token in settings.added:
            self._add(token)
        for which in ("bos", "eos", "pad"):
            name = getattr(settings, which)
            if name is not None:
                setattr(self, f"{which}_id", self.id_named(name, f"the {which} token") if name else None)
        for special in settings.specials:
            held = self.added.get(special.text) or special._replace(id=self.id_named(special.text, "a special token"))
            self._add(held._replace(special=True))
        for which in ("add_bos", "add_eos", "chat_template", "prefix"):
            if getattr(settings, which) is not None:
                setattr(self, which, getattr(settings, which))
        puts_space = getattr(self, "prefix_space", self.prefix not in (None, "never"))
        if settings.space not in (None, puts_space):
            raise ValueError(f"add_prefix_space is {settings.space} in tokenizer_config.json, but the vocabulary's own "
                             f"rule is {puts_space}: remove the one that is not the model's")
        self.further_ends, self.notes = self.further_ends | settings.ends, (*self.notes, *settings.notes)
        return self

    def _add(self, token):
        known = self._vocabulary_id(token.text)
        if known not in (None, token.id) or known is None and (token.id in self._bytes or token.id == self.unk_id):
            where = f"{known} in the vocabulary" if known is not None else "the vocabulary has another of that id"
            raise ValueError(f"the added token {token.text!r} has the id {token.id}, and {where}: one of the two files "
                             "belongs to another tokenizer")
        holder = self.added.get(token.text) or self._by_id.get(token.id)
        if holder and (holder.text, holder.id) != (token.text, token.id):
            raise ValueError(f"the added tokens {holder.text!r} ({holder.id}) and {token.text!r} ({token.id}) "
                             "contradict each other: the files belong to different tokenizers")
        self.added[token.text] = self._by_id[token.id] = token
        self.vocab_size = max(self.vocab_size, token.id + 1)

    def id_named(self, name, what="the token"):
        """The id of an added token or of a string of the vocabulary; ValueError if there is none."""
        found = self.added[name].id if name in self.added else self._vocabulary_id(name)
        if found is None:
            raise ValueError(f"{what} is {name!r}, which is not in the vocabulary: name one that is, or add it to "
                             "added_tokens.json with its id")
        return found

    def encode(self, text, bos=False, eos=False, allowed_special=(), continues=False):
        """Text to ids, with the begin or end token if asked.

        The names of special tokens in the text are text, but for those in `allowed_special` (names, or "all"): pass
        them for text that you wrote, never for what a user typed. continues: the text stands behind a special token.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes a str, not {type(text).__name__}; decode bytes first")
        front = [self._special(self.bos_id, "begin")] if bos else []
        back = [self._special(self.eos_id, "end")] if eos else []
        parts = self.split_added(text, allowed_special)
        for place, part in enumerate(parts):
            front += [part.id] if isinstance(part, AddedToken) else self._encode_text(part, continues or place > 0)
        return front + back

    def encode_batch(self, texts, threads=1, **options):
        """`encode` of each text, by several threads: side by side in the compiled core, in turns in plain Python."""
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads is {threads!r}: give a whole number from 1 up")
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(partial(self.encode, **options), texts))

    def split_added(self, text, allowed_special=()):
        """The text as a list of str and `AddedToken`: cut at the added words and the special tokens allowed."""
        wanted = self._words
        if allowed_special:
            wanted = [*wanted, *map(self.added.get, self._allowed(allowed_special))]
        parts = [text]
        for normalized in (False, True):
            tokens = [token for token in wanted if token.normalized is normalized]
            parts = [piece for part in parts
                     for piece in ([part] if isinstance(part, AddedToken) else cut_at(part, tokens))]
        return parts or [""]

    def _allowed(self, names):
        known = self.special_tokens
        unknown = [name for name in names if name not in known] if names != "all" else []
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no special token of this vocabulary; "
                             f"the first of them are {list(known)[:5]}")
        return known if names == "all" else names

    @staticmethod
    def _special(index, what):
        if index is None:
            raise ValueError(f"this vocabulary has no {what} token: leave bos and eos False")
        return index

    def decode(self, ids, show_special=False):
        """Ids to text. Special tokens vanish unless they are to be shown; bytes of no character become U+FFFD."""
        decoder = self.decoder(show_special)
        return "".join([decoder.push(index) for index in ids]) + decoder.flush()

    def _check_id(self, index):
        if not 0 <= index < max(self.vocab_size, self.n_rows):
            raise ValueError(f"id {index} is out of range: the vocabulary has ids 0 to {self.vocab_size - 1}")

    def __repr__(self):
        return f"{type(self).__name__}({self.vocab_size} tokens)"
