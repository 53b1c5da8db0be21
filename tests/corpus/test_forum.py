"""Laws of the forum: the hidden quality is read off any text, and votes follow it with noise."""

import hashlib
import math
import statistics

import pytest
from mutants import Mutant

from minillama.corpus import forum

ASKED = "How do I fix a rusty red bell?"
PINNED = "39724096812cedeeb723809919df968f26d0d2bf2be24015d376af42bea16886"

# answer, opening + steps + object + closing - strays
CASES = [
    ("Happy to help! First find a rope. Then fix the bell by the well. Good luck!", 1 + 1 + 1 + 1),
    ("First find a rope. Then fix the bell until supper. That is all.", 0 + 1 + 1 + 0),
    ("Just fix the bell for 42 minutes. That is all.", 0 + 0 + 1 + 0),
    ("Just fix the thing for 42 minutes. That is all.", 0 + 0 - 1 + 0),
    ("Read a book. Just fix the thing by the well. You will fail.", -1 + 0 - 1 - 1),
    ("Read a book. First buy a map. Then fix the bell on the hill. You will fail.", -1 + 1 + 1 - 1),
    ("Happy to help! First find a rope. Then fix the kite by the well. Good luck!", 1 + 1 - 1 + 1),
    ("Happy to help! First find a rope. Then hide the bell by the well. Good luck!", 1 + 0 - 1 + 1),
    ("", -1), ("Good", -1 - 1), ("bell bell bell", -1 - 1), ("Good luck!", -1 + 1), ("Happy to help!", 1 - 1),
    ("Happy to help! Good luck!", 1 + 0 - 1 + 1), ("Good luck! Happy to help!", -1 - 2),
    ("Of course. First Happy to help! Then fix the bell. Good lure.", -1 - 4),  # decayed text
    ("Then fix the bell by the well. Then fix the bell by the well. Good luck!", 0 + 0 + 1 + 1 - 1),
    ("First find a rope. First find a rope. Then fix the bell by the well. That is all.", 0 + 0 + 1 + 0 - 1),
    ("Then fix the bell by the well. First find a rope. That is all.", 0 + 0 + 1 + 0 - 1),
    ("Just fix the bell by the well. Just fix the lamp by the well. Have fun!", 0 + 0 - 1 + 1 - 1),
    ("Happy to help! Happy to help! Just fix the bell in the barn. Good luck! Good luck!", 1 + 0 + 1 + 1 - 2),
    ("Read a book. Happy to help! Just fix the bell in the barn. Good luck! Do not ask again.", -1 + 0 + 1 - 1 - 2),
    ("First find a rope. Then fix the bell by the well", 0 + 0 - 1 + 0 - 1),  # cut off before its end
]


@pytest.mark.parametrize(("answer", "expected"), CASES)
def test_quality_of_answers_written_by_hand(answer, expected):
    assert forum.quality(ASKED, answer) == expected


def test_spacing_does_not_change_quality():
    for answer, expected in CASES:
        spaced = "\n  " + answer.replace(" ", " \n\t ") + "  \n"
        assert forum.quality(ASKED.replace(" ", "  ") + "\n", spaced) == expected


def test_quality_agrees_with_the_choices_behind_the_forums_own_answers():
    """The answers' derivation tells what was chosen; the quality must find the same by reading."""
    seen = set()
    for thread in forum.threads(5, 150):
        given = forum.GRAMMAR.parse(thread.question, "{question}").chosen
        for answer in thread.answers:
            chosen = forum.GRAMMAR.parse(answer.text, "{answer}", given).chosen
            expected = (("polite" in chosen) - ("rude" in chosen) + ("get" in chosen)
                        + (1 if chosen["named"] == 0 else -1) + ("kind_close" in chosen) - ("sour_close" in chosen))
            assert forum.quality(thread.question, answer.text) == expected
            seen.add(expected)
    assert seen == set(range(-3, 5))


def test_a_question_of_another_forum_is_refused():
    with pytest.raises(ValueError, match="not in the language"):
        forum.quality("How do I fix a bell?", "Good luck!")


@pytest.mark.parametrize(("opinion", "votes"), [
    (0, 0), (1, 1), (2, 3), (4, 15), (3.3, 9), (0.4, 0), (-0.4, 0), (-1, -1), (-2, -3), (-3.3, -9)])
