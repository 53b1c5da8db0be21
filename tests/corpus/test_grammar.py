"""Laws of the choice grammar: entropy and probabilities are exact, and text and choices are one-to-one."""

import itertools
import math
import random
import re
from collections import Counter

import pytest
from mutants import Mutant

from minillama.corpus import GRAMMAR, count_shared, mixture, mixture_entropy_bits
from minillama.corpus.grammar import Document, Grammar

# Small enough to write out by hand: a weighted choice, a copied one, a nested one, one with two columns.
SMALL = {
    "who | she": [("Ann | she", 3), ("Bob | he", 1)],
    "does": [("sleeps", 1), ("eats {food} and {food}", 2), ("waits {number} days", 5)],
    "food": ["figs", ("pie", 3)],
    "number": ["1{digit}", "27", "3{digit}"],
    "digit": ["0", ("1", 4)],
}
START = "{who} {does}. {She} {does}{end}"
SMALL["end"] = [" again, {who}.", ", {she} {does}!"]


def by_hand():
    """Every document of SMALL with its probability, in plain loops that know nothing of the module."""
    doings = [("sleeps", 1 / 8), ("eats figs and figs", 2 / 8 * 1 / 4), ("eats pie and pie", 2 / 8 * 3 / 4),
              ("waits 27 days", 5 / 8 / 3)]
    doings += [(f"waits {tens}{digit} days", 5 / 8 / 3 * p) for tens, (digit, p) in
               itertools.product("13", (("0", 1 / 5), ("1", 4 / 5)))]
    for (who, she, p), (does, q) in itertools.product((("Ann", "she", 3 / 4), ("Bob", "he", 1 / 4)), doings):
        for end in (f" again, {who}.", f", {she} {does}!"):
            yield f"{who} {does}. {she.capitalize()} {does}{end}", p * q / 2


def test_a_slot_with_a_capital_begins_with_its_options_whose_first_letter_alone_is_large():
    grammar = Grammar({"animal": ["red hen", "old yak", "é"]}, "{Animal} sleeps.")
    assert grammar.openings("{Animal} sleeps.") == ("Red hen", "Old yak", "É")
    assert grammar.openings("{animal} sleeps.") == ("red hen", "old yak", "é")


def test_probabilities_equal_those_written_out_by_hand_and_sum_to_one():
    grammar = Grammar(SMALL, START)
    total = 0.0
    for text, p in by_hand():
        assert grammar.log2_probability(text) == pytest.approx(math.log2(p), abs=1e-12)
        total += 2 ** grammar.log2_probability(text)
    assert len({text for text, _ in by_hand()}) == 2 * 8 * 2
    assert total == pytest.approx(1, abs=1e-12)  # 32 terms of 1e-16 each


def test_entropy_equals_the_sum_over_all_documents():
    brute = -sum(p * math.log2(p) for _, p in by_hand())
    assert Grammar(SMALL, START).entropy_bits() == pytest.approx(brute, abs=1e-12)


def test_entropy_is_the_mean_of_minus_log2_p_over_samples():
    for grammar, n in ((Grammar(SMALL, START), 5000), (Grammar({"x": ["a", ("b", 9)]}, "{x}"), 5000)):
        bits = [document.bits for document in grammar.documents(random.Random(5), n)]
        mean = sum(bits) / n
        error = math.sqrt(sum((b - mean) ** 2 for b in bits) / n / n)
        assert abs(mean - grammar.entropy_bits()) < 4 * error  # a normal variable strays so far once in 16,000


def test_samples_occur_as_often_as_their_probability_says():
    n, expected = 20_000, dict(by_hand())
    counts = Counter(d.text for d in Grammar(SMALL, START).documents(random.Random(1), n))
    assert set(counts) <= set(expected)
    chi2 = sum((counts[text] - n * p) ** 2 / (n * p) for text, p in expected.items())
    assert chi2 < 31 + 5 * math.sqrt(2 * 31)  # mean and standard deviation of chi2 with 31 degrees of freedom


def test_a_sample_parses_to_its_own_choices_and_bits():
    grammar = Grammar(SMALL, START)
    rng = random.Random(2)
    for _ in range(200):
        drawn = grammar.sample(rng)
        assert grammar.parse(drawn.text) == drawn


def test_given_choices_are_free_and_conditionals_follow_the_chain_rule():
    grammar = Grammar(SMALL, START)
    given = grammar.parse("Bob", "{who}").chosen
    part = grammar.parse("He sleeps", "{She} {does}", given)
    assert part.bits == pytest.approx(3, abs=1e-12)
    assert grammar.entropy_bits("{who} {does}") == pytest.approx(
        grammar.entropy_bits("{who}") + grammar.entropy_bits("{does}", given), abs=1e-12)


@pytest.mark.parametrize(("text", "place"), [
    ("", "character 0"), ("Ann sleeps. She sleeps again, Ann", "character 33"),
    ("Ann sleeps. He sleeps again, Ann.", "character 12"), ("Ann eats figs and pie. She", "character 18"),
    ("Ann sleeps. She sleeps again, Ann. ", "the end at character 34"),
    ("Cat sleeps", "option of 'who' at character 0")])
