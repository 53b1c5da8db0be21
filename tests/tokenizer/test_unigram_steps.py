"""The compiled steps of unigram training give what the plain ones give, to the last bit; digamma is torch's."""

import math
import random
import types
import warnings
from collections import Counter

import pytest
import torch
from mutants import Mutant
from tokenizer_texts import CRUEL, real_text

from minillama.tokenizer import compiled, default_backend, unigram_steps, unigram_training
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.unigram_steps import add_up, digamma

# classes of characters: spaces, two scripts, marks, digits of two kinds, one, two, three and four bytes; the first four
# are no letters of the alphabet
LETTERS = "\u2585\x1f?\0\u2581ab\u0301и漢字ひ1２é🦙."
built = pytest.mark.skipif(default_backend("unigram_prune") != "cpp", reason=f"not built: {compiled.BUILD}")
BOTH = (unigram_steps, unigram_training)


def test_digamma_is_the_slope_of_log_gamma():
    """Known values: minus Euler's constant at 1, less 2 log 2 at a half; and torch's."""
    euler = 0.5772156649015329
    assert digamma(1) == pytest.approx(-euler, abs=1e-13)
    assert digamma(0.5) == pytest.approx(-euler - 2 * math.log(2), abs=1e-13)
    values = torch.logspace(-3, 12, 400, dtype=torch.float64)
    for x, wanted in zip(values.tolist(), torch.digamma(values).tolist(), strict=True):
        assert digamma(x) == pytest.approx(wanted, abs=1e-13, rel=1e-14)
        assert digamma(x + 1) - digamma(x) == pytest.approx(1 / x, abs=1e-13, rel=1e-13)


def test_terms_are_added_one_after_the_other():
    assert add_up([1e16, 1.0, -1e16]) == 0.0 and add_up(iter([1.0, 1e-16, 1e-16])) == 1.0 and add_up([]) == 0.0


def need_core():
    """For laws that mutants call: marks do not count there."""
    if default_backend("unigram_prune") != "cpp":
        pytest.skip(f"not built: {compiled.BUILD}")


def random_words(draw):
    """{word: count}; a word's last character is what follows it."""
    letters = draw.choices(LETTERS, range(1, len(LETTERS) + 1), k=draw.randrange(2, 9))
    words = Counter()
    for _ in range(draw.randrange(1, 25)):
        word = "".join(draw.choices(letters, k=draw.choice([1, 2, 3, 5, 9, 30])))
        words[word + draw.choice("\u2581\n")] += draw.choice([1, 1, 2, 7, 10**6])
    return words


def equal_items(ours, plain):
    """The same keys in the same order with equal numbers."""
    assert list(ours.items()) == list(plain.items())
    return plain


def check_steps(seeds):
    """Each step from the same beginning; prunings to no piece, to one, to some and to all."""
    need_core()
    for seed in seeds:
        draw = random.Random(seed)
        words = random_words(draw)
        alphabet = Counter(letter for word, count in words.items() for letter in word[:-1] for _ in range(min(count, 9))
                           if letter in LETTERS[4:])
        if not alphabet:
            continue
        options = draw.choice([1, 2, 4, 16]), draw.random() < 0.5, draw.random() < 0.5
        log_p = equal_items(*(steps.seed_pieces(words, alphabet, *options) for steps in BOTH))
        bare = Counter()
        for word, count in words.items():
            bare[word[:-1]] += count
        for _ in range(3):
            expected = equal_items(*(steps.expected_counts(log_p, bare) for steps in BOTH))
            log_p = equal_items(*(steps.maximize(expected) for steps in BOTH))
            for size in (0, 1, len(log_p), len(log_p) * 3 // 4):
                pruned = equal_items(*(steps.prune(log_p, bare, size) for steps in BOTH))
            log_p = pruned or log_p


def test_every_step_of_random_words_is_equal_to_the_last_bit():
    check_steps(range(60))


@pytest.mark.long
def test_every_step_of_many_random_words_is_equal_to_the_last_bit():
    check_steps(range(60, 5000))


def check_ties():
    """Scores of few values, so that many paths and losses are equal; and pieces that their parts outdo."""
    need_core()
    for seed in range(40):
        draw = random.Random(seed)
        texts = dict.fromkeys("".join(draw.choices("abи", k=draw.randrange(1, 5))) for _ in range(20))
        log_p = {text: -draw.choice([0.5, 1.0, 2.0]) for text in texts}
        words = {"".join(draw.choices("abи?", k=draw.randrange(12))): draw.choice([1, 2]) for _ in range(30)}
        for size in (0, 3, 9, 99):
            equal_items(*(steps.prune(log_p, words, size) for steps in BOTH))
        equal_items(*(steps.expected_counts(log_p, words) for steps in BOTH))


def test_ties_fall_alike():
    check_ties()


def check_training(data, pieces):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lines that are skipped
        ours, plain = (train_sentencepiece([data], pieces, "unigram", backend=backend, hard_vocab_limit=False)
                       for backend in ("cpp", "python"))
    assert ours.model == plain.model
    assert ours.training_report.backend == "cpp" and plain.training_report.backend == "python"


@built
@pytest.mark.parametrize("name", CRUEL)
def test_cruel_texts_give_the_same_vocabulary(name):
    check_training(CRUEL[name], 1000)


@built
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_real_text_gives_the_same_vocabulary(seed):
    check_training(real_text(30_000, seed), 700)


@built
@pytest.mark.long
def test_a_megabyte_gives_the_same_vocabulary():
    check_training(real_text(1_000_000), 8000)


@pytest.mark.parametrize("core", [None, types.SimpleNamespace(BpeEncoder=1, BpeTrainer=1)])
def test_without_the_compiled_steps_asking_for_them_is_refused_and_training_is_plain(monkeypatch, core):
    """Without a library, and with one that was built before it had them."""
    monkeypatch.setattr(compiled, "_core", lambda: core)
    with pytest.raises(RuntimeError, match="backend 'cpp' is not built here. In the checkout, with a C.. compiler: "):
        train_sentencepiece(["abc abc"], 300, "unigram", backend="cpp")
    tokenizer = train_sentencepiece(["abc abc"], 300, "unigram", hard_vocab_limit=False)
    assert default_backend("unigram_prune") == "python"
    assert tokenizer.training_report.backend == "python"


STEPS, TRAINING = "minillama.tokenizer.unigram_steps", "minillama.tokenizer.unigram_training"
MUTANTS = [
    Mutant(STEPS, "if split_digits:", "if True:", lambda: check_steps(range(60))),
    Mutant(STEPS, "{None: 0}", "{}", lambda: check_steps(range(60))),
    Mutant(STEPS, "while x < 10:", "while x < 4:", test_digamma_is_the_slope_of_log_gamma),
    Mutant(STEPS, "reduce(operator.add, terms, 0.0)", "reduce(operator.add, sorted(terms), 0.0)",
           test_terms_are_added_one_after_the_other),
    Mutant(TRAINING, "max(size - len(kept), 0)", "size", lambda: check_steps(range(60))),
    Mutant(TRAINING, "math.log(counts[other] + count)", "math.log(used.get(other, 0) + count)",
           lambda: check_steps(range(60))),
]
