"""A reader sees one state of a file that is replaced without pause, and waits for nothing that is no file."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import in_a_folder
from mutants import Mutant

from minillama.checkpoint.pth import read_pth
from minillama.checkpoint.safetensors import read_safetensors
from minillama.system.snapshot import open_snapshot
from minillama.train.data import open_tokens
from minillama.train.resume import load_training_state

WRITER = """
import itertools, sys
import torch
from minillama.checkpoint.safetensors import write_safetensors
from minillama.system.files import atomic_write
from minillama.train.data import write_tokens

class Unary:  # n times the id 1, but for the size of the vocabulary
    vocab_size, bos_id, eos_id = 9, None, 2
    def encode(self, text, bos, eos):
        return [len(text)] * len(text) + [2]

torch.set_num_threads(1)
folder = sys.argv[1]
for step in itertools.count(1):
    weight = torch.full((40 + step % 3, 50), float(step))  # of several lengths: offsets move
    for name in ("state", "weights"):
        content = {"step": step, "model": {"w": weight}} if name == "state" else {"w": weight, "n": weight[0].clone()}
        with atomic_write(f"{folder}/{name}.pt") as file:
            torch.save(content, file)
    write_safetensors(f"{folder}/weights.safetensors", {"w": weight, "n": weight[0].clone()})
    write_tokens(f"{folder}/ids.bin", ["x" * (1 + step % 7)], Unary(), progress=False)
    if step == 1:
        print("ready", flush=True)
"""


def reads(folder):
    """Of each file, whether this read of it saw two states at once."""
    state = load_training_state(folder / "state.pt")
    mixed = [bool((state["model"]["w"] != state["step"]).any())]
    for read, name in ((read_pth, "weights.pt"), (read_safetensors, "weights.safetensors")):
        tensors = read(folder / name)
        mixed.append(bool((tensors["w"] != tensors["n"][0]).any()))
    ids = open_tokens(folder / "ids.bin").ids
    mixed.append(list(ids) != [len(ids) - 1] * (len(ids) - 1) + [2])
    return mixed


def count_mixed(folder, loads, seconds):
    """(loads, mixed ones) beside a process that replaces all files without pause."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], env=environment, stdout=subprocess.PIPE)
    try:
        assert writer.stdout.readline() == b"ready\n"
        end, seen = time.monotonic() + seconds, []
        while len(seen) < loads and time.monotonic() < end:
            seen.append(reads(folder))
        assert writer.poll() is None, "the writer died"
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    return len(seen), np.sum(seen, axis=0).tolist()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace an open file")
@pytest.mark.parametrize(("loads", "seconds"), [(400, 4), pytest.param(10_000, 600, marks=pytest.mark.long)])
def test_no_load_of_a_file_that_is_replaced_without_pause_mixes_two_states(tmp_path, loads, seconds):
    done, mixed = count_mixed(tmp_path, loads, seconds)
    assert done > 20 and mixed == [0, 0, 0, 0], (done, mixed)
    assert loads < 1000 or done == loads


def test_an_opened_file_stays_the_old_one_when_it_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open_snapshot(path) as (file, name):
        (tmp_path / "new").write_bytes(b"longer and new")
        if os.name != "nt":
            os.replace(tmp_path / "new", path)
        with open(name, "rb") as again:
            assert (file.read(), again.read()) == (b"old", b"old")


def test_without_names_of_open_files_a_replaced_file_is_told(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.path.exists", lambda path: False)
    with open_snapshot(path) as (_, name):
        assert name == str(path)
    with pytest.raises(ValueError, match="was replaced while it was read"), open_snapshot(path):
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFO")
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, read in itertools.product(("pipe", "zeros"), (read_pth, read_safetensors, open_tokens)):
        with pytest.raises(ValueError, match="is not a regular file"):
            read(tmp_path / name)


def test_a_folder_is_an_error_of_the_system_or_no_regular_file(tmp_path):
    with pytest.raises((OSError, ValueError)):
        read_pth(tmp_path)


def law():
    in_a_folder(test_an_opened_file_stays_the_old_one_when_it_is_replaced)


MUTANTS = [
    Mutant("minillama.system.snapshot", 'f"/dev/fd/{file.fileno()}"', "os.fspath(path)", law),
]
