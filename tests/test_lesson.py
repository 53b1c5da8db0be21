"""Laws of the lesson tools: a lesson is found by its number, and a wrong number says what there is."""

import pytest

from minillama import lesson


@pytest.mark.parametrize("text", ["5", "05", "05_rms_norm", "05_rms_norm.py", "lessons/05_rms_norm.py"])
def test_a_lesson_goes_by_its_number_however_it_is_written(text):
    assert lesson.number_of(text) == 5


@pytest.mark.parametrize("text", ["", "rope", "-1", "123", "x5"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match="give its number"):
        lesson.number_of(text)


def test_a_missing_lesson_says_whether_it_is_planned_and_what_is_there(tmp_path):
    (tmp_path / "05_rms_norm.py").write_text("")
    assert lesson.find(5, tmp_path).name == "05_rms_norm.py"
    with pytest.raises(ValueError, match="lesson 03_wordpiece_unigram is planned, not written yet: written are 05"):
        lesson.find(3, tmp_path)
    with pytest.raises(ValueError, match="there is no lesson 77: written are 05"):
        lesson.find(77, tmp_path)
    with pytest.raises(ValueError, match="checkout"):
        lesson.find(5, tmp_path / "nowhere")
