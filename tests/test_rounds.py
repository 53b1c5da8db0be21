"""The benchmarks' arithmetic: turns, medians, spread and ratios; and every benchmark runs, on a tiny size."""

import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import Mutant

from bench import _rounds

BENCH = Path(_rounds.__file__).parent


def turns(names, rounds):
    log = []
    results = _rounds.alternate({name: lambda name=name: log.append(name) for name in names}, rounds,
                                measure=lambda work: work() or len(log))
    return log, results


def test_contenders_take_turns_and_every_second_round_goes_backwards():
    log, results = turns("ab", 3)
    assert log[:2] == ["a", "b"] and log[2:] == ["a", "b", "b", "a", "a", "b"], "one turn of each is not measured"
    assert results == {"a": [3, 6, 7], "b": [4, 5, 8]}
    assert "".join(turns("abc", 2)[0]) == "abc" + "abc" + "cba"


def test_a_machine_that_slows_down_steadily_favours_nobody():
    """The cost of a turn is its place in time: over an even number of rounds the two sums agree."""
    _, results = turns("ab", 8)
    assert sum(results["a"]) == sum(results["b"])


def test_what_is_measured_is_seconds_unless_another_measure_is_given():
    results = _rounds.alternate({"nothing": lambda: None}, 2)
    assert len(results["nothing"]) == 2 and all(0 <= t < 1 for t in results["nothing"])


@pytest.mark.parametrize("values", [[5.0], [1.0, 3.0], [4.0, 1.0, 2.0, 3.0, 5.0], [7.0, 9.0, 8.0, 100.0]], ids=str)
def test_spread_is_half_the_distance_of_the_quartiles_over_the_median(values):
    numpy = pytest.importorskip("numpy")
    low, middle, high = numpy.quantile(values, [0.25, 0.5, 0.75])  # linear between neighbours, as "inclusive" is
    assert _rounds.spread(values) == pytest.approx((high - low) / 2 / middle)


def test_one_wild_round_moves_neither_the_median_nor_the_spread_much():
    calm, wild = [10.0, 11.0, 10.5, 10.2, 10.8, 10.4, 10.6], [10.0, 11.0, 10.5, 10.2, 10.8, 10.4, 9999.0]
    assert _rounds.spread(wild) < 2 * _rounds.spread(calm)
    cell = _rounds.Row("w", "s", "tok/s", wild).cells()[2]
    assert cell.startswith("10.5 tok/s ±")


def row(ours, peer=None, limit=None, **changes):
    return _rounds.Row("what", "size", "s", ours, peer, limit, **changes)


def test_a_ratio_above_one_means_ours_is_better_in_either_direction():
    speed = row([20.0, 30.0], [10.0, 10.0])
    cost = row([20.0, 30.0], [10.0, 10.0], more_is_better=False)
    assert speed.ratios(speed.peer) == [2.0, 3.0] and cost.ratios(cost.peer) == [0.5, pytest.approx(1 / 3)]


def test_ratios_are_formed_round_by_round():
    """A machine ten times slower in one round slows both: the ratio does not notice, the quotient of means would."""
    slow = [1.0, 10.0, 1.0]
    ours, peer = [2.0 / s for s in slow], [1.0 / s for s in slow]
    assert row(ours, peer).ratios(peer) == pytest.approx([2.0, 2.0, 2.0])
    uneven = row([1.0, 100.0, 3.0], [2.0, 100.0, 1.0])
    assert statistics.median(uneven.ratios(uneven.peer)) == 1.0
    assert uneven.cells()[4] == "1.00 (0.50 to 3.00)"
    with pytest.raises(ValueError):
        row([1.0, 2.0], [1.0]).ratios([1.0])


def test_a_row_says_what_size_ours_peer_ratio_limit_share_and_machine():
    cells = row([2.0, 4.0, 3.0], [1.5] * 3, [6.0] * 3).cells()
    assert cells[:8] == ["what", "size", "3 s ±17 %", "1.5 s ±0 %", "2.00 (1.33 to 2.67)", "6 s ±0 %", "50 %", "3"]
    assert len(cells) == len(_rounds.COLUMNS) and "cores" in cells[-1]


def test_without_peer_or_limit_a_row_has_dashes(capsys):
    assert row([2.0]).cells()[3:7] == ["-", "-", "-", "-"]
    _rounds.show([row([2.0])])
    header, rule, line = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") == len(_rounds.COLUMNS) + 1


def test_a_missing_peer_is_named_in_one_line_with_the_way_to_get_it(capsys, monkeypatch):
    assert _rounds.has_peer("json")
    monkeypatch.setattr(_rounds.importlib.util, "find_spec", lambda name: None)
    assert not _rounds.has_peer("transformers")
    line, = capsys.readouterr().out.splitlines()
    assert "transformers is not installed" in line and "pip install transformers==" in line


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--threads", "-1"]], ids=str)
def test_impossible_options_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        _rounds.options("text", words)
    assert "must be at least 1" in capsys.readouterr().err


def test_seven_rounds_unless_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "torch")  # so that this process keeps its number of threads
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _rounds.options("text", []).rounds == 7 and not _rounds.options("text", []).small
    assert _rounds.options("text", ["--threads", "3"]).threads == 3 and _rounds.os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.long
@pytest.mark.parametrize("name", ["decoding", "fine_tuning", "gpu", "importing", "pretraining", "rope", "training",
                                  pytest.param("web", marks=pytest.mark.skipif(
                                      not importlib.util.find_spec("uvicorn"), reason="pip install minillama[web]"))])
def test_the_benchmark_runs_and_prints_a_table(name):
    done = subprocess.run([sys.executable, BENCH / f"{name}.py", "--rounds", "1", "--small", "--threads", "1"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) >= 3 and {line.count("|") for line in lines} == {len(_rounds.COLUMNS) + 1}


@pytest.mark.long
def test_the_race_of_methods_runs_and_prints_a_row_for_each(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "tuning.py", "--small", "--threads", "1", "--out", tmp_path],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) == 2 + 17


MUTANTS = [
    Mutant("bench._rounds", "names if turn % 2 == 0 else reversed(names)", "names",
           test_contenders_take_turns_and_every_second_round_goes_backwards),
    Mutant("bench._rounds", "names if turn % 2 == 0 else reversed(names)", "names",
           test_a_machine_that_slows_down_steadily_favours_nobody),
    Mutant("bench._rounds", "    for work in contenders.values():\n        work()\n", "",
           test_contenders_take_turns_and_every_second_round_goes_backwards),
    Mutant("bench._rounds", "(high - low) / 2 /", "(high - low) /",
           lambda: test_spread_is_half_the_distance_of_the_quartiles_over_the_median([1.0, 3.0])),
    Mutant("bench._rounds", 'n=4, method="inclusive"', 'n=4, method="exclusive"',
           lambda: test_spread_is_half_the_distance_of_the_quartiles_over_the_median([1.0, 3.0])),
    Mutant("bench._rounds", "mine / theirs if self.more_is_better else theirs / mine", "mine / theirs",
           test_a_ratio_above_one_means_ours_is_better_in_either_direction),
    Mutant("bench._rounds", '"-" if ratio is None else f"{statistics.median(ratio)',
           '"-" if ratio is None else f"{statistics.median(self.ours) / statistics.median(self.peer)',
           test_ratios_are_formed_round_by_round),
    Mutant("bench._rounds", 'f"{statistics.median(values):.4g}', 'f"{statistics.mean(values):.4g}',
           test_one_wild_round_moves_neither_the_median_nor_the_spread_much),
]
