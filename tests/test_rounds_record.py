"""Records of long benchmarks: a row is made once and kept at once, a page's table comes from the record alone; and the
benchmarks of feedback run, on a tiny size."""

import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Mutant

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # a script of that folder finds its neighbours so
import _record  # noqa: E402
import fine_tuning_steps  # noqa: E402
import own_tasks  # noqa: E402
import ziya  # noqa: E402


def test_a_row_is_made_once_and_kept_at_once(tmp_path):
    path, made = tmp_path / "new" / "rows.json", []

    def make():
        made.append(len(_record.rows_of(path)))
        return {"value": 0.5}

    for seed in (2, 1, 2):
        assert _record.keep_row(path, make, arm="a", seed=seed)["value"] == 0.5
    assert made == [0, 1] and [row["seed"] for row in _record.rows_of(path)] == [1, 2]
    assert _record.find_row(path, arm="b") is None and not list(path.parent.glob("*.part"))


def test_a_row_that_makes_another_loses_neither(tmp_path):
    path = tmp_path / "rows.json"
    _record.keep_row(path, lambda: {"all": 1 + _record.keep_row(path, lambda: {"base": 1}, stage="base")["base"]},
                     stage="all")
    assert [(row.get("base"), row.get("all")) for row in _record.rows_of(path)] == [(None, 2), (1, None)]


def test_a_page_keeps_all_but_what_stands_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n<!-- b -->\n<!-- /b -->\n", encoding="utf-8")
    _record.put(page, "a", r"new \1")
    _record.put(page, "b", "filled")
    assert page.read_text(encoding="utf-8") == ("before\n<!-- a -->\nnew \\1\n<!-- /a -->\nafter\n<!-- b -->\nfilled\n"
                                                "<!-- /b -->\n")
    with pytest.raises(SystemExit, match="marks c 0 times"):
        _record.put(page, "c", "text")


def chain(**changes):
    return {"world": "kitchen", "inverted": False, "wrong": 0.0, "seed": 4, "before": 0.0, "after": 2.0, "rise": 2.0,
            "ended": 1.0, "distinct": 0.9, "malformed_before": 0.1, "malformed": 0.2, "kl": 3.0, "highest_kl": 4.0,
            "taken_back": 0, "seconds": 300} | changes


@pytest.mark.parametrize("changes, missed", [
    ({}, []), ({"rise": 1.7}, ["rise"]), ({"rise": 1.1, "wrong": 0.2}, []), ({"distinct": 0.5}, ["distinct"]),
    ({"distinct": 0.5, "inverted": True}, []), ({"kl": 1.9}, ["KL"]),
    ({"kl": 8.1, "seconds": 401}, ["KL", "CPU seconds"]),
    ({"malformed_before": 0.2, "malformed": 0.31, "ended": 0.9}, ["ended", "malformed before", "malformed after"])])
def test_what_a_chain_misses_is_said(changes, missed):
    row = chain(**changes)
    assert own_tasks.misses(row) == missed
    text = own_tasks.page_part([row, {"base_seconds": 1.0, "world": "kitchen", "seed": 4}])
    assert ("Missed by" in text) == bool(missed) and all(name in text for name in missed)
    assert f"{0 if missed else 1} of 1 rows miss none" in text


@pytest.mark.parametrize("bench, table, seeds", [
    (ziya, ziya.page_part, {0, 1, 2}), (fine_tuning_steps, fine_tuning_steps.steps_table, {0, 1, 2}),
    (fine_tuning_steps, fine_tuning_steps.rounds_table, {0, 1, 2}), (own_tasks, own_tasks.page_part, {4})])
def test_the_pages_table_is_that_of_the_record(bench, table, seeds):
    rows = _record.rows_of(bench.RECORD)
    assert {row["seed"] for row in rows} >= seeds and table(rows) in bench.PAGE.read_text(encoding="utf-8")


def test_a_level_is_reached_where_the_mean_of_three_rounds_is_there():
    row = {"curve": [(1.0, 0.0), (2.0, 3.0), (3.0, 0.0), (4.0, 3.0), (5.0, 3.0)]}
    assert ziya.reached(row, 1.0) == 3.0 and ziya.reached(row, 2.0) == 4.0 and ziya.reached(row, 2.5) is None
    late = {"curve": [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 3.0), (5.0, 9.0)]}  # what comes later does not count
    assert ziya.reached(late, 1.0) == 4.0 and ziya.reached(late, 2.0) == 5.0


def test_the_rule_pays_for_the_names_that_were_asked_for_and_no_more_than_three_sentences():
    asked = "Question: When does the old ferry for Cork leave?\n\nAnswer: "
    for answer, wanted in (("The ferry to Cork leaves at six.", 1.0), ("The ferry to Hull leaves at six.", 0.5),
                           ("It leaves. It leaves.", -0.5), ("A. B. C. The ferry to Cork leaves.", 0.5)):
        assert ziya.points(asked + answer) == wanted, answer


@pytest.mark.long
@pytest.mark.parametrize("name, seeds", [("noisy_labels", []), ("ziya", ["--seeds", "0"]),
                                         ("fine_tuning_steps", ["--seeds", "0"])])
def test_the_benchmarks_of_feedback_run_and_print_a_table(name, seeds, tmp_path):
    done = subprocess.run([sys.executable, BENCH / f"{name}.py", "--small", "--threads", "1", *seeds], cwd=tmp_path,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 4


def with_folder(test):
    import tempfile

    def run():
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))

    return run


MUTANTS = [
    Mutant("_record", "    if row is None:\n", "    if True:\n", with_folder(test_a_row_is_made_once_and_kept_at_once)),
    Mutant("_record", "[*rows_of(path), row]", "[row]", with_folder(test_a_row_that_makes_another_loses_neither)),
    Mutant("ziya", "row[\"curve\"][i:i + SMOOTH]", "row[\"curve\"][i:]",
           test_a_level_is_reached_where_the_mean_of_three_rounds_is_there),
]
