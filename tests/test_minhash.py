"""Laws of near-duplicate detection: signatures estimate the Jaccard similarity; copies are found, strangers are not."""

import random

import numpy as np
import pytest
from mutants import Mutant

from lessons.cleaning import hash_words
from lessons.minhash import (
    BAND,
    HASHES,
    SHINGLE,
    estimate_jaccard,
    find_near_duplicates,
    hash_runs,
    hash_word,
    signature,
    words,
)

STANDARD_ERRORS = 5


def sets_that_share(rng, similarity, size=300):
    """Two sets of 64-bit numbers with (nearly) this Jaccard similarity, and the exact one."""
    shared = round(2 * size * similarity / (1 + similarity))
    numbers = np.array([rng.getrandbits(64) for _ in range(2 * size - shared)], np.uint64)
    return numbers[:size], numbers[size - shared :], shared / (2 * size - shared)


@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_equal_numbers_estimates_the_jaccard_similarity(seed):
    rng, errors = random.Random(seed), []
    for similarity in (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0) * 20:
        one, other, exact = sets_that_share(rng, similarity)
        errors.append((estimate_jaccard(signature(one), signature(other)) - exact, exact * (1 - exact) / HASHES))
    differences, variances = np.array(errors).T
    assert (abs(differences) <= STANDARD_ERRORS * variances**0.5).all(), "each pair"
    assert abs(differences.sum()) <= STANDARD_ERRORS * variances.sum() ** 0.5, "no bias"
    assert 0.7 < (differences**2).sum() / variances.sum() < 1.4, "and no hash function repeats another"


def test_estimates_are_those_of_datasketch_up_to_the_errors_of_both():
    datasketch = pytest.importorskip("datasketch", reason="datasketch is not installed: its MinHash is the oracle here")
    rng = random.Random(4)
    for similarity in (0.2, 0.5, 0.8, 0.95):
        one, other, exact = sets_that_share(rng, similarity)
        theirs = [datasketch.MinHash(num_perm=HASHES) for _ in range(2)]
        for their, codes in zip(theirs, (one, other), strict=True):
            their.update_batch([code.tobytes() for code in codes])
        ours = estimate_jaccard(signature(one), signature(other))
        allowed = STANDARD_ERRORS * (2 * exact * (1 - exact) / HASHES) ** 0.5
        assert abs(ours - theirs[0].jaccard(theirs[1])) <= allowed


def test_runs_are_those_of_the_words_in_their_order():
    rng = random.Random(1)
    codes = np.array([rng.choice([3, 5, 2**64 - 1, rng.getrandbits(64)]) for _ in range(60)], np.uint64)
    for n in (1, 2, 5):
        runs = hash_runs(codes, n)
        slow = [tuple(codes[i : i + n].tolist()) for i in range(len(codes) - n + 1)]
        assert len(runs) == len(slow) and len(set(runs.tolist())) == len(set(slow))
        assert len(set(zip(slow, runs.tolist(), strict=True))) == len(set(slow)), "equal runs, equal hashes"
    assert hash_runs(codes[:3], 5).tolist() == hash_runs(codes[:3], 3).tolist(), "a short text is one run"
    assert hash_runs(np.array([3, 5], np.uint64), 2) != hash_runs(np.array([5, 3], np.uint64), 2)


def test_a_word_has_one_hash_in_every_process():
    assert hash_word("llama") == 0x1ED4FC79E6FA1347
    assert hash_word("") != hash_word(" ") and hash_word("\ud800") != hash_word("?"), "half a surrogate pair too"


def test_characters_without_spaces_are_words():
    assert words("Der Hund 跑了，ねこ。x") == ["der", "hund", "跑", "了", "，", "ね", "こ", "。x"]
    assert words(" \n\t ") == []


def planted_text(rng, chinese):
    letters = "".join(chr(0x4E00 + i) for i in range(60))
    vocabulary = letters if chinese else [f"w{rng.randrange(3000)}" for _ in range(400)]
    return [rng.choice(vocabulary) for _ in range(rng.randint(80, 300))]


