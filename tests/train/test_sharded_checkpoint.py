"""Laws of the tensors of a sharded run on disk: whole or refused, and never two sets where one is meant."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from mutants import Mutant

from minillama.train import sharded_checkpoint
from minillama.train.sharded_checkpoint import read_shards, remove_shards, write_shards

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


def one_set_is_kept():
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        test_only_whole_names_of_sets_are_removed_and_never_the_one_that_is_kept(Path(folder))


MUTANTS = [Mutant(sharded_checkpoint.__name__, "and path.name != keep", "", one_set_is_kept),
           Mutant(sharded_checkpoint.__name__, "FOLDER.fullmatch(path.name) and", "FOLDER.match(path.name) and",
                  one_set_is_kept)]