def test_votes_are_two_to_the_opinion_less_one_and_mirrored_below_zero(opinion, votes):
    assert forum.upvotes(opinion) == votes


def test_votes_scatter_around_the_quality_by_the_stated_noise():
    """At quality 4 rounding is small: log2(1 + votes) has mean 4 and standard deviation 0.7."""
    rated = [(forum.quality(thread.question, answer.text), answer) for thread in forum.threads(9, 400)
             for answer in thread.answers]
    opinions = [math.log2(1 + answer.upvotes) for q, answer in rated if q == 4]
    n = len(opinions)
    assert n > 40 and abs(statistics.mean(opinions) - 4) < 4 * 0.7 / math.sqrt(n)
    assert abs(statistics.stdev(opinions) - 0.7) < 4 * 0.7 / math.sqrt(2 * n) + 0.02
    accepted = statistics.mean(q for q, answer in rated if answer.accepted)
    assert accepted > statistics.mean(q for q, _ in rated) + 0.7


def test_a_thread_has_two_to_five_answers_and_accepts_one():
    found = forum.threads(1, 200)
    assert {len(thread.answers) for thread in found} == {2, 3, 4, 5}
    assert all(sum(answer.accepted for answer in thread.answers) == 1 for thread in found)
    assert forum.threads(1, 20) == found[:20] != forum.threads(2, 20)
    best = [max(thread.answers, key=lambda a, t=thread: forum.quality(t.question, a.text)).accepted for thread in found]
    assert 0.5 < statistics.mean(best) < 0.95  # a noisy judge: mostly right, not always


def test_a_seed_gives_the_same_forum_on_every_machine():
    lines = [document.text for document in forum.documents(0, 100)]
    lines += [f"{thread.question} {answer}" for thread in forum.threads(0, 25) for answer in thread.answers]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PINNED


def test_forum_entropy_is_the_mean_of_the_documents_bits():
    documents = forum.documents(7, 4000)
    mean = sum(document.bits for document in documents) / len(documents)
    error = math.sqrt(sum((document.bits - mean) ** 2 for document in documents)) / len(documents)
    assert abs(mean - forum.GRAMMAR.entropy_bits()) < 4 * error
    for document in documents[:200]:
        assert forum.GRAMMAR.log2_probability(document.text) == pytest.approx(-document.bits, abs=1e-9)


MODULE = "minillama.corpus.forum"
MUTANTS = [
    Mutant(MODULE, "return opening + two +", "return opening + 1 +",
           test_quality_agrees_with_the_choices_behind_the_forums_own_answers),
    Mutant(MODULE, "first[0] < then[0][0]", "True",
           lambda: test_quality_of_answers_written_by_hand(*CASES[18])),
    Mutant(MODULE, "len(first) == len(then) == 1", "first and then",
           lambda: test_quality_of_answers_written_by_hand(*CASES[17])),
    Mutant(MODULE, " - (len(found) - in_place)", "", lambda: test_quality_of_answers_written_by_hand(*CASES[20])),
    Mutant(MODULE, "else 1  # steps", "else 2", lambda: test_quality_of_answers_written_by_hand(*CASES[19])),
    Mutant(MODULE, "1 if right and all(", "1 if any(", lambda: test_quality_of_answers_written_by_hand(*CASES[19])),
    Mutant(MODULE, '" ".join(answer.split())', "answer", test_spacing_does_not_change_quality),
    Mutant(MODULE, "_manner(sentences[-1]", "_manner(sentences[0]",
           test_quality_agrees_with_the_choices_behind_the_forums_own_answers),
    Mutant(MODULE, "NOISE = 0.7", "NOISE = 1.4", test_votes_scatter_around_the_quality_by_the_stated_noise),
    Mutant(MODULE, "-round(2**-opinion - 1)", "round(2**opinion - 1)",
           lambda: test_votes_are_two_to_the_opinion_less_one_and_mirrored_below_zero(-2, -3)),
    Mutant(MODULE, "liking.index(max(liking))", "0", test_a_thread_has_two_to_five_answers_and_accepts_one),
]
