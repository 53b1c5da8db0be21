"""Settings files: what is not a number, not positive or not JSON is refused with its name."""

import json

import pytest
from mutants import Mutant

from minillama.checkpoint.settings import flag, number, read_settings, whole


def test_numbers_are_positive_and_of_their_kind():
    assert whole({"a": 3}, "a", "p") == 3 and whole({"a": 3.0}, "a", "p") == 3
    assert whole({}, "a", "p", 5) == 5 and whole({"a": None}, "a", "p", 5) == 5
    assert number({"a": 3}, "a", "p") == 3.0 and number({}, "a", "p", 0.5) == 0.5
    assert flag({"a": True}, "a", "p") and not flag({}, "a", "p") and flag({"a": None}, "a", "p", True)
    for value in (0, -1, 2.5, True, "3", [3], float("nan"), float("inf"), 2**50):
        with pytest.raises(ValueError, match="p: a is .*: expected a positive whole number"):
            whole({"a": value}, "a", "p")
    for value in (0, -1, True, "3", [3], float("nan"), float("inf")):
        with pytest.raises(ValueError, match="p: a is .*: expected a positive number"):
            number({"a": value}, "a", "p")
    for read in (whole, number):
        with pytest.raises(ValueError, match="a is None"):
            read({}, "a", "p")
    with pytest.raises(ValueError, match="expected true or false"):
        flag({"a": 1}, "a", "p")


def test_a_file_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "params.json"
    for content in ("", "[1]", "{", "\xff", "3", "[" * 100_000, '{"a": "' + "x" * 1_000_000 + '"}'):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match="params.json"):
            read_settings(path)
    path.write_text(json.dumps({"dim": 4}))
    assert read_settings(path) == {"dim": 4}


MUTANTS = [
    Mutant("minillama.checkpoint.settings", "0 < value < 1e18", "value < 1e18",
           test_numbers_are_positive_and_of_their_kind),
]
