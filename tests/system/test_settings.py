"""Settings files: what is not a number, not positive or not JSON is refused with its name."""

import json

import pytest
from mutants import Mutant

from minillama.system.settings import KNOWN, check_known, flag, number, read_settings, whole


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


def test_a_setting_is_known_or_harmless_or_refused_by_its_name(monkeypatch):
    table = {"obeyed": ["name"], "inert": ["general.*"], "off": ["bias"], "fixed": {"act": ["silu"], "causal": [True]}}
    monkeypatch.setitem(KNOWN, "form", table)

    def check(given):
        check_known(given, "p", "form", scale=[1, 0.1])

    for harmless in ({"name": [3]}, {"general.a": 1}, {"bias": False}, {"bias": 0}, {"bias": {}}, {"bias": []},
                     {"act": "silu"}, {"act": None}, {"scale": 1.0}, {"scale": 0.10000000149}, {"scale": [1, None]},
                     {"causal": True}):
        check(harmless)
    for changed, message in (({"nam": 3}, "p: nam is not known here"), ({"general": 3}, "general is not known"),
                             ({"bias": True}, "p: bias is True: LLaMA's is None or False or 0 or"),
                             ({"bias": "false"}, "bias is 'false'"), ({"bias": [0]}, "bias is"),
                             ({"act": "gelu"}, "act is 'gelu': LLaMA's is None or 'silu'"), ({"act": 1}, "act is 1"),
                             ({"scale": True}, "scale is True: LLaMA's is None or 1 or 0.1"),
                             ({"scale": [1, 2]}, "scale is"),
                             ({"scale": float("nan")}, "scale is nan"), ({"causal": 1}, "causal is 1"),
                             ({"a\nb": 1}, r"a\\nb is not known")):
        with pytest.raises(ValueError, match=message) as told:
            check(changed)
        assert "\n" not in str(told.value)


def test_no_setting_is_in_two_lists():
    for form, table in KNOWN.items():
        if isinstance(table, dict) and not form.startswith("steps"):
            names = [name for kind in table for name in table[kind]]
            assert len(names) == len(set(names)), form


def within_a_patch(law):
    with pytest.MonkeyPatch.context() as patch:
        law(patch)


MUTANTS = [
    Mutant("minillama.system.settings", "if all(any(", "if any(any(",
           lambda: within_a_patch(test_a_setting_is_known_or_harmless_or_refused_by_its_name)),
    Mutant("minillama.system.settings", "0 < value < 1e18", "value < 1e18",
           test_numbers_are_positive_and_of_their_kind),
]
