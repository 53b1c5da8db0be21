"""Laws of the course: every exercise is sound, and a course of nothing is no success."""

import pytest

from minillama import check, lesson


def test_there_are_lessons_and_exercises():
    assert lesson.lessons() and check.exercises(), f"nothing in {lesson.FOLDER}"


@pytest.mark.parametrize("number", check.exercises(), ids="{:02}".format)
def test_stub_is_to_do_solution_passes_and_each_wrong_answer_fails_with_its_hint(number):
    assert check.prove(number) == []