def shingles_of(text):
    found = words(text)
    return {tuple(found[i : i + SHINGLE]) for i in range(len(found) - SHINGLE + 1)}


@pytest.mark.parametrize("chinese", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_are_found_and_strangers_are_not(seed, chinese):
    rng, joint = random.Random(seed), "" if chinese else " "
    strangers = [joint.join(planted_text(rng, chinese)) for _ in range(400)]
    copies = []
    while len(copies) < 200:  # a few words of another document changed: near-duplicates of similarity 0.8 and more
        text = rng.choice(strangers)
        changed = text.split(" ") if not chinese else list(text)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = "新" if chinese else "new"
        copy = joint.join(changed)
        both = [shingles_of(text), shingles_of(copy)]
        if len(both[0] & both[1]) >= 0.8 * len(both[0] | both[1]):
            copies.append(copy)
    signatures = np.array([signature(hash_runs(hash_words(text), SHINGLE)) for text in strangers + copies])
    earlier = find_near_duplicates(signatures, 0.7)
    assert (earlier[400:] >= 0).mean() >= 0.95
    assert (earlier[:400] >= 0).mean() < 0.01
    for here in np.flatnonzero(earlier >= 0):
        assert earlier[here] < here and estimate_jaccard(signatures[here], signatures[earlier[here]]) >= 0.7


def test_of_equal_documents_the_first_stays_and_copies_of_copies_go():
    first = np.random.default_rng(0).integers(0, 2**32, HASHES, np.uint32)
    second = first.copy()
    second[: 12 * BAND : BAND] += 1  # a number in each of 12 bands: 114 of 126 are the first's
    third = second.copy()
    third[1 : 12 * BAND : BAND] += 1  # 114 are the second's, 102 the first's
    stranger = first + 7
    stranger[-BAND:] = first[-BAND:]  # meets the first in a band, and shares nothing else
    earlier = find_near_duplicates(np.array([first, stranger, first, second, third]), 0.9)
    assert earlier.tolist() == [-1, -1, 0, 0, 3]
    assert find_near_duplicates(np.zeros((0, HASHES), np.uint32), 0.7).shape == (0,)


MODULE = "lessons.minhash"
MUTANTS = [
    Mutant(MODULE, "(FACTORS * runs + OFFSETS).min(axis=1)", "(FACTORS * runs + OFFSETS)[:, 0]",
           lambda: test_the_share_of_equal_numbers_estimates_the_jaccard_similarity(0)),
    Mutant(MODULE, "codes[i : i + len(runs)]", "codes[: len(runs)]", test_runs_are_those_of_the_words_in_their_order),
    Mutant(MODULE, "n = min(n, len(codes))", "n = min(n, max(len(codes) - 1, 1))",
           test_runs_are_those_of_the_words_in_their_order),
    Mutant(MODULE, "(runs ^ codes[i : i + len(runs)]) * MIX", "runs ^ codes[i : i + len(runs)]",
           test_runs_are_those_of_the_words_in_their_order),
    Mutant(MODULE, "text.lower()", "text", test_characters_without_spaces_are_words),
    Mutant(MODULE, "range(0, HASHES, BAND)", "range(0, BAND, BAND)",
           lambda: test_planted_copies_are_found_and_strangers_are_not(0, False)),
    Mutant(MODULE, "alike = estimate_jaccard(signatures[here], signatures[there]) >= similarity", "alike = here >= 0",
           test_of_equal_documents_the_first_stays_and_copies_of_copies_go),
    Mutant(MODULE, "for rival in (firsts, before)", "for rival in (firsts,)",
           test_of_equal_documents_the_first_stays_and_copies_of_copies_go),
    Mutant(MODULE, 'kind="stable"', 'kind="stable")[::-1].copy(',
           test_of_equal_documents_the_first_stays_and_copies_of_copies_go),
]
