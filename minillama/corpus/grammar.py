"""A grammar of weighted choices whose text and choices determine each other, so that its entropy is exact.

A rule names a choice and lists its options; `{slot}` in an option asks for another choice. The first mention of a
choice makes it, every later mention repeats it (that is how a name returns at the end of a story). One choice may
fill several slots, one per column: `"hero | she": ["Lily | she", "Tom | he"]`.

The entropy is exact for two reasons.

1. Chain rule (Cover & Thomas, Elements of Information Theory, theorem 2.5.1). Choices are drawn independently, so the
   choices behind a document have entropy H = sum over choices c of P(c is made) H(c), H(c) = -sum_i p_i log2 p_i.
2. Text and choices are one-to-one. Where two options meet, neither one's opening letters begin the other's (they form
   a prefix code; the constructor checks it). So two different choices write different letters, reading from left to
   right recovers every choice, and H(text) = H(choices): no model can need fewer bits per document on average.
"""

import math
import re
from bisect import bisect_right
from functools import cache
from itertools import accumulate
from os.path import commonprefix
from typing import NamedTuple

SLOT = re.compile(r"\{(\w+)\}")


class Document(NamedTuple):
    """A text and how much information it holds."""

    text: str
    bits: float  # -log2 of the text's probability


class Derivation(NamedTuple):
    """A text with the choices behind it."""

    text: str
    bits: float  # -log2 of the probability of the choices made here (those given are free)
    chosen: dict  # name of the choice -> index of its option


class Choice:
    """`key` names the slots ("hero | she"); an option is a text with as many columns, or (text, weight)."""

    def __init__(self, key, options):
        self.slots = key.split(" | ")
        self.name = self.slots[0]
        pairs = [(option, 1) if isinstance(option, str) else option for option in options]
        self.rows = [text.split(" | ") for text, _ in pairs]
        self.cumulative = list(accumulate(weight for _, weight in pairs))
        self.probabilities = [weight / self.cumulative[-1] for _, weight in pairs]
        self.entropy = -sum(p * math.log2(p) for p in self.probabilities)  # bits
        for row in self.rows:
            if len(row) != len(self.slots):
                raise ValueError(f"rule {key!r}: option {row} has {len(row)} columns, not {len(self.slots)}")
        self.is_plain = not any(SLOT.search(column) for row in self.rows for column in row)


