"""PyTorch's files: tensors come out mapped from disk, and nothing in a file can run, lie about its size or hide."""

import os
import pickle
import zipfile

import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant

from minillama.checkpoint.pth import read_pth


class Attack:
    """Unpickled by an ordinary reader, it makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_tensors_come_back_in_their_dtypes(tmp_path):
    path, table = tmp_path / "x.pth", torch.randn(5, 3)
    state = {"a": table, "same": table, "b": torch.ones(2, dtype=torch.bfloat16),
             "turned": torch.arange(6.0).view(2, 3).T}
    torch.save(state, path)
    found = read_pth(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    assert found["a"].data_ptr() == found["same"].data_ptr()  # stored once
    found["a"].zero_()
    assert torch.equal(read_pth(path)["a"], table)  # the map is private


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    path, target = tmp_path / "x.pth", tmp_path / "made_by_the_attack"
    for state in ({"a": Attack(target)}, Attack(target), {"a": torch.ones(2), "b": [Attack(target)]}):
        torch.save(state, path)
        with pytest.raises(ValueError, match="asks for more than tensors"):
            read_pth(path)
    path.write_bytes(pickle.dumps(Attack(target)))  # no zip at all
    with pytest.raises(ValueError, match="not a .pth file"):
        read_pth(path)
    assert not target.exists()


def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    for state, message in (([torch.ones(2)], "holds a list"), ({}, "holds a dict of nothing"),
                           ({"a": 3}, "'a' is a int"), ({7: torch.ones(1)}, "'7' is a Tensor"),
                           ({"a": torch.eye(3).to_sparse()}, "torch.sparse")):
        torch.save(state, path)
        with pytest.raises(ValueError, match=message):
            read_pth(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    path, lie = tmp_path / "x.pth", torch.ones(4)
    torch.save({"a": lie}, path)
    content = path.read_bytes()
    # the pickle says size (4,), stride (1,): make it 200 numbers of a storage of 4
    small = content.replace(b"K\x04\x85", b"K\xc8\x85")
    assert small != content
    path.write_bytes(small)
    with pytest.raises(ValueError, match="damaged or asks"):
        read_pth(path)


def test_a_compressed_or_overfull_archive_is_refused(tmp_path):
    path, packed = tmp_path / "x.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ValueError, match="is compressed"):
        read_pth(packed)
    for cut in (0, 1, 1000, path.stat().st_size - 1):
        packed.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="not a .pth file, or cut short"):
            read_pth(packed)


PTH = "minillama.checkpoint.pth"
MUTANTS = [
    Mutant(PTH, "weights_only=True", "weights_only=False",
           lambda: in_a_folder(test_a_pickle_that_would_run_something_is_refused_and_runs_nothing)),
    Mutant(PTH, "entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size", "False",
           lambda: in_a_folder(test_a_compressed_or_overfull_archive_is_refused)),
]
