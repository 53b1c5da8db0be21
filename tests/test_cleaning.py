"""Laws of cleaning: each rule drops what it names and no more, and what judges a text tells good from bad."""

import random
from dataclasses import replace

import numpy as np
import pytest
from mutants import Mutant

from lessons import chinese_stories
from lessons.cleaning import (
    CleaningRules,
    PerplexityModel,
    QualityClassifier,
    compile_word_list,
    count_features,
    find_fault,
    find_language,
    split_by_perplexity,
)
from lessons.minhash import words
from minillama.corpus import forum, mixture
from minillama.corpus import stories as tales

RULES = CleaningRules(min_words=4)
GOOD = "The old miller counted seven sacks of flour before the rain came."
CHINESE = "每到夏天，李雷都在井边数船，一共有十七条。"


def stories(seed, n):
    return [document.text for document in mixture(seed, n)]


def gibberish(seed, n, letters="abcdefghijklmnopqrstuvwxyz  "):
    rng = random.Random(seed)
    return ["".join(rng.choice(letters) for _ in range(200)) + "." for _ in range(n)]


@pytest.mark.parametrize("text", [GOOD, CHINESE, "これは本です。とても古い。", "Где он? Он там, у реки.",
                                  "Well . . . it was late!”"])
def test_good_text_of_any_language_passes(text):
    assert find_fault(text, RULES) is None


@pytest.mark.parametrize(("text", "reason"), [
    ("One two three.", "length"), ("井边。", "length"), (GOOD * 10_000, "length"),
    ("Home | News | $$$ | 42 % | >>> |", "letters"), ("home about login basket help contact", "sentences"),
    ("version 1.2 of the thing, see file.txt", "sentences"), ("首页关于登录购物车", "sentences"),
    ("Buy it now! " * 9, "repetition"), ("马上购买！" * 12, "repetition")])
def test_each_rule_drops_what_it_names(text, reason):
    assert find_fault(text, RULES)[0] == reason


def test_the_bounds_themselves_are_allowed():
    count, letters = len(words(GOOD)), sum(c.isalpha() or c == " " for c in GOOD) / len(GOOD)
    repeated = "Go on. " * 3 + "Go on."  # 8 words, 7 pairs, 2 of them different
    at = replace(RULES, min_words=count, max_words=count, min_letters=letters, min_sentence_ends=1)
    assert find_fault(GOOD, at) is None
    for name, value in (("min_words", count + 1), ("max_words", count - 1), ("min_letters", letters + 1e-9),
                        ("min_sentence_ends", 2)):
        beside = {"max_words": count + 1} if name == "min_words" else {"min_words": 1}
        assert find_fault(GOOD, replace(at, **{**beside, name: value})) is not None
    assert find_fault(repeated, replace(RULES, min_distinct=2 / 7)) is None
    assert find_fault(repeated, replace(RULES, min_distinct=2 / 7 + 1e-9))[0] == "repetition"
    assert find_fault("one", CleaningRules(min_words=1, min_sentence_ends=0)) is None, "a word has no pairs"


@pytest.mark.parametrize(("text", "language"), [
    ("Wo ist es? 它在", "latin"), ("它在哪里，OK？", "chinese"), ("日本語の文章です", "japanese"),
    ("漢字" * 9 + "の", "chinese"),
    ("어디에 있어요", "korean"), ("Где он", "cyrillic"), ("πού είναι", "greek"), ("أين هو", "arabic"),
    ("4 × 2 = 8", "other"), ("", "other"), ("\ud800 x", "latin")])
def test_a_language_is_told_by_its_script(text, language):
    assert find_language(text) == language


def test_only_the_languages_asked_for_pass():
    assert find_fault(CHINESE, RULES, ("chinese",)) is None
    assert find_fault(GOOD, RULES, ("chinese", "korean")) == ("language", "latin")


def test_a_word_of_a_list_is_found_as_a_word_in_any_case_and_inside_chinese():
    listed = compile_word_list(["casino", " 博彩 ", "", "win big"])
    assert find_fault(GOOD + " The CASINO is open.", RULES, listed=listed) == ("word list", "CASINO")
    assert find_fault(CHINESE + "网上博彩网站。", RULES, listed=listed) == ("word list", "博彩")
    assert find_fault(GOOD + " You win big here.", RULES, listed=listed) == ("word list", "win big")
    assert find_fault(GOOD + " Two casinos, a subcasino.", RULES, listed=listed) is None
    with pytest.raises(ValueError, match="empty"):
        compile_word_list(["", " "])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chinese", [False, True])
