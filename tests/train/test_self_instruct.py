"""The filter against rouge-score, against comparing with everything, and against slips planted for each reason."""

import random
from functools import partial
from itertools import combinations

import pytest
from mutants import Mutant
from procedural_teacher import MISHAPS, procedural_teacher, rouge_l, seed_tasks, self_instruct

from minillama.train import self_instruct as module
from minillama.train.self_instruct import (
    FilterRules,
    InstructionFilter,
    bits_of,
    common_length,
    words_of,
)

SEEDS = seed_tasks(40)


def a_text(rng, words=30):
    """Words of a small vocabulary, so that orders matter; capitals, marks, digits and letters beyond ASCII between."""
    parts = ["The", "cat", "sat", "on", "42", "mats", "caf\u00e9", "A", "b_c", "don't", "\u6a21\u578b", "--", "x", ""]
    return " ".join(rng.choice(parts) for _ in range(rng.randrange(words)))


def longest_common(a, b):
    """The textbook's table, in plain loops."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l_is_that_of_the_package_rouge_score():
    """1e-9 is far above their rounding: three divisions there, one here."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs rouge-score").RougeScorer(["rougeL"])
    rng = random.Random(0)
    pairs = [(a_text(rng, n), a_text(rng, n)) for n in (2, 5, 30, 66, 200) for _ in range(60)]
    pairs += [("", ""), ("", "a"), ("\u6a21\u578b", "\u6a21\u578b"), ("A-b C", "a b c"), ("\u0130x", "ix")]
    for a, b in pairs:
        assert rouge_l(a, b) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure, abs=1e-9), (a, b)
        assert rouge_l(a, b) == rouge_l(b, a)


def test_the_longest_common_subsequence_is_the_textbooks():
    rng = random.Random(1)
    for m in (0, 1, 2, 7, 63, 64, 65, 131):
        for n in (0, 1, 3, 64, 65, 97):
            a, b = [rng.choice("abcde") for _ in range(m)], [rng.choice("abcdef") for _ in range(n)]
            assert common_length(bits_of(a), m, b) == longest_common(a, b)


@pytest.mark.parametrize("least", [0.3, 0.7, 0.95, 1.0])
def test_the_nearest_text_is_the_one_that_comparing_with_all_finds(least):
    """Pools in which many are alike, some are equal, and some have no words."""
    rng = random.Random(2)
    vocabulary = [f"w{i}" for i in range(12)]
    pool = [[rng.choice(vocabulary[:4 + i % 9]) for _ in range(rng.randrange(12))] for i in range(300)]
    keeper = InstructionFilter(FilterRules(least, 1))
    for words in pool:
        keeper.add(" ".join(words))
    hits = 0
    for _ in range(60):
        words = [rng.choice(vocabulary) for _ in range(rng.randrange(9))]
        scores = [2 * longest_common(words, other) / (len(words) + len(other)) if words and other else 0.0
                  for other in pool]
        best = max(scores)
        wanted = (best, scores.index(best)) if best >= least else (0.0, None)
        assert keeper.nearest(" ".join(words)) == wanted
        hits += best >= least
    assert hits > 5


def test_few_of_a_large_pool_are_looked_at():
    """Words as frequent as in text (the r-th of them 1/r): at most an eighth of the pool."""
    rng, keeper = random.Random(3), InstructionFilter()
    words = [f"w{i}" for i in range(3000)]
    weights = [1 / (r + 1) for r in range(3000)]
    texts = [rng.choices(words, weights, k=15) for _ in range(2000)]
    for text in texts:
        keeper.add(" ".join(text))
    looked = sum(len(keeper._possible(rng.choices(words, weights, k=15))) for _ in range(50)) / 50
    assert looked < len(texts) / 8


def reason(text, rules=None, pool=()):
    keeper = InstructionFilter(rules)
    for other in pool:
        keeper.add(other)
    why = keeper.why_not(text)
    assert (why is None) == (len(keeper.texts) == len(pool) + 1)
    return why and why.reason


@pytest.mark.parametrize(("words", "said"), [(0, "too short"), (3, "too short"), (4, None), (150, None),
                                             (151, "too long")])
def test_lengths_are_alpacas(words, said):
    assert reason(" ".join(["word"] * words)) == said


@pytest.mark.parametrize(("text", "said"), [
    ("Describe the IMAGE in words", "blacklisted word"),
    ("Please go to the next room", "blacklisted word"),
    ("Describe the imagery in words", None),
    ("Imagine a filename for it", None),
    ("Write a program that adds numbers", "asks for a program"),
    ("Please write a program that adds", None),
    ("(a) Say what it is", "begins with punctuation"),
    ("  Say what it is  ", None),
    ("\u00c9cris une phrase courte", "not in English"),
    ("Say caf\u00e9 in English please", None),
])
def test_each_rule_of_form(text, said):
    assert reason(text) == said


def test_a_text_is_too_similar_from_the_bound_on():
    """7 of 10 words in order: exactly 0.7, dropped; 6 of 10: kept; the same words in another order: kept."""
    pool = ["one two three four five six seven eight nine ten"]
    assert reason("one two three four five six seven a b c", pool=pool) == "too similar"
    assert reason("one two three four five six x a b c", pool=pool) is None
    assert reason("ten nine eight seven six five four three two one", pool=pool) is None
    assert reason("one two three four five six seven a b c", FilterRules(0.71), pool) is None


