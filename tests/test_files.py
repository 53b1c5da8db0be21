"""Atomic files: a reader sees the old file or the new one, whatever happens in between."""

import os
import stat
import sys

import pytest
from mutants import Mutant

from minillama.files import atomic_folder, atomic_write, open_to_append


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


MUTANTS = [
    Mutant("minillama.files", "            os.unlink(temporary)", "            pass",
           _in_a_new_folder(test_a_crash_leaves_the_old_file_and_nothing_else)),
    Mutant("minillama.files", "os.fdopen(handle, mode, **text)", "open(path, mode, **text)",
           _in_a_new_folder(test_the_new_file_appears_only_when_it_is_whole)),
    Mutant("minillama.files", 'if mode not in ("wb", "w"):', "if False:",
           _in_a_new_folder(lambda old: test_a_mode_that_does_not_replace_the_file_is_refused(old, "a"))),
    Mutant("minillama.files", '"newline": ""', '"newline": "\\r\\n"',
           _in_a_new_folder(lambda old: test_text_is_utf8_and_its_newlines_stay(old.parent))),
]
