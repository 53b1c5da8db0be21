"""The page of all benchmarks: rows are read as they were printed, goals are met or missed by the numbers in them."""

import contextlib
import io
import sys
from pathlib import Path

import pytest
from mutants import Mutant

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))  # a script of that folder finds its neighbours so
from bench import speed  # noqa: E402
from bench.speed import Goal, _rounds, first_number, goals_in_words, judged, page, rows_in  # noqa: E402

ROWS = [_rounds.Row("decoding, a, against b", "10 M weights", "tok/s", [30.0], [20.0], [40.0]),
        _rounds.Row("decoding, c, against b", "10 M weights", "tok/s", [10.0], [20.0]),
        _rounds.Row("product, against b", "1 x 7", "ms", [2.0], None, [1.0], more_is_better=False)]
GOALS = [Goal("^decoding", "", 1.5), Goal("product", "^1 x", 60, "share of limit"), Goal("decoding", "^20 M", 0.1)]


def printed():
    """What two benchmarks print."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print("without a peer: b is not installed")
        _rounds.show(ROWS[:2])
        _rounds.show(ROWS[2:])
    return out.getvalue()


def test_rows_are_read_as_they_were_printed():
    found = rows_in(printed())
    assert [list(row.values()) for row in found] == [row.cells() for row in ROWS]
    assert list(found[0]) == list(_rounds.COLUMNS)


def test_a_goal_is_met_where_its_column_has_at_least_the_number():
    assert [(measured, met) for _, _, measured, met in judged(rows_in(printed()), GOALS)] == [
        (1.5, True), (0.5, False), (50.0, False), (None, False)]


@pytest.mark.parametrize(("cell", "number"), [("1.23 (1.10 to 1.40)", 1.23), ("62 %", 62.0), ("-", None)])
def test_a_cell_begins_with_its_number(cell, number):
    assert first_number(cell) == number


def test_every_miss_is_said_and_stands_first():
    lines = goals_in_words(judged(rows_in(printed()), GOALS))
    assert lines[0].startswith("1 of 4 goals are met")
    assert [line.split("|")[-2].strip() for line in lines[4:]] == [
        "missed", "missed", "not measured", "met"]
    assert "60 % of limit | 50 | missed" in "\n".join(lines)


def test_the_page_has_every_row_and_says_whether_the_machine_was_busy():
    tables = {("decoding", 1): rows_in(printed())[:2], ("products", 2): rows_in(printed())[2:]}
    busy, calm = (page(tables, loads, "--rounds 5") for loads in ((0.0, 99.0), (0.0, 0.0)))
    assert "the machine was busy" in busy and "busy" not in calm
    for row in ROWS:
        assert f"| {row.what} | {row.size} |" in calm
    assert "## decoding, 1 thread\n" in calm and "## products, 2 threads\n" in calm


def test_every_benchmark_that_it_runs_is_there_or_was_left_out_on_purpose():
    there = {path.stem for path in BENCH.glob("[!_]*.py")}
    assert {name.split()[0] for name, _ in speed.RUNS.values()} - {"training"} <= there


def decoded(what):
    """(tokens a second, ratio to the peer) of the 110M model's row of decoding in docs/speed.md."""
    (row,) = [line.split("|") for line in (BENCH.parent / "docs" / "speed.md").read_text(encoding="utf-8").splitlines()
              if line.startswith(f"| decoding, CPU time, engine {what} | 134 M weights, 24 tokens after 32 |")]
    return first_number(row[3].strip()), first_number(row[5].strip())


def test_the_readmes_say_the_ratios_of_the_page():
    of_peer = {name: f"{decoded(row)[1]:.1f}" for name, row in {
        "fp32": "fp32, against transformers fp32", "NF4": "NF4, against bitsandbytes NF4",
        "head": "NF4, head int8, against bitsandbytes NF4",
        "int8": "NF4 x int8 activations, head int8, against llama.cpp Q4_0"}.items()}
    gain = decoded("NF4 x int8 activations, head int8, against llama.cpp Q4_0")[0] / decoded(
        "NF4, head int8, against llama.cpp Q4_0")[0]
    english, chinese = (" ".join((BENCH.parent / name).read_text(encoding="utf-8").split())
                        for name in ("README.md", "README.zh.md"))
    for words in (f"{of_peer['fp32']} times as fast as `transformers` in fp32",
                  f"in NF4 {of_peer['NF4']} times as fast as `bitsandbytes` ({of_peer['head']} with `--head int8`)",
                  f"{of_peer['int8']} of the speed of llama.cpp's Q4_0", f"{gain:.1f} times as fast as exact products"):
        assert words in english, words
    for words in (f"`transformers` 的 {of_peer['fp32']} 倍", f"`bitsandbytes` 的 {of_peer['NF4']} 倍",
                  f"`--head int8` 是 {of_peer['head']} 倍", f"llama.cpp Q4_0 的 {of_peer['int8']}"):
        assert words in chinese, words


MUTANTS = [
    Mutant("bench.speed", "measured >= goal.wanted", "measured > goal.wanted",
           test_a_goal_is_met_where_its_column_has_at_least_the_number),
    Mutant("bench.speed", "and re.search(goal.size, row[\"size\"])", "",
           test_a_goal_is_met_where_its_column_has_at_least_the_number),
    Mutant("bench.speed", "key=lambda one: (one[3],", "key=lambda one: (not one[3],",
           test_every_miss_is_said_and_stands_first),
    Mutant("bench.speed", "max(loads) >", "min(loads) >",
           test_the_page_has_every_row_and_says_whether_the_machine_was_busy),
    Mutant("bench.speed", "if row != list(_rounds.COLUMNS) and set(row) != {\"---\"}", "",
           test_rows_are_read_as_they_were_printed),
]
