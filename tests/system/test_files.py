"""Atomic files: a reader sees the old file or the new one, whatever happens in between."""

import errno
import os
import stat
import sys

import pytest
import torch
from mutants import Mutant

from minillama.system.files import atomic_folder, atomic_write, fcntl, open_to_append, remove_dead


class Crash(Exception):
    pass


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"old")
    return tmp_path / "model.bin"


def test_the_new_file_appears_only_when_it_is_whole(old):
    with atomic_write(old) as file:
        file.write(b"ne")
        file.flush()
        assert old.read_bytes() == b"old"
        file.write(b"w")
    assert old.read_bytes() == b"new" and names(old.parent) == ["model.bin"]


def test_a_crash_leaves_the_old_file_and_nothing_else(old):
    with pytest.raises(Crash), atomic_write(old) as file:
        file.write(b"half")
        raise Crash
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.bin"]


def test_a_crash_where_no_file_was_leaves_none(tmp_path):
    with pytest.raises(Crash), atomic_write(tmp_path / "new.bin"):
        raise Crash
    assert names(tmp_path) == []


def test_a_missing_folder_is_made(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "c.bin") as file:
        file.write(b"x")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"x"


def test_text_is_utf8_and_its_newlines_stay(tmp_path):
    with atomic_write(tmp_path / "t.txt", "w") as file:
        file.write("ü\r\nllama\n")
    assert (tmp_path / "t.txt").read_bytes() == "ü\r\nllama\n".encode()


@pytest.mark.parametrize("mode", ["r", "a", "wt", "r+b", ""])
def test_a_mode_that_does_not_replace_the_file_is_refused(old, mode):
    with pytest.raises(ValueError, match="use 'wb' for bytes or 'w' for text"), atomic_write(old, mode):
        pass
    assert old.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_is_as_readable_as_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "f"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask


def test_the_bytes_reach_the_disk_before_the_name_changes(old, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    with atomic_write(old) as file:
        file.write(b"new")
    assert calls == ["fsync", "replace"]


def test_lines_are_added_at_the_end(old):
    for line in ("er \u00fc\r\n", "est\n"):
        with open_to_append(old) as file:
            file.write(line)
    assert old.read_bytes() == "older \u00fc\r\nest\n".encode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])  # refused when it is closed, and at once
def test_a_line_that_finds_no_room_is_an_error_that_names_the_file(size):
    with pytest.raises(OSError, match="No space left") as told, open_to_append("/dev/full") as file:
        file.write("x" * size)
    assert told.value.filename == "/dev/full"