class Grammar:
    """`rules`: {"choice" or "choice | slot | ...": [option, ...]}; `start`: the template of a whole document.

    >>> coin = Grammar({"side": ["heads", ("tails", 3)]}, start="It fell on {side}.")
    >>> round(coin.entropy_bits(), 4), coin.log2_probability("It fell on heads.")
    (0.8113, -2.0)
    """

    def __init__(self, rules, start):
        self.start, self.choices, self._slots, self._openings, self._parts = start, {}, {}, {}, {}
        for key, options in rules.items():
            choice = Choice(key, options)
            self.choices[choice.name] = choice
            for column, slot in enumerate(choice.slots):
                if slot in self._slots:
                    raise ValueError(f"slot {{{slot}}} is filled by two rules")
                self._slots[slot] = choice, column
        for choice in self.choices.values():
            self._check_prefix_code(choice)

    def _slot(self, name):
        """The choice and column behind a slot; `{She}` is `{she}` with a capital letter."""
        found = self._slots.get(name) or self._slots.get(name[0].lower() + name[1:])
        if found is None:
            raise ValueError(f"no rule fills the slot {{{name}}}")
        return found

    def openings(self, template):
        """The ways in which a template's text can begin: its letters up to the first slot, or that slot's openings."""
        if template not in self._openings:
            literal, *rest = SLOT.split(template, maxsplit=1)
            found = [literal]
            if not literal and rest:
                choice, column = self._slot(rest[0])
                found = [text for row in choice.rows for text in self.openings(row[column])]
                if rest[0] not in self._slots:
                    found = [text[:1].upper() + text[1:] for text in found]
            self._openings[template] = tuple(found)
        return self._openings[template]

    def _check_prefix_code(self, choice):
        """No option may open with the whole opening of another; sorted, such a pair would be neighbours."""
        texts = sorted(text for row in choice.rows for text in self.openings(row[0]))
        for short, long in zip(texts, texts[1:], strict=False):
            if long.startswith(short):
                raise ValueError(f"rule {choice.name!r} is ambiguous: the opening {short!r} begins {long!r}; "
                                 "move what they share in front of the choice")

    def _expand(self, template, text, chosen, choose):
        """`text` followed by the template's expansion; choices met for the first time are asked of `choose`."""
        if template not in self._parts:
            self._parts[template] = SLOT.split(template)  # letters, slot, letters, slot, ..., letters
        for i, part in enumerate(self._parts[template]):
            if i % 2 == 0:
                text += part
                continue
            choice, column = self._slot(part)
            if choice.name not in chosen:
                if part != choice.name:
                    raise ValueError(f"slot {{{part}}} comes before {{{choice.name}}}, which chooses it")
                chosen[choice.name] = choose(choice, text)
            begin = len(text)
            text = self._expand(choice.rows[chosen[choice.name]][column], text, chosen, choose)
            if part not in self._slots:
                text = text[:begin] + text[begin:begin + 1].upper() + text[begin + 1:]
        return text

    def _derive(self, choose, start, given):
        chosen = dict(given or {})
        text = self._expand(start or self.start, "", chosen, choose)
        made = [(self.choices[name], option) for name, option in chosen.items() if name not in (given or {})]
        return Derivation(text, -sum(math.log2(choice.probabilities[i]) for choice, i in made), chosen)

    def sample(self, rng, start=None, given=None):
        """Draw from `random.Random` (its `random()` alone, the method whose sequence Python guarantees for a seed)."""
        return self._derive(lambda choice, text: bisect_right(choice.cumulative, rng.random() * choice.cumulative[-1]),
                            start, given)

    def parse(self, text, start=None, given=None):
        """The one derivation of `text`; ValueError with the place of the first letter outside the language."""
        def choose(choice, written):
            if text.startswith(written):
                for i, row in enumerate(choice.rows):
                    if text.startswith(self.openings(row[0]), len(written)):
                        return i
            raise outside(written, f"an option of {choice.name!r}")

        def outside(written, expected):
            same = len(commonprefix([text, written]))
            expected = repr(written[same:same + 20]) if same < len(written) else expected
            return ValueError(f"not in the language: expected {expected} at character {same}, "
                              f"got {text[same:same + 20]!r}")

        derivation = self._derive(choose, start, given)
        if derivation.text != text:
            raise outside(derivation.text, "the end")
        return derivation

    def log2_probability(self, text, start=None, given=None):
        """log2 p(text), with no rounding but the floats'; ValueError for a text outside the language."""
        return -self.parse(text, start, given).bits

    def entropy_bits(self, start=None, given=None):
        """Expected -log2 p(text) in bits: the chain rule above, walking every way the choices can unfold."""
        @cache
        def expected(pending, made):
            if not pending:
                return 0.0
            (choice, column), rest, known = self._slot(pending[0]), pending[1:], dict(made)
            if choice.name in known:
                return expected(tuple(SLOT.findall(choice.rows[known[choice.name]][column])) + rest, made)
            if choice.is_plain:  # its options ask for nothing, so any one of them stands for all
                return choice.entropy + expected(rest, made | {(choice.name, 0)})
            return choice.entropy + sum(
                p * expected(tuple(SLOT.findall(row[0])) + rest, made | {(choice.name, i)})
                for i, (p, row) in enumerate(zip(choice.probabilities, choice.rows, strict=True)))

        return expected(tuple(SLOT.findall(start or self.start)), frozenset((given or {}).items()))

    def documents(self, rng, n):
        """`n` documents drawn from `rng`, each with its exact bits."""
        return [Document(*self.sample(rng)[:2]) for _ in range(n)]
