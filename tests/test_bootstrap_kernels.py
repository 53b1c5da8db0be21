"""The compiled kernels in the set-up: made once, kept while they fit, removed aloud."""

import contextlib
import io
import tempfile
import types
from pathlib import Path

import pytest
from mutants import Mutant
from test_bootstrap import toy_machine

import bootstrap


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return toy_machine(tmp_path, monkeypatch)


def test_without_a_compiler_one_line_says_so_and_all_else_works(machine, monkeypatch, capsys):
    monkeypatch.setattr(bootstrap, "find_compiler", lambda: (None, "sudo apt install g++"))
    bootstrap.set_up()
    assert "kernels: reference (no C++ compiler; sudo apt install g++)" in capsys.readouterr().out
    assert not machine.ran("build_ext")
    monkeypatch.setattr(bootstrap, "find_compiler", lambda: ("/usr/bin/c++", ""))  # then it is installed
    bootstrap.set_up()
    assert machine.ran("build_ext") == 1


def test_a_start_without_a_compiler_keeps_the_kernels_that_fit(machine, monkeypatch, capsys):
    bootstrap.set_up()
    stamp = bootstrap.read_stamp()
    for compiler in ((None, "sudo apt install g++"), ("/usr/bin/clang++", ""), ("/usr/bin/c++", "")):
        monkeypatch.setattr(bootstrap, "find_compiler", lambda found=compiler: found)
        bootstrap.set_up()
        assert (machine.root / "minillama/_ops.so").exists() and bootstrap.read_stamp() == stamp
    assert machine.ran("build_ext") == 1 and "removed" not in capsys.readouterr().out


def test_kernels_that_do_not_fit_are_removed_aloud_and_built_once_there_is_a_compiler(machine, monkeypatch, capsys):
    bootstrap.set_up()
    (machine.root / "csrc/ops.cpp").write_text("// version 2")
    monkeypatch.setattr(bootstrap, "find_compiler", lambda: (None, "sudo apt install g++"))
    for said in (1, 0):  # at the next start all is known
        bootstrap.set_up()
        out = capsys.readouterr().out
        assert not (machine.root / "minillama/_ops.so").exists()
        assert out.count("removed the compiled kernels") == out.count("no C++ compiler") == said
    monkeypatch.setattr(bootstrap, "find_compiler", lambda: ("/usr/bin/c++", ""))
    bootstrap.set_up()
    assert (machine.root / "minillama/_ops.so").exists() and "removed" not in capsys.readouterr().out
    (machine.root / "minillama/_ops.so").unlink()  # by hand
    bootstrap.set_up()
    assert (machine.root / "minillama/_ops.so").exists()


def test_kernels_are_rebuilt_when_a_source_changes_and_a_failed_build_leaves_no_stale_library(machine, capsys):
    bootstrap.set_up()
    assert (machine.root / "minillama/_ops.so").exists()
    (machine.root / "csrc/ops.cpp").write_text("// version 2")
    machine.without = ["build_ext"]
    bootstrap.set_up()
    assert not (machine.root / "minillama/_ops.so").exists()
    assert "kernels: reference (the build failed" in capsys.readouterr().out
    bootstrap.set_up()
    assert machine.ran("build_ext") == 2  # not tried again until a source changes


class Printed:
    """What was printed since it was last asked, for the mutants."""

    def __init__(self):
        self.file = io.StringIO()

    def readouterr(self):
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return types.SimpleNamespace(out=text)


def aloud(test):
    """The same for a test that patches and listens."""
    def run_it():
        printed = Printed()
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(printed.file):
                test(toy_machine(Path(folder), patch), patch, printed)
    return run_it


MUTANTS = [
    Mutant("bootstrap", 'if there and done.get("kernels") == state:', "if False:",
           aloud(test_a_start_without_a_compiler_keeps_the_kernels_that_fit)),
    Mutant("bootstrap", "if there:\n        say(", "if False:\n        say(",
           aloud(test_kernels_that_do_not_fit_are_removed_aloud_and_built_once_there_is_a_compiler)),
]