def _in_a_new_folder(law):
    """A mutant's law has no fixtures: give it a folder with the old file in it."""
    import tempfile
    from pathlib import Path

    def run():
        with tempfile.TemporaryDirectory() as folder:
            old = Path(folder) / "model.bin"
            old.write_bytes(b"old")
            law(old)

    return run


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with atomic_folder(tmp_path / name) as folder:
            (folder / "file").write_bytes(b"whole")
            assert not (tmp_path / name / "file").exists()
        assert (tmp_path / name / "file").read_bytes() == b"whole"
        if sys.platform != "win32":
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o500 == 0o500
    with pytest.raises(Crash), atomic_folder(tmp_path / "half") as folder:
        (folder / "file").write_bytes(b"half")
        raise Crash
    with pytest.raises(FileExistsError, match="new exists: choose another place"), atomic_folder(tmp_path / "new"):
        pass
    assert names(tmp_path) == ["empty", "new"] and names(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("make", ["torch", "bytes", "text"])
def test_a_full_disk_is_told_with_the_name_that_was_given_whoever_writes(tmp_path, make):
    """A limit on the size of files stands for the disk; torch.save turns the error into one of its own."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    path, before = tmp_path / "state.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"old")
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as told, atomic_write(path, "w" if make == "text" else "wb") as file:
            torch.save({"x": torch.zeros(100_000)}, file) if make == "torch" else \
                file.write("x" * 400_000 if make == "text" else bytes(400_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(path)) and told.value.strerror
    assert path.read_bytes() == b"old" and names(tmp_path) == ["state.pt"]


def test_an_error_of_a_folder_in_the_making_names_the_place_that_was_given(tmp_path):
    with pytest.raises(OSError) as told, atomic_folder(tmp_path / "new") as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "params.json"))
    assert told.value.filename == str(tmp_path / "new" / "params.json") and names(tmp_path) == []


def test_an_error_of_what_is_read_meanwhile_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as told, atomic_write(tmp_path / "new"):
        open(tmp_path / "source")
    assert told.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("length", [1, 199, 200, 201, 255])
def test_any_name_that_the_system_allows_can_be_written(tmp_path, length):
    name = "n" * length
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
    with atomic_folder(tmp_path / "f" / name) as folder:
        (folder / "x").write_bytes(b"x")
    assert names(tmp_path) == sorted(["f", name]) and names(tmp_path / "f") == [name]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="their names are text")
def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    name = os.fsdecode(b"q\xff\xfe")
    with atomic_write(tmp_path / name) as file:
        file.write(b"x")
    assert names(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_leads_to_what_is_written_and_stays(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    for link, target in (("1", "old"), ("2", "new"), ("3", "empty"), ("4", "made"), ("loop", "loop")):
        (tmp_path / link).symlink_to(target)
    for link in "12":
        with atomic_write(tmp_path / link) as file:
            file.write(link.encode())
    for link in "34":
        with atomic_folder(tmp_path / link) as folder:
            (folder / link).touch()
    assert [(tmp_path / name).read_bytes() for name in ("old", "new")] == [b"1", b"2"]
    assert names(tmp_path / "empty") == ["3"] and names(tmp_path / "made") == ["4"]
    assert all((tmp_path / link).is_symlink() for link in "1234")
    for write in (atomic_write, atomic_folder):
        with pytest.raises(OSError) as told, write(tmp_path / "loop"):
            pass
        assert told.value.errno == errno.ELOOP


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_a_device_and_a_folder_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ends = os.openpty()  # a device of its own: a fault that replaced os.devnull would harm the whole computer
    (tmp_path / "device").symlink_to(os.ttyname(ends[1]))
    for path in (tmp_path / "pipe", tmp_path / "device", tmp_path):
        with pytest.raises(ValueError, match="give the path of a file"), atomic_write(path):
            pass
    assert names(tmp_path) == ["device", "pipe"] and not os.path.isfile(tmp_path / "device")
    for end in ends:
        os.close(end)


@pytest.mark.skipif(fcntl is None, reason="this system has no flock")
def test_temporaries_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    for name in (".f.abcdefgh.partial", ".g.abcdefgh.partial", ".f.txt", "f.abcdefgh.partial", ".f.abc.partial"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".f.12345678.partial").mkdir()
    (tmp_path / ".f.12345678.partial" / "part").touch()
    with atomic_write(tmp_path / "f") as living:
        living.write(b"1")
        with atomic_write(tmp_path / "f") as second:
            second.write(b"2")
        assert (tmp_path / "f").read_bytes() == b"2"
    assert (tmp_path / "f").read_bytes() == b"1"
    others = [".f.abc.partial", ".f.txt", ".g.abcdefgh.partial", "f", "f.abcdefgh.partial"]
    assert names(tmp_path) == others
    remove_dead(tmp_path)
    assert names(tmp_path) == [name for name in others if name != ".g.abcdefgh.partial"]


MUTANTS = [
    Mutant("minillama.system.files", "            os.unlink(temporary)", "            pass",
           _in_a_new_folder(test_a_crash_leaves_the_old_file_and_nothing_else)),
    Mutant("minillama.system.files", "raw = _RememberingFile(handle, \"wb\")", "raw = _RememberingFile(target, \"wb\")",
           _in_a_new_folder(test_the_new_file_appears_only_when_it_is_whole)),
    Mutant("minillama.system.files", 'if mode not in ("wb", "w"):', "if False:",
           _in_a_new_folder(lambda old: test_a_mode_that_does_not_replace_the_file_is_refused(old, "a"))),
    Mutant("minillama.system.files", 'newline="") if mode == "w"', 'newline="\\r\\n") if mode == "w"',
           _in_a_new_folder(lambda old: test_text_is_utf8_and_its_newlines_stay(old.parent))),
]
