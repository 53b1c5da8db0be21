"""Faults are planted at the system call that is named: killed before it, no room from there on, stopped."""

import subprocess
import sys

import pytest
from faulty_runs import FaultyRuns, preloaded, why_not_here

pytestmark = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here() or "")
WRITE = """
import ctypes, os, sys
faults = ctypes.CDLL(None)
faults.arm_faults(os.path.realpath(sys.argv[1]).encode(), ctypes.c_long(int(sys.argv[2])), int(sys.argv[3]))
os.chdir(sys.argv[1])
def tell(call, *words):
    try:
        print(call(*words), end=" ", flush=True)
    except OSError as error:
        print(error.strerror, end=" ", flush=True)
tell(os.mkdir, "a")                                             # 1
file = open("a/b", "wb", buffering=0)                           # 2
tell(file.write, b"1234")                                       # 3
tell(os.posix_fallocate, file.fileno(), 0, 100)                 # 4
tell(os.ftruncate, file.fileno(), 2)                            # 5
tell(os.rename, "a/b", "a/c")                                   # 6
tell(file.write, b"56")                                         # 7
open(os.devnull, "w").write("uncounted")
open("a/c").read()
tell(os.unlink, "a/c")                                          # 8
tell(os.rmdir, "a")                                             # 9
print(faults.calls_seen())
"""
FULL_FROM_3 = "None 2 No space left on device None None No space left on device None None 9\n"


def write(folder, at, kind):
    """Exit code, stdout and what stands in the folder, of nine calls that change it."""
    place = folder / f"{at}-{kind}"
    place.mkdir()
    done = subprocess.run([sys.executable, "-S", "-c", WRITE, place, str(at), str(kind)], env=preloaded(folder),
                          capture_output=True, text=True)
    return done.returncode, done.stdout, sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_a_fault_comes_at_its_call_and_a_full_disk_stays_full(tmp_path):
    assert write(tmp_path, 0, 0) == (0, "None 4 None None None 2 None None 9\n", [])
    assert write(tmp_path, 3, 2) == (0, FULL_FROM_3, [])
    left = [write(tmp_path, at, 1) for at in range(1, 11)]
    assert [code for code, _, _ in left] == [-9] * 9 + [0]
    assert [names for _, _, names in left] == [[], ["a"], *[["a", "a/b"]] * 4, *[["a", "a/c"]] * 2, ["a"], []]


def test_commands_are_killed_stopped_and_counted_one_after_another(tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog in 2023. " * 40)
    (tmp_path / "place").mkdir()
    words = ("tokenizer", "train", "--text", tmp_path / "text.txt", "--vocab-size", 300, "--out")
    out = tmp_path / "place" / "t.model"
    with FaultyRuns(tmp_path) as runs:
        whole = runs.run([*words, out], tmp_path / "place")
        assert whole.code == 0 and whole.calls > 3 and "300 pieces" in whole.said
        data = out.read_bytes()
        out.unlink()
        assert runs.run([*words, out], tmp_path / "place", 1, "killed").code == -9 and not out.exists()
        stopped = runs.run([*words, out], tmp_path / "place", 2, "stopped")
        assert stopped.code is None and not out.exists()
        assert runs.go_on(stopped).code == 0 and out.read_bytes() == data
        assert runs.run(["tokenizer"], tmp_path).code == 2
