"""Laws of the tensors of a sharded run on disk: whole or refused, and never two sets where one is meant."""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked import in_processes, writer_class
from mutants import Mutant
from test_sharded import learn, run_of

from minillama.train import sharded_checkpoint
from minillama.train.sharded import ShardedPretrain
from minillama.train.sharded_checkpoint import begin_shards, finish_shards, read_shards, remove_shards

resource = pytest.importorskip("resource", reason="a limit on files stands for a full disk")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


@contextlib.contextmanager
def group_of_one(folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def write_shards(folder, step, tensors, keep=""):
    """Begin and finish -> the name of the set."""
    name, writing = begin_shards(folder, step, tensors, keep)
    finish_shards(folder / name, writing)
    return name


def tensors():
    return {"model.w": torch.arange(15.0).view(5, 3), "m.w": torch.full((5, 3), 0.5), "v.w": torch.ones(0, 3)}


@pytest.fixture
def written(tmp_path):
    with group_of_one(tmp_path):
        yield tmp_path / write_shards(tmp_path, 7, tensors())


def test_what_was_written_is_read_back_in_place(written):
    empty = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    read_shards(written, empty)
    assert written.name == "shards-7" and all(torch.equal(empty[name], tensor) for name, tensor in tensors().items())


def damage_is_refused(written, spoil):
    spoil(written)
    with pytest.raises(ValueError, match="is damaged or no checkpoint: .*: begin anew in another --out") as told:
        read_shards(written, tensors())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("spoil", [
    lambda path: (path / ".metadata").write_bytes(b"\x80" + (path / ".metadata").read_bytes()[1:] + b"."),
    lambda path: (path / ".metadata").unlink(), lambda path: (path / "metadata.sha256").unlink(),
    lambda path: (path / "__0_0.distcp").unlink(), lambda path: (path / "__0_0.distcp").write_bytes(b"no"),
    lambda path: path.rename(path.with_name("other"))])
def test_a_set_that_is_damaged_or_not_whole_is_refused_in_one_line(written, spoil):
    damage_is_refused(written, spoil)


def test_shards_of_other_tensors_are_refused(written):
    for wrong in ({"model.x": torch.zeros(5, 3)}, {"model.w": torch.zeros(4, 3)}):
        with pytest.raises(ValueError, match="is damaged or no checkpoint"):
            read_shards(written, wrong)


def test_only_whole_names_of_sets_are_removed_and_never_the_one_that_is_kept(tmp_path):
    for name in ("shards-1", "shards-12", "shards-x", "shards-1.old", "text"):
        (tmp_path / name).mkdir()
    remove_shards(tmp_path, keep="shards-12")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards-1.old", "shards-12", "shards-x", "text"]


def test_a_new_set_leaves_the_one_that_counts(written):
    write_shards(written.parent, 8, tensors())
    assert not written.exists()
    write_shards(written.parent, 9, tensors(), keep="shards-8")
    assert sorted(path.name for path in written.parent.glob("shards-*")) == ["shards-8", "shards-9"]


def test_a_disk_that_is_full_is_told_in_a_line_and_the_set_that_counts_stays(written):
    before, limits = (written / "__0_0.distcp").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"shards-8 could not be written \(process 0: .*: is the disk full") as told:
            write_shards(written.parent, 8, {"model.w": torch.zeros(100_000)}, keep="shards-7")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value) and (written / "__0_0.distcp").read_bytes() == before
    read_shards(written, tensors())


def hold(monkeypatch, until):
    """Let PyTorch's writer wait for an event before its first byte."""
    write = writer_class().write_data
    monkeypatch.setattr(writer_class(), "write_data", lambda *given: (until.wait(60), write(*given))[1])


def what_is_written_is_what_was_given(folder, monkeypatch):
    changed, go_on = tensors(), threading.Event()
    hold(monkeypatch, go_on)
    name, writing = begin_shards(folder, 8, changed)
    assert not writing.done()
    for tensor in changed.values():
        tensor.fill_(-1.0)
    go_on.set()
    finish_shards(folder / name, writing)
    read_shards(folder / name, changed)
    assert all(torch.equal(changed[name], tensor) for name, tensor in tensors().items())


def test_weights_that_change_while_they_are_written_are_written_as_they_were(tmp_path, monkeypatch):
    with group_of_one(tmp_path):
        what_is_written_is_what_was_given(tmp_path, monkeypatch)


def test_a_set_that_is_being_written_does_not_count(written, monkeypatch):
    go_on = threading.Event()
    hold(monkeypatch, go_on)
    name, writing = begin_shards(written.parent, 8, tensors(), keep="shards-7")
    with pytest.raises(ValueError, match="it holds no whole set of shards"):
        read_shards(written.parent / name, tensors())
    read_shards(written, tensors())
    go_on.set()
    finish_shards(written.parent / name, writing)


def two_learn(folder, resume=False, kind=ShardedPretrain):
    """A run of five steps, with checkpoints 0, 2, 4 and 5 -> the run, whose weights are in `weights`."""
    run = run_of(kind, folder)
    run.weights = learn(run, resume)
    return run


