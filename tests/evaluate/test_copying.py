"""Laws of copying as it is seen from outside: names, how often answers hold their own or another question's, and what
is said of it."""

from functools import partial

import pytest
import torch
from mutants import Mutant

from minillama.evaluate.copying import (
    allowed_difference,
    diagnose_copying,
    diagnose_forgetting,
    gain_under_own_question,
    name_shares,
    rare_words_in,
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
    assert rare_words_in(QUESTIONS) == set(TOWNS)
    for n in (8, 9):
        rows = [f"{'Slow' if i < n else ''} boat, number x{i}" for i in range(40)]
        assert ("slow" in rare_words_in(rows + rows[:20])) == (n == 8) and "boat" not in rare_words_in(rows)
    assert words_of("To ROME, or Rome's?") == {"to", "rome", "or", "s"}


def test_a_chinese_name_is_told_by_its_characters():
    """No blanks tell words apart; without that a whole question would be one word, and name itself."""
    assert words_of("文竹怎么浇水？ KL 3") == {*"文竹怎么浇水", "kl", "3"}
    asked = [f"{name}怎么浇水？" for name in ("文竹", "月季", "绿萝", "芦荟", "杜鹃", "吊兰")]
    assert rare_words_in(asked) == set("文竹月季绿萝芦荟杜鹃吊兰")
    assert name_shares(asked[:2], ["文竹三天一次。", "吊兰三天一次。"], rare_words_in(asked)) == (0.5, 0.5)


def test_shares_count_answers_that_name_their_own_or_another_question():
    questions = ["to town1?", "to town2?", "to town3?", "to town4 and town5?"]
    answers = ["Town1.", "to town1", "boats", "town5, or town9"]
    assert name_shares(questions, answers, set(TOWNS)) == (0.5, 0.5), "the last names both"
    assert name_shares([], [], set()) == (0, 0)


def test_a_model_that_copies_as_the_answers_do_is_told_nothing():
    """Of 40, luck and the tenth are 0.26: ten wrong names in 13 moved answers are not told, 11 in 14 are."""
    assert allowed_difference(40) == pytest.approx(0.1 + 40**-0.5) and allowed_difference(0) == 1.1
    assert diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, GIVEN) == ""
    for n in (13, 14):
        wrong = name_shares(QUESTIONS, moved(n), set(TOWNS))[1]
        said = diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, moved(n))
        assert (said == "") == (wrong <= allowed_difference(40)) == (n == 13)


def test_too_little_copying_is_told_with_both_numbers_and_what_to_try():
    for made, words in ((moved(39), "name what another question names, of your own 0%"),
                        ([SILENT] * 40, "0% of the model's answers to unseen questions name what the question names, "
                                        "of your own 75%")):
        told = diagnose_copying(QUESTIONS, QUESTIONS, GIVEN, made)
        assert words in told and "it has learned too little copying. Try more --text-steps" in told


def blind():
    return 0.1, 30


def test_practice_that_loses_the_question_is_told_and_one_that_does_not_is_not():
    for before, after in ((GIVEN, GIVEN), (moved(39), GIVEN), (moved(39), moved(39))):  # better, or lost before
        assert diagnose_forgetting(QUESTIONS, QUESTIONS, before, after, None) == "", "and no reward model is asked"
    told = diagnose_forgetting(QUESTIONS, QUESTIONS, GIVEN, moved(39), blind)
    assert told.startswith("75% of the answers after practice") and "before 0%" in told and "--kl-target" in told
    assert "the reward model does not see it (an answer under its own question gains 0.10 deviations" in told
    for seen in ((0.25, 30), (0.0, 19)):
        told = diagnose_forgetting(QUESTIONS, QUESTIONS, GIVEN, moved(39), lambda seen=seen: seen)
        assert "forgets what it was asked. Try" in told, "it sees them, or too few tell"


def test_the_sight_of_a_reward_model_is_what_the_right_question_is_worth_to_it():
    """Of 30 answers that name something: 1 if it is the question's, beside marks from 0 to 29 for the answer itself, of
    the deviation sqrt((30^2 - 1) / 12)."""
    pairs = [Pair(*row, "no") for row in zip(QUESTIONS, GIVEN, strict=True)]
    marks = {answer: float(i) for i, answer in enumerate(answer for answer in GIVEN if answer != SILENT)}

    def score(rows, worth=1.0):
        return torch.tensor([marks[answer] + worth * bool(words_of(question) & words_of(answer) & set(TOWNS))
                             for question, answer in rows])

    assert gain_under_own_question(QUESTIONS, pairs, score) == (pytest.approx((899 / 12) ** -0.5, rel=1e-5), 30)
    assert gain_under_own_question(QUESTIONS, pairs, lambda rows: score(rows, 0.0)) == (0.0, 30)
    assert gain_under_own_question(QUESTIONS, pairs, lambda rows: torch.ones(len(rows))) == (0.0, 30)
    assert gain_under_own_question(QUESTIONS, pairs[:2], None) == (0.0, 0), "a single answer has no other"


plant = partial(Mutant, "minillama.evaluate.copying")
FORGETS = test_practice_that_loses_the_question_is_told_and_one_that_does_not_is_not
SIGHT = test_the_sight_of_a_reward_model_is_what_the_right_question_is_worth_to_it
COPIES, SHARES = (test_a_model_that_copies_as_the_answers_do_is_told_nothing,
                  test_shares_count_answers_that_name_their_own_or_another_question)
MUTANTS = [
    plant("n <= COMMON * len(held)", "n < COMMON * len(held)", test_a_name_is_a_word_of_few_questions),
    plant("dict.fromkeys(questions)", "questions", test_a_name_is_a_word_of_few_questions),
    plant("WORD.findall(text.lower())", 're.findall(r"\\w+", text.lower())',
          test_a_chinese_name_is_told_by_its_characters),
    plant("bool(named - asked)", "bool(named)", SHARES),
    plant("made_other > other + allowed_difference(len(asked))", "made_other > other", COPIES),
    plant("made_own < own - allowed_difference(len(asked))", "False",
          test_too_little_copying_is_told_with_both_numbers_and_what_to_try),
    plant("last <= first + allowed_difference(len(asked))", "last <= allowed_difference(len(asked))", FORGETS),
    plant("gain < SEEN", "True", FORGETS),
    plant("for i in (0, 1)", "for i in (1, 0)", SIGHT),
    plant("if not words_of(asked) & named", "if True", SIGHT),
    plant("mean().item() / deviation", "mean().item()", SIGHT),
]