def test_junk_has_five_times_the_perplexity(seed, chinese):
    texts = stories(seed, 300)
    if chinese:
        texts = [document.text for document in chinese_stories.documents(seed, 300)]
    model, letters = PerplexityModel(texts[100:]), "".join(texts)
    good = [model.perplexity(text) for text in texts[:100]]
    junk = [model.perplexity(text) for text in gibberish(seed, 100, letters)]
    assert np.median(junk) > 5 * np.median(good) and min(junk) > max(good)
    p = model.model.probabilities(" ".join(texts[0].lower().split()))
    assert model.perplexity(texts[0]) == pytest.approx(float(np.prod(1 / p) ** (1 / len(p))), rel=1e-9)
    assert model.perplexity("") > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_classifier_ranks_planted_documents(seed):
    """The area under its curve is at least 0.95, on texts that it has not seen: stories among a forum's questions."""
    good = [document.text for document in tales.documents(seed, 300)]
    others = [document.text for document in forum.documents(seed, 200)]
    classifier = QualityClassifier(good[:100], good[100:200] + others[:100])
    ranked = [classifier.quality(text) for text in good[200:]], [classifier.quality(text) for text in others[100:]]
    above = np.sign(np.subtract.outer(*ranked))
    assert (above.mean() + 1) / 2 >= 0.95
    assert classifier.quality("") == 0


def test_the_classifier_is_multinomial_naive_bayes():
    bayes = pytest.importorskip("sklearn.naive_bayes", reason="scikit-learn is not installed")
    good, others = stories(0, 30), gibberish(0, 20)
    counts = np.array([count_features(text) for text in good + others])
    theirs = bayes.MultinomialNB(alpha=1).fit(counts, [1] * 30 + [0] * 20).feature_log_prob_
    assert np.allclose(QualityClassifier(good, others).weights, theirs[1] - theirs[0], atol=1e-12, rtol=0)


def test_buckets_are_thirds_in_the_order_of_perplexity():
    numbers = np.random.default_rng(0).permutation(31).astype(float)
    buckets = split_by_perplexity(numbers)
    assert [(buckets == k).sum() for k in range(3)] == [11, 10, 10]
    assert numbers[buckets == 0].max() < numbers[buckets == 1].min() < numbers[buckets == 2].min()
    assert split_by_perplexity(np.array([])).shape == (0,)


def test_settings_are_held_against_their_bounds():
    with pytest.raises(ValueError, match="min_words 9 is above max_words 8"):
        CleaningRules(min_words=9, max_words=8)
    with pytest.raises(ValueError, match="similarity is 1.5"):
        CleaningRules(similarity=1.5)


MODULE = "lessons.cleaning"
MUTANTS = [
    Mutant(MODULE, "letters < rules.min_letters", "letters <= rules.min_letters",
           test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "pairs < rules.min_distinct", "pairs <= rules.min_distinct", test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "(len(found) - 1):", "len(found):", test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "ends < rules.min_sentence_ends", "ends <= rules.min_sentence_ends",
           test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "rules.min_words <= len(found)", "rules.min_words < len(found)",
           test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "<= rules.max_words:", "< rules.max_words:", test_the_bounds_themselves_are_allowed),
    Mutant(MODULE, "> KANA_SHARE *", "> 0 *",
           lambda: test_a_language_is_told_by_its_script("漢字" * 9 + "の", "chinese")),
    Mutant(MODULE, '+= by_name.pop("chinese")', "+= 0",
           lambda: test_a_language_is_told_by_its_script("日本語の文章です", "japanese")),
    Mutant(MODULE, "first : last + 1]", "first : last]",
           lambda: test_a_language_is_told_by_its_script("zzz", "latin")),
    Mutant(MODULE, "regex.IGNORECASE, ", "",
           test_a_word_of_a_list_is_found_as_a_word_in_any_case_and_inside_chinese),
    Mutant(MODULE, "{NOT_INSIDE}\\L<listed>", "\\L<listed>",
           test_a_word_of_a_list_is_found_as_a_word_in_any_case_and_inside_chinese),
    Mutant(MODULE, "2 ** self.model", "self.model", lambda: test_junk_has_five_times_the_perplexity(0, False)),
    Mutant(MODULE, "np.log(good / good.sum()) - np.log(others / others.sum())",
           "np.log(others / others.sum()) - np.log(good / good.sum())",
           lambda: test_a_classifier_ranks_planted_documents(0)),
    Mutant(MODULE, "[1 / 3, 2 / 3]", "[1 / 4, 3 / 4]", test_buckets_are_thirds_in_the_order_of_perplexity),
]
