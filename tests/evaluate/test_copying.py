"""Laws of copying as it is seen from outside: names, how often answers hold their own or another question's, and what
is said of it."""

import random
from functools import partial

import pytest
from mutants import Mutant

from minillama.evaluate.copying import (
    diagnose_blindness,
    diagnose_copying,
    diagnose_forgetting,
    luck,
    name_shares,
    names_in,
    words_of,
)
from minillama.rlhf.preferences import Pair

TOWNS = [f"town{i}" for i in range(40)]
QUESTIONS = [f"When does the boat to {town} leave?" for town in TOWNS]
SILENT = "It leaves some day."
GIVEN = [f"The boat to {town} leaves at six." if i % 4 else SILENT for i, town in enumerate(TOWNS)]


def moved(n):
    """The answers, of which the first n are those to the next question."""
    return GIVEN[1:n + 1] + GIVEN[n:]


def test_a_name_is_a_word_of_few_questions():
    """Of 40 different ones, 8 at most; a question that is asked often counts once, and case and marks do not count."""
    assert names_in(QUESTIONS) == set(TOWNS)
    for n in (8, 9):
        rows = [f"{'Slow' if i < n else ''} boat, number x{i}" for i in range(40)]
        assert ("slow" in names_in(rows + rows[:20])) == (n == 8) and "boat" not in names_in(rows)
    assert words_of("To ROME, or Rome's?") == {"to", "rome", "or", "s"}


def test_shares_count_answers_that_name_their_own_or_another_question():
    questions = ["to town1?", "to town2?", "to town3?", "to town4 and town5?"]
    answers = ["Town1.", "to town1", "boats", "town5, or town9"]
    assert name_shares(questions, answers, set(TOWNS)) == (0.5, 0.5), "the last names both"
    assert name_shares([], [], set()) == (0, 0)


def test_a_model_that_copies_as_the_answers_do_is_told_nothing():
    """Of 40, luck and the tenth are 0.26: ten wrong names in 13 moved answers are not told, 11 in 14 are."""
    assert luck(40) == pytest.approx(0.1 + 40**-0.5) and luck(0) == 1.1
    assert diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, GIVEN) == ""
    for n in (13, 14):
        wrong = name_shares(QUESTIONS, moved(n), set(TOWNS))[1]
        assert (diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, moved(n)) == "") == (wrong <= luck(40)) == (n == 13)


def test_too_little_copying_is_told_with_both_numbers_and_what_to_try():
    for made, words in ((moved(39), "name what another question names, of your own 0%"),
                        ([SILENT] * 40, "0% of the model's answers to unseen questions name what the question names, "
                                        "of your own 75%")):
        told = diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, made)
        assert words in told and "it has learned too little copying. Try more --text-steps" in told


def test_practice_that_loses_the_question_is_told_and_one_that_does_not_is_not():
    assert diagnose_forgetting(QUESTIONS, QUESTIONS, GIVEN, GIVEN) == ""
    assert diagnose_forgetting(QUESTIONS, QUESTIONS, moved(39), GIVEN) == "", "it has become better"
    assert diagnose_forgetting(QUESTIONS, QUESTIONS, moved(39), moved(39)) == "", "it was lost before"
    told = diagnose_forgetting(QUESTIONS, QUESTIONS, GIVEN, moved(39))
    assert told.startswith("75% of the answers after practice") and "before 0%" in told and "--kl-target" in told


def test_a_reward_model_that_sees_no_names_is_told_and_one_that_does_is_not():
    pairs, rng = [Pair(*row, "no") for row in zip(QUESTIONS, GIVEN, strict=True)], random.Random(0)

    def sees(rows):
        return [len(words_of(question) & words_of(answer) & set(TOWNS)) for question, answer in rows]

    told = diagnose_blindness(QUESTIONS, pairs, lambda rows: [rng.random() for _ in rows])
    assert "of 30 cases, a coin 50%" in told and "may forget it" in told, "30 of the 40 answers name something"
    assert diagnose_blindness(QUESTIONS, pairs, sees) == ""
    assert diagnose_blindness(QUESTIONS, pairs[:20], lambda rows: [0.0] * len(rows)) == "", "15 cases are too few"
    assert " 0% of 30 " in diagnose_blindness(QUESTIONS, pairs, lambda rows: [-x for x in sees(rows)])


plant = partial(Mutant, "minillama.evaluate.copying")
BLIND = test_a_reward_model_that_sees_no_names_is_told_and_one_that_does_is_not
COPIES, SHARES = (test_a_model_that_copies_as_the_answers_do_is_told_nothing,
                  test_shares_count_answers_that_name_their_own_or_another_question)
MUTANTS = [
    plant("n <= COMMON * len(held)", "n < COMMON * len(held)", test_a_name_is_a_word_of_few_questions),
    plant("dict.fromkeys(questions)", "questions", test_a_name_is_a_word_of_few_questions),
    plant("bool(named - asked)", "bool(named)", SHARES),
    plant("made_other > other + luck(len(asked))", "made_other > other", COPIES),
    plant("made_own < own - luck(len(asked))", "False",
          test_too_little_copying_is_told_with_both_numbers_and_what_to_try),
    plant("last <= first + luck(len(asked))", "last <= luck(len(asked))",
          test_practice_that_loses_the_question_is_told_and_one_that_does_not_is_not),
    plant("for i in (0, 1)", "for i in (1, 0)", BLIND),
]