def test_what_is_kept_joins_the_pool_and_inputs_tell_tasks_apart():
    keeper, text = InstructionFilter(), "Name the opposite of this word"
    assert keeper.why_not(text, "warm cold hot cool mild icy") is None
    assert keeper.why_not(text, "up down left right near far") is None
    assert keeper.why_not(text, "up down left right near far").reason == "too similar"


def test_other_languages_are_compared_by_character_where_they_have_no_spaces():
    keeper = InstructionFilter(FilterRules(english=False))
    asked = "\u8bf7\u89e3\u91ca\u4e00\u4e0b\u4ec0\u4e48\u662f\u673a\u5668\u5b66\u4e60"  # 12 characters
    assert words_of(asked, english=False) == list(asked)
    assert words_of("\u0421\u043a\u0430\u0436\u0438 2 caf\u00e9s", english=False) == [
        "\u0441\u043a\u0430\u0436\u0438", "2", "caf\u00e9s"]
    assert keeper.why_not(asked) is None
    assert keeper.why_not(asked[:-2] + "\u7ffb\u8bd1").reason == "too similar"  # the last two differ: 20 / 24
    assert keeper.why_not("\u8bf7\u7ffb\u8bd1\u8fd9\u9996\u53e4\u8bd7") is None
    assert InstructionFilter().why_not(asked).reason == "too short"  # one word, for English


@pytest.mark.parametrize("name", MISHAPS)
def test_a_slip_of_the_teacher_is_dropped_for_its_reason(name):
    for task in SEEDS[:10]:
        assert reason(MISHAPS[name](task), pool=SEEDS) == name


def test_the_pool_grows_by_tasks_unlike_all_before_and_nothing_is_lost():
    shown, said = [], []

    def teacher(rng, examples):
        shown.append(examples)
        said.extend(procedural_teacher(rng, examples))
        return said[-5:]

    harvest = self_instruct(SEEDS, teacher, 120)
    assert 120 <= len(harvest.tasks) < 125 and harvest.requests == len(shown)
    assert sorted(said) == sorted(harvest.tasks + [task for task, _ in harvest.dropped])
    assert harvest.counts().total() == len(harvest.dropped) and set(harvest.counts()) == set(MISHAPS)
    everything = SEEDS + harvest.tasks
    assert all(rouge_l(a, b) < 0.7 for a, b in combinations(everything, 2))
    assert all(len(set(three)) == 3 and set(three) <= set(SEEDS) for three in shown)
    assert self_instruct(SEEDS, procedural_teacher, 120) == harvest
    assert self_instruct(SEEDS, procedural_teacher, 5, seed=1).tasks != harvest.tasks[:5]


def test_a_teacher_who_repeats_himself_comes_to_an_end():
    harvest = self_instruct(SEEDS, lambda rng, examples: examples, 1, most_requests=7)
    assert (harvest.tasks, harvest.requests, len(harvest.dropped)) == ([], 7, 21)
    assert harvest.dropped[0][1].detail == f"ROUGE-L 1.000 with: {harvest.dropped[0][0]}"
    with pytest.raises(ValueError, match="2 seeds: give at least the 3"):
        self_instruct(SEEDS[:2], procedural_teacher, 1)


@pytest.mark.parametrize(("fields", "said"), [
    ({"similarity": 0}, "similarity is 0"), ({"similarity": 1.5}, "similarity is 1.5"),
    ({"min_words": 0}, "min_words is 0"), ({"min_words": 9, "max_words": 8}, "max_words 8"),
    ({"blacklist": (" ",)}, "not blank"),
])
def test_rules_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        FilterRules(**fields)


def test_no_blacklist_forbids_nothing():
    assert reason("Draw a map of it", FilterRules(blacklist=())) is None


plant = partial(Mutant, module.__name__)
MUTANTS = [
    plant("flat + hit | flat - hit", "flat | flat - hit", test_the_longest_common_subsequence_is_the_textbooks),
    plant("findall(text.lower())", "findall(text)", test_rouge_l_is_that_of_the_package_rouge_score),
    plant("least * len(words) / (2 - least)", "least * len(words)",
          lambda: test_the_nearest_text_is_the_one_that_comparing_with_all_finds(0.7)),
    plant("            missing -= counts[word]", "            missing -= 2 * counts[word]",
          lambda: test_the_nearest_text_is_the_one_that_comparing_with_all_finds(0.3)),
    plant("            if missing < 0:\n                break\n", "", test_few_of_a_large_pool_are_looked_at),
    plant("similarity > best[0]", "similarity >= best[0]",
          lambda: test_the_nearest_text_is_the_one_that_comparing_with_all_finds(0.3)),
    plant("similarity < self.rules.similarity", "similarity <= self.rules.similarity",
          test_a_text_is_too_similar_from_the_bound_on),
    plant("            self.add(task)\n        return", "            pass\n        return",
          test_the_pool_grows_by_tasks_unlike_all_before_and_nothing_is_lost),
    plant(r"\b(?:{escaped})\b", "(?:{escaped})", lambda: test_each_rule_of_form("Describe the imagery in words", None)),
    Mutant("procedural_teacher", "rng.sample(seeds, shown)", "rng.sample(seeds + tasks, shown)",
          test_the_pool_grows_by_tasks_unlike_all_before_and_nothing_is_lost),
    plant("count < rules.min_words", "count <= rules.min_words", lambda: test_lengths_are_alpacas(4, None)),
]
