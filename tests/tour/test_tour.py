"""Laws of the tour: its table is complete and true, work is never done twice, and a miss is an error."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.cli.command_line import build_parser
from minillama.cli.flags import from_flags
from minillama.cli.model_arguments import choose_kernels
from minillama.corpus import stdlib_docs
from minillama.corpus.forum import threads
from minillama.tour import tour as tour_module
from minillama.tour import tour_rlhf, tour_sft
from minillama.tour.tour import TourConfig, TourReport, is_answer, text_stage, tour
from minillama.tour.tour_pages import context, text_levels

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = TourConfig(steps=31, text_steps=31, documents=600, progress=False)


@contextmanager
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FULL", "ADAPTER"):
            patch.setattr(tour_sft, name, replace(getattr(tour_sft, name), steps=4, warmup_steps=1))
        few = replace(tour_rlhf.PENALIZED, iterations=2, batch_size=4, max_new_tokens=8, epochs=2)
        smaller = {"PAIRS": 64, "HELD_OUT_PAIRS": 40, "ASKED": 16, "PENALIZED": few}
        for name, value in smaller.items():
            patch.setattr(tour_rlhf, name, value)
        yield


@pytest.fixture(scope="module")
def short_tour(tmp_path_factory):
    """A tour with too few steps to reach its bands, on a few small files."""
    folder = tmp_path_factory.mktemp("tour")
    texts = folder / "texts"
    texts.mkdir()
    for i in range(60):
        words = " ".join(f"Page {i} says that llama {i * j} met alpaca {j}, and both ate hay." for j in range(40))
        (texts / f"{i:02}.txt").write_text(words, encoding="utf-8")
    with few_steps():
        yield folder / "out", texts, tour(folder / "out", [texts], FEW)


def test_every_row_says_what_was_expected_what_came_and_where_it_is_written(short_tour):
    out, _, _ = short_tour
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == ["corpus", "tokenizer", "pretrain", "talk",
                                             "fine-tuning", "answers", "LoRA", "QLoRA", "reward model", "PPO",
                                             "PPO's ratio", "without the KL penalty", "real text", "memory"]
    for row in rows:
        assert set(row) == {"stage", "expected", "got", "pass", "seconds", "module", "lesson"}
        assert row["expected"] and row["got"] and row["seconds"] >= 0 and isinstance(row["pass"], bool)
        assert (Path(__file__).parents[2] / row["module"]).is_file()


def test_a_missed_band_makes_the_tour_fail(short_tour):
    out, _, ended_well = short_tour
    rows = {row["stage"]: row for row in json.loads((out / "report.json").read_text())["rows"]}
    assert not rows["pretrain"]["pass"], "31 steps cannot reach the entropy"
    assert rows["corpus"]["pass"] and rows["tokenizer"]["pass"] and ended_well is False


def test_the_report_is_one_file_with_pictures_and_needs_no_network(short_tour):
    page = (short_tour[0] / "report.html").read_text(encoding="utf-8")
    assert page.count('<svg role="img" aria-label="') == 9
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page), "it points outside itself"
    assert page.count("FAIL") >= 1


def test_a_second_tour_trains_nothing_again_and_says_the_same(short_tour, capsys):
    out, texts, _ = short_tour
    weights = sorted(out.glob("stages/*/consolidated.00.pth"))
    before = [path.stat().st_mtime_ns for path in weights]
    first = json.loads((out / "report.json").read_text())["rows"]
    tour(out, [texts], FEW)
    assert capsys.readouterr().out.count("found trained in") == len(weights) + 2 == 8  # and two adapters
    assert [path.stat().st_mtime_ns for path in weights] == before
    second = json.loads((out / "report.json").read_text())["rows"]
    assert [row["stage"] for row in second] == [row["stage"] for row in first]
    learned = [[row["got"] for row in rows if row["stage"] != "memory"] for rows in (first, second)]
    assert learned[0] == learned[1]  # memory is the process's, which goes on


SHORT = "import sys; from test_tour import *\nwith few_steps(): tour(Path(sys.argv[1]), [Path(sys.argv[2])], FEW)"


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_a_tour_killed_in_every_stage_ends_with_the_numbers_of_one_that_was_not(short_tour, tmp_path):
    """SIGKILL up to 400 ms after the third thing that it says, the tenth ..., and each time again from the start."""
    here, left, killed = Path(__file__).parents[1], random.Random(0), 0
    paths = os.pathsep.join(map(str, (here.parent, here, here / "tour")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for lines in itertools.count(3, 7):
        process = subprocess.Popen([sys.executable, "-c", SHORT, tmp_path / "out", short_tour[1]], env=environment,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        said = len(list(itertools.islice(process.stdout, lines)))
        if said == lines:
            time.sleep(left.uniform(0, 0.4))
            process.kill()
        process.stdout.close()
        if process.wait() == 0:
            break
        assert process.returncode == -9
        killed += 1
    assert killed >= 5
    rows = [json.loads((out / "report.json").read_text())["rows"] for out in (short_tour[0], tmp_path / "out")]
    numbers = [{row["stage"]: row["got"] for row in of if row["stage"] != "memory"} for of in rows]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize(("peak", "before", "passed"), [
    (1.5e9 - 1, 0, True), (1.5e9, 0, False), (1.5e9, 1.5e9, True), (2e9, 1.9e9, False), (None, None, None)])
def test_the_peak_of_memory_must_stay_below_its_band_unless_it_was_there_before(tmp_path, monkeypatch, capsys, peak,
                                                                               before, passed):
    report = TourReport(tmp_path, FEW)
    report.peak_before = before
    report.rows.append({"stage": "a", "expected": "1", "got": "1", "pass": True, "seconds": 1.0, "module": "m",
                      "lesson": ""})
    monkeypatch.setattr(tour_module, "peak_memory", lambda: peak)
    tour_module.write_results(report, 59.6)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["pass"] for row in report["rows"]] == [True] + [passed] * (peak is not None)
    assert report["seconds"] == 59.6
    assert [stage for stage, _ in report["skipped"]] == ["memory"] * (peak is None)
    reached = sum(row["pass"] for row in report["rows"])
    assert f"{reached} of {len(report['rows'])} numbers in their bands, 60 seconds" in (
        tmp_path / "report.html").read_text()


def test_other_settings_are_another_stage(short_tour):
    out, _, _ = short_tour
    report = TourReport(out, FEW)
    names = {report.folder("a", steps=1), report.folder("a", steps=2), report.folder("b", steps=1)}
    assert len(names) == 3 and report.folder("a", steps=1) in names


@pytest.mark.parametrize(("answer", "fits"), [
    ("Happy to help! Just paint the bell for 30 minutes. Good luck!", True),
    (" Just paint the thing for 12 minutes. That is all.", True),
    ("Just clean the bell for 30 minutes. That is all.", False),  # the question was how to paint
    ("Just paint the bell for 30 minutes.", False),  # no closing
    ("", False),
    ("Hello there.", False),
])
def test_an_answer_is_one_that_the_forum_could_have_given_to_this_verb(answer, fits):
    question = next(t.question for t in threads(0, 99) if t.question.startswith("How do I paint"))
    assert is_answer(question, answer) is fits


def fresh_tour(out, *flags):
    """The command in a process of its own, whose peak of memory is the tour's; it fails where a band is missed."""
    command = [sys.executable, "-m", "minillama", "tour", "--no-progress", "--out", str(out), *flags]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.long
def test_the_longer_run_of_the_readme_needs_fewer_bits_than_a_model_of_5_characters(tmp_path):
    """The command, its result and the level that it beats stand in one paragraph of the README."""
    shown = re.search(r"`python3 run.py (tour --text-steps[^`]*)`.*?(\d\.\d+) bits.*?(\d\.\d+)", README, flags=re.S)
    arguments = build_parser("tour").parse_args([*shown[1].split(), "--no-progress"])
    choose_kernels(arguments)
    report = TourReport(tmp_path, from_flags(TourConfig, arguments))
    text_stage(report, None)
    level = text_levels(stdlib_docs.train_and_held_out())[context(5)]
    ours = float(re.match(r"\d\.\d+", report.rows[-1]["got"])[0])
    assert ours < level
    assert [ours, level] == pytest.approx([float(shown[2]), float(shown[3])], rel=0.03)  # Python's version decides


MUTANTS = [
    Mutant("minillama.tour.tour", '{"verb": asked["verb"]}', "{}", lambda:
           test_an_answer_is_one_that_the_forum_could_have_given_to_this_verb(
               "Just clean the bell for 30 minutes. That is all.", False)),
]
