"""One guard for --out: one run at a time in a folder, and nothing overwritten that is not the run's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillama.system.claim import MODEL_FILES, RUN_FILE, WRITTEN, claim_new, claim_run, require_finished
from minillama.system.files import fcntl

HOLD = """
import sys
from minillama.system.claim import claim_new, claim_run
with claim_run(sys.argv[2], sys.argv[3]) if sys.argv[1] == "run" else claim_new(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
needs_locks = pytest.mark.skipif(fcntl is None, reason="this system has no flock")


def names(folder):
    return sorted(entry.name for entry in Path(folder).iterdir())


def holder(*words):
    """Another process that holds a place until its stdin is closed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, words)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@needs_locks
@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_a_folder_is_refused_while_the_first_is_at_work(tmp_path, resume):
    first = holder("run", tmp_path / "out", "pretrain")
    (tmp_path / "out" / "training_state.pt").write_bytes(b"state")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "out")
    for spelling in (tmp_path / "out", tmp_path / "x" / ".." / "out", os.path.relpath(tmp_path / "out"), link):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="a run is at work in .*: wait"), \
                claim_run(spelling, "pretrain", {}, resume):
            pass
    first.kill()  # the lock goes with the process
    first.wait()
    with claim_run(tmp_path / "out", "pretrain", {}, resume=True):
        pass
    assert names(tmp_path / "out") == [RUN_FILE, "training_state.pt"]


@needs_locks
def test_a_place_that_is_being_made_is_refused_to_a_second_command_and_free_after_a_kill(tmp_path):
    first = holder("new", tmp_path / "t.model")
    with pytest.raises(ValueError, match="a run is at work in .*t.model: wait"), claim_new(tmp_path / "t.model"):
        pass
    with claim_new(tmp_path / "other.model"):
        pass
    first.kill()
    first.wait()
    assert len(names(tmp_path)) == 1  # what it held, which is nobody's now
    with claim_new(tmp_path / "t.model"):
        pass
    assert names(tmp_path) == []


@needs_locks
def test_what_a_process_left_that_was_killed_when_all_but_done_goes_although_the_place_is_refused(tmp_path):
    first = holder("new", tmp_path / "t.model")
    (tmp_path / "t.model").write_bytes(b"whole")
    with pytest.raises(FileExistsError), claim_new(tmp_path / "t.model"):
        pass
    assert len(names(tmp_path)) == 2  # it lives
    first.kill()
    first.wait()
    with pytest.raises(FileExistsError), claim_new(tmp_path / "t.model"):
        pass
    assert names(tmp_path) == ["t.model"]


@pytest.mark.parametrize("name", [*MODEL_FILES, *WRITTEN])
@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "ppo", "tour"])
def test_no_file_is_taken_over_that_no_run_made(tmp_path, name, command):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="choose another --out"), claim_run(tmp_path, command, {}, resume=True):
        raise AssertionError
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "mine"


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with claim_run(tmp_path, "sft"):
        (tmp_path / "metrics.jsonl").write_text("{}")
    assert names(tmp_path) == ["metrics.jsonl", "notes.txt", RUN_FILE]


def test_a_run_that_made_nothing_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="no text"), claim_run(tmp_path / "a" / "b", "pretrain"):
        assert names(tmp_path / "a" / "b") == [RUN_FILE]
        raise OSError("no text")
    with pytest.raises(OSError, match="no text"), claim_new(tmp_path / "a" / "b"):
        raise OSError("no text")
    assert names(tmp_path) == []


def test_a_folder_belongs_to_the_command_that_began_in_it(tmp_path):
    with claim_run(tmp_path, "pretrain"):
        (tmp_path / "train.bin").write_bytes(b"tokens")
    with pytest.raises(ValueError, match="holds a run of `pretrain`: choose another --out"), claim_run(tmp_path, "sft"):
        pass
    with claim_run(tmp_path, "pretrain"):  # killed before its first state: begins anew
        (tmp_path / "training_state.pt").write_bytes(b"state")
    for command, why in (("pretrain", "add --resume to go on with it"), ("sft", "holds a run of `pretrain`")):
        with pytest.raises(ValueError, match=why), claim_run(tmp_path, command):
            pass
    with claim_run(tmp_path, "pretrain", {}, resume=True):
        (tmp_path / "params.json").write_text("{}")
    for command in ("sft", "ppo", "reward"):
        for resume in (False, True):
            with pytest.raises(ValueError, match="choose another --out"), claim_run(tmp_path, command, {}, resume):
                pass


def test_a_finished_run_without_a_state_is_not_begun_anew(tmp_path):
    with claim_run(tmp_path, "ppo"):
        (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a model"), claim_run(tmp_path, "ppo"):
        pass


def test_a_run_of_an_older_version_goes_on(tmp_path):
    for name in ("training_state.pt", "train.bin", "metrics.jsonl", "params.json"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(ValueError, match="add --resume"), claim_run(tmp_path, "sft"):
        pass
    with claim_run(tmp_path, "sft", {}, resume=True):
        assert RUN_FILE in names(tmp_path)


def test_what_is_read_is_not_what_is_written(tmp_path):
    with claim_run(tmp_path / "m", "ppo"):
        for name in ("ppo_state.pt", "params.json"):
            (tmp_path / "m" / name).write_text("")
    (tmp_path / "link").symlink_to("m")
    for path in (tmp_path / "m", tmp_path / "link", os.path.relpath(tmp_path / "m")):
        with pytest.raises(ValueError, match="m is what --model reads"), \
                claim_run(tmp_path / "m", "ppo", {"reward": "none", "model": path}, resume=True):
            pass


def test_a_folder_without_its_last_file_is_told_as_a_run_that_is_not_finished(tmp_path):
    require_finished(tmp_path)
    with claim_run(tmp_path, "ppo"):
        (tmp_path / "consolidated.00.pth").write_bytes(b"weights")
        with pytest.raises(ValueError, match="not finished: go on with `ppo ... --out .*`") as told:
            require_finished(tmp_path)
        assert "--resume" not in str(told.value)
        (tmp_path / "ppo_state.pt").write_bytes(b"state")
        with pytest.raises(ValueError, match="go on with `ppo ... --out .* --resume`"):
            require_finished(tmp_path)
        (tmp_path / "params.json").write_text("{}")
        require_finished(tmp_path)


def test_a_tour_is_not_told_as_a_run_that_is_not_finished(tmp_path):
    with claim_run(tmp_path, "tour", {}, resume=True):
        (tmp_path / "report.html").touch()
    require_finished(tmp_path)


NOT_OURS = ("", "[]", "{}", '{"minillama run of": 3}', '{"minillama run of": []}', '{"minillama run of": "rm"}', "\x00")


@pytest.mark.parametrize("content", NOT_OURS)
def test_a_run_json_of_somebody_else_is_kept(tmp_path, content):
    (tmp_path / RUN_FILE).write_text(content)
    require_finished(tmp_path)
    with pytest.raises(ValueError, match="run.json.* is there and no run of ours made it"), claim_run(tmp_path, "sft"):
        pass
    assert (tmp_path / RUN_FILE).read_text() == content


def test_of_the_processes_of_torchrun_the_first_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "0")
    with claim_run(tmp_path, "pretrain"):
        monkeypatch.setenv("RANK", "1")
        with claim_run(tmp_path, "pretrain"):
            assert json.loads((tmp_path / RUN_FILE).read_text()) == {"minillama run of": "pretrain"}
