"""No command destroys work, whatever stops it: killed at a system call, out of disk from there on, or given twice."""

import subprocess
import sys

import pytest
from faulty_runs import FaultyRuns, preloaded, why_not_here
from faulty_trials import COMMANDS, Workshop, chosen_calls, differences, same, trial, two_at_once

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


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    with FaultyRuns(folder) as runs:
        yield Workshop(folder, runs)


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


def test_a_run_is_killed_before_its_first_call_and_goes_on_from_a_stop(workshop):
    (name, data), calls = [*workshop.undisturbed("tokenizer train")[0].items()][0], workshop.undisturbed(
        "tokenizer train")[1]
    words, place, runs = workshop.words(COMMANDS["tokenizer train"]), workshop.place, workshop.runs
    workshop.clear()
    assert runs.run(words, place, 1, "killed").code == -9 and not any(place.iterdir())
    stopped = runs.run(words, place, calls // 2, "stopped")
    assert stopped.code is None and not (place / name).exists()
    ended = runs.go_on(stopped)
    assert (ended.code, ended.calls) == (0, calls) and (place / name).read_bytes() == data
    assert runs.run(["tokenizer"], place).code == 2


def test_only_what_a_file_says_of_time_may_differ():
    rows = [b'{"step": 1, "seconds": 2}\n', b'{"step": 1, "seconds": 3}\n', b'{"step": 2, "seconds": 2}\n']
    assert same("m.jsonl", rows[0], rows[1]) and not same("m.jsonl", rows[0], rows[2])
    assert not same("m.jsonl", rows[0], rows[1][:-3]) and not same("m.json", rows[0], rows[1])
    assert differences({"a": b"1", "b": b"2", ".b.x.partial": b""}, {"a": b"1", "b": b"3", "c": None}) == [
        "c is missing", ".b.x.partial is left", "b differs"]


def test_half_the_chosen_calls_are_the_last_ones():
    chosen = chosen_calls(664)
    assert len(chosen) == 50 and chosen[0] == 1 and chosen[25:] == list(range(640, 665))
    assert chosen_calls(10) == list(range(1, 11))


@pytest.mark.parametrize("fault", ["killed", "full"])
@pytest.mark.parametrize("name", ["sft lora", "merge"])
def test_a_disturbed_command_leaves_nothing_half_and_goes_on_to_the_same_bits(name, fault, workshop):
    assert not disturbed(workshop, name, fault, 5)


def disturbed(workshop, name, fault, count):
    total = workshop.undisturbed(name)[1]
    assert total > 3, "it writes nothing: this test could not fail"
    return [wrong for at in chosen_calls(total, count) for wrong in trial(workshop, name, fault, at)]


def test_of_two_runs_in_one_place_one_is_refused(workshop):
    total = workshop.undisturbed("merge")[1]
    assert not [wrong for at in (1, total // 2, total) for wrong in two_at_once(workshop, "merge", at)]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["killed", "full"])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_disturbed_at_50_of_its_calls_goes_on_to_the_same_bits(name, fault, workshop):
    assert not disturbed(workshop, name, fault, 50)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_runs_of_every_command_one_is_refused(name, workshop):
    total = workshop.undisturbed(name)[1]
    assert not [wrong for at in chosen_calls(total, 8) for wrong in two_at_once(workshop, name, at)]
