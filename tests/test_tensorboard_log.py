"""Laws of `--tensorboard`: each recorded number is a point of its curve; without the extra nothing begins."""

import contextlib
import io
import json
import sys

import pytest
import tensorboard_log
from mutants import Mutant
from tensorboard_log import add_row, record_into, take_folder

from minillama.train.resumable import ResumableRun

ROWS = [{"step": 1, "loss": 2.5, "lr": 1e-3}, {"step": 1, "held_out_loss": 2.25}, {"step": 2, "loss": 1.5, "lr": 5e-4}]


class Kept:
    """A writer in memory."""

    def __init__(self):
        self.points = []

    def add_scalar(self, *point):
        self.points.append(point)

    def flush(self):
        pass


class Counted(ResumableRun):
    unit = "step"

    def __init__(self, is_main=True):
        self.history, self.metrics, self.is_main = [], io.StringIO(), is_main


def recorded(run):
    writer, plain = Kept(), ResumableRun.record
    assert record_into(writer) is plain
    try:
        for row in ROWS:
            run.record(row)
    finally:
        ResumableRun.record = plain
    return writer.points


def test_each_number_of_a_row_is_a_point_and_the_lines_stay():
    run = Counted()
    assert recorded(run) == [("loss", 2.5, 1), ("lr", 1e-3, 1), ("held_out_loss", 2.25, 1), ("loss", 1.5, 2),
                             ("lr", 5e-4, 2)]
    assert run.history == ROWS
    assert [json.loads(line) for line in run.metrics.getvalue().splitlines()] == ROWS


def test_of_several_processes_one_writes_curves():
    assert recorded(Counted(is_main=False)) == []


@pytest.mark.parametrize(("rank", "opened"), [(None, ["d"]), ("0", ["d"]), ("1", []), ("3", [])])
def test_of_several_processes_one_has_a_file_of_curves(rank, opened, monkeypatch):
    """Of those that torchrun starts: the others would leave a file without a point each."""
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    folders, ran, writer = [], [], Kept()
    writer.close = lambda: None
    monkeypatch.setattr(tensorboard_log, "open_writer", lambda folder: folders.append(folder) or writer)
    monkeypatch.setattr(tensorboard_log, "minillama", lambda words: ran.append(words) or 0)
    assert tensorboard_log.main(["ppo", "--tensorboard", "d", "--shard"]) == 0
    assert folders == opened and ran == [["ppo", "--shard"]]


def test_the_flag_is_taken_out_wherever_it_stands():
    for words in (["ppo", "--tensorboard", "d", "--lr", "1"], ["ppo", "--lr", "1", "--tensorboard=d"]):
        assert take_folder(words) == ("d", ["ppo", "--lr", "1"])
    for words, message in ((["ppo", "--tensorboard"], "names no folder"),
                           (["ppo", "--tensorboard", "--lr", "1"], "names no folder"),
                           (["info", "--tensorboard", "d"], "one of pretrain, sft, reward, ppo")):
        with pytest.raises(ValueError, match=message):
            take_folder(words)


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(tensorboard_log, "minillama", lambda words: pytest.fail("work began"))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert tensorboard_log.main(["ppo", "--tensorboard", "d"]) == 2
    assert said.getvalue().count("\n") == 1 and "minillama[tensorboard]" in said.getvalue()


def test_what_the_package_reads_back_is_what_was_recorded(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="needs the extra `tensorboard`")
    writer = tensorboard_log.open_writer(str(tmp_path))
    for row in ROWS:
        add_row(writer, "step", row)
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("held_out_loss")] == [(1, 2.25)]


def second_of_two():
    with pytest.MonkeyPatch.context() as patch:
        test_of_several_processes_one_has_a_file_of_curves("1", [], patch)


MUTANTS = [
    Mutant("tensorboard_log", 'if os.environ.get("RANK", "0") == "0" else None', "", second_of_two),
    Mutant("tensorboard_log", "if name != unit:", "if True:", test_each_number_of_a_row_is_a_point_and_the_lines_stay),
    Mutant("tensorboard_log", "plain(run, row)", "pass", test_each_number_of_a_row_is_a_point_and_the_lines_stay),
    Mutant("tensorboard_log", "if run.is_main:", "if True:", test_of_several_processes_one_writes_curves),
]