def killed(rank, size, folder, victim, moment, shards="shards-4"):
    """Two processes, of which one kills itself: in the midst of writing these shards, or when all is written but the
    state."""
    def die_at(path, place=victim):
        if rank == place and Path(path).name == shards:
            os.kill(os.getpid(), signal.SIGKILL)

    write, finish = writer_class().write_data, sharded_checkpoint.finish_shards
    if moment == "writing":
        def write_half(writer, *given):
            done = write(writer, *given)
            die_at(writer.path)
            return done

        writer_class().write_data = write_half
    else:
        def finish_only(path, writing):
            finish(path, writing)
            die_at(path)

        sharded_checkpoint.finish_shards = finish_only
    two_learn(folder / f"{moment}-{victim}")


def one_killed_writing(rank, size, folder):
    killed(rank, size, folder, 0, "writing")


def other_killed_writing(rank, size, folder):
    killed(rank, size, folder, 1, "writing")


def one_killed_before_the_state(rank, size, folder):
    killed(rank, size, folder, 0, "written")


def killed_writing_the_first(rank, size, folder):
    killed(rank, size, folder / "first", 1, "writing", "shards-0")


def killed_before_the_first_counts(rank, size, folder):
    killed(rank, size, folder / "first", 0, "written", "shards-0")


FIRST = {"first/writing-1": killed_writing_the_first, "first/written-0": killed_before_the_first_counts}
KILLED = {"writing-0": one_killed_writing, "writing-1": other_killed_writing,
          "written-0": one_killed_before_the_state, **FIRST}


class Watched(ShardedPretrain):
    """Keeps of every step which checkpoint is being written when it is done, and the state that counts."""

    def advance(self):
        said = super().advance()
        begun = self.writing and self.writing[0]["step"]
        if self.step <= 3:  # then let it be written
            self.seen = {**getattr(self, "seen", {}), self.step: (begun, self.shards)}
        else:
            go_on.set()
        return said


go_on = threading.Event()


def learn_all(rank, size, folder):
    """What was killed goes on, or begins anew where no checkpoint counts, and one run is never stopped; its writer is
    slow."""
    alone = two_learn(folder / "alone")
    same = {}
    for name in KILLED:
        if name in FIRST:
            with pytest.raises(FileNotFoundError, match="nothing to resume, start with .*without --resume") as told:
                two_learn(folder / name, resume=True)
            assert "\n" not in str(told.value) and (folder / name / "shards-0").is_dir()
        state = torch.load(folder / name / "training_state.pt")["shards"] if rank == 0 and name not in FIRST else ""
        ours = two_learn(folder / name, resume=name not in FIRST).weights
        same[name] = [state, all(torch.equal(ours[key], weight) for key, weight in alone.weights.items())]
    write = writer_class().write_data
    writer_class().write_data = lambda writer, *given: (
        Path(writer.path).name == "shards-2" and go_on.wait(60), write(writer, *given))[1]
    slow = two_learn(folder / "slow", kind=Watched)
    same["slow"] = [slow.shards, all(torch.equal(slow.weights[key], weight) for key, weight in alone.weights.items())]
    if rank == 0:
        (folder / "same.json").write_text(json.dumps({"same": same, "seen": slow.seen}))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "first").mkdir()
    for function in KILLED.values():
        with pytest.raises(AssertionError, match="SIGKILL"):
            in_processes(function, [2], folder)
        (folder / "group-2").unlink()  # of those who did not leave it
    in_processes(learn_all, [2], folder)
    return json.loads((folder / "same.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("name", [*KILLED, "slow"])
def test_a_run_killed_while_it_writes_ends_bit_for_bit_like_the_one_that_was_not(name, two):
    state, same = two["same"][name]
    assert same and state == {"slow": "shards-5", **dict.fromkeys(FIRST, "")}.get(name, "shards-2")


@pytest.mark.long
def test_training_goes_on_while_a_checkpoint_is_written_and_the_one_before_it_counts(two):
    assert two["seen"]["3"] == [2, "shards-0"]


def full_disk(rank, size, folder):
    """The writer of process 1 fails behind step 2."""
    def fail(writer, *given):
        if rank == 1 and Path(writer.path).name == "shards-2":
            raise OSError(28, "No space left on device")
        return write(writer, *given)

    write, writer_class().write_data = writer_class().write_data, fail
    run = run_of(ShardedPretrain, folder / "full")
    with pytest.raises(OSError, match=r"shards-2 could not be written \(process 1: .*No space left.*is the disk"):
        run.train(progress=False)
    assert run.step <= 4 and run.shards == "shards-0" and (folder / "full" / "shards-0" / ".metadata").is_file()


@pytest.mark.long
def test_a_writer_that_fails_ends_all_processes_with_the_same_line(tmp_path):
    in_processes(full_disk, [2], tmp_path)


def as_it_was_written():
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        test_weights_that_change_while_they_are_written_are_written_as_they_were(Path(folder), patch)


def one_set_is_kept():
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        test_only_whole_names_of_sets_are_removed_and_never_the_one_that_is_kept(Path(folder))


MUTANTS = [Mutant(sharded_checkpoint.__name__, "and path.name != keep", "", one_set_is_kept),
           Mutant(sharded_checkpoint.__name__, "FOLDER.fullmatch(path.name) and", "FOLDER.match(path.name) and",
                  one_set_is_kept),
           Mutant(sharded_checkpoint.__name__, "checkpoint.async_save(tensors, checkpoint_id=Path(folder) / name, "
                  "process_group=group)", "__import__('concurrent.futures').futures.ThreadPoolExecutor(1).submit("
                  "checkpoint.save, tensors, checkpoint_id=Path(folder) / name, process_group=group)",
                  as_it_was_written)]