def test_text_outside_the_language_is_refused_with_the_place(text, place):
    with pytest.raises(ValueError, match=place):
        Grammar(SMALL, START).log2_probability(text)


def test_a_refusal_quotes_as_many_letters_of_the_language_as_of_the_text_and_those_at_its_place():
    right = "It was the grey wolf of the cold northern mountains"
    grammar = Grammar({"end": ["!", "."]}, right + "{end}")
    for place in (0, 7, 20):
        wrong = right[:place] + "?" + right[place + 1:] + "."
        with pytest.raises(ValueError, match=f"at character {place}, got ") as refused:
            grammar.parse(wrong)
        expected, got = re.findall("'([^']*)'", str(refused.value))
        assert right[place:].startswith(expected) and wrong[place:].startswith(got)
        assert len(expected) == len(got) > 10


@pytest.mark.parametrize("rules", [
    {"x": ["owl", "owlet"]}, {"x": ["a", "a"]}, {"x": ["", "a"]}, {"x": ["the {y}", "the cat"], "y": ["dog", "hen"]},
    {"x": ["{y} a", "hens"], "y": ["dog", "hen"]}, {"x": ["{y}", "{z}"], "y": ["b", "c"], "z": ["d", "cd"]}])
def test_an_ambiguous_rule_is_refused(rules):
    with pytest.raises(ValueError, match="ambiguous"):
        Grammar(rules, "{x}")


@pytest.mark.parametrize(("rules", "start", "message"), [
    ({"x": ["a"]}, "{y}", "no rule fills the slot {y}"), ({"x | y": ["a | b", "c"]}, "{x}", "1 columns, not 2"),
    ({"x": ["a"], "z | x": ["a | b"]}, "{x}", "filled by two rules"), ({"x | y": ["a | b"]}, "{y}", "comes before")])
def test_a_mistaken_rule_is_refused(rules, start, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules, start).sample(random.Random(0))


def test_the_mixture_has_the_entropy_of_its_parts_and_one_bit_for_the_choice():
    from minillama.corpus import forum, stories

    parts = (stories.GRAMMAR.entropy_bits() + forum.GRAMMAR.entropy_bits()) / 2
    assert mixture_entropy_bits() == pytest.approx(1 + parts, abs=1e-9)
    story, thread = stories.documents(3, 1)[0], forum.documents(3, 1)[0]
    for document in (story, thread):
        assert GRAMMAR.log2_probability(document.text) == pytest.approx(-document.bits - 1, abs=1e-9)


def test_held_out_documents_are_drawn_apart_from_the_training_ones():
    train, held_out = mixture(0, 3000), mixture(0, 300, "held-out")
    assert train[:300] != held_out and train[:50] == mixture(0, 50)
    assert count_shared(train, held_out) <= 3  # about 2^-25 for a pair of forum documents, a quarter of 900,000 pairs
    assert count_shared(train, train[:7]) == 7 and count_shared([Document("a", 1)], [Document("b", 1)]) == 0
    with pytest.raises(ValueError, match="split 'test'"):
        mixture(0, 1, "test")


MODULE = "minillama.corpus.grammar"
MUTANTS = [
    Mutant(MODULE, "got {text[same:same + 20]!r}", "got {text[same:same + 12]!r}",
           test_a_refusal_quotes_as_many_letters_of_the_language_as_of_the_text_and_those_at_its_place),
    Mutant(MODULE, "rng.random() * choice.cumulative[-1]", "rng.random() * len(choice.cumulative)",
           test_samples_occur_as_often_as_their_probability_says),
    Mutant(MODULE, "if choice.is_plain:", "if True:", test_entropy_equals_the_sum_over_all_documents),
    Mutant(MODULE, "p * math.log2(p) for p in self.probabilities", "p * math.log(p) for p in self.probabilities",
           test_entropy_is_the_mean_of_minus_log2_p_over_samples),
    Mutant(MODULE, "weight / self.cumulative[-1]", "1 / len(pairs)",
           test_probabilities_equal_those_written_out_by_hand_and_sum_to_one),
    Mutant(MODULE, "if name not in (given or {})", "if name",
           test_given_choices_are_free_and_conditionals_follow_the_chain_rule),
    Mutant(MODULE, "if derivation.text != text:", "if False:",
           lambda: test_text_outside_the_language_is_refused_with_the_place(
               "Ann sleeps. She sleeps again, Ann. ", "the end at character 34")),
    Mutant(MODULE, "if long.startswith(short):", "if long == short:",
           lambda: test_an_ambiguous_rule_is_refused({"x": ["owl", "owlet"]})),
    Mutant("minillama.corpus", '{split} {seed}"', '{seed}"',
           test_held_out_documents_are_drawn_apart_from_the_training_ones),
]
