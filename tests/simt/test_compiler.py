"""Laws of what is compiled on the spot: a missing compiler is one line that gets it, and only own files are run."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mutants import Mutant
from test_lesson import LESSON, written

from minillama.cli.command_line import main
from minillama.course import stepper
from minillama.simt import compiler, cuda_program
from minillama.simt.compiler import INSTALL, NotBuilt, is_own, private_folder, require_compiler

ROOT = Path(__file__).parents[2]
needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no such owners here")
PROGRAM = '#include <cstdio>\nint main() { printf("mine\\n"); }\n'


@pytest.mark.skipif(sys.platform != "linux", reason="the emulator is compiled on Linux")
def test_without_a_compiler_one_line_says_what_gets_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.cu").write_text(PROGRAM, encoding="utf-8")
    for tool, way in INSTALL.items():
        monkeypatch.setenv("PATH", str(tmp_path / tool))
        (tmp_path / tool).mkdir()
        (tmp_path / tool / tool).touch(mode=0o755)
        with pytest.raises(NotBuilt, match=f"no g.. in PATH.*: {way.replace('+', '.')}$"):
            require_compiler()
    assert main(["simt", "run", str(tmp_path / "a.cu")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the emulator is compiled on Linux")
def test_a_cell_that_compiles_says_so_in_one_line_and_shows_no_traceback(tmp_path, monkeypatch):
    head, cell = LESSON[:LESSON.index("# %% naive")], "# %% naive\nfrom minillama import kernels\n\n"
    call = "kernels.CudaSource('#include <x>\\nextern \"C\" void f(int n) {}\\n').f(1)\n"
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    out = io.StringIO()
    assert stepper.step(written(tmp_path, head + cell + call), io.StringIO(), out) == 1
    assert out.getvalue().splitlines()[-1].startswith("minillama: error: there is no g++ in PATH")
    assert "Traceback" not in out.getvalue()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the emulator is compiled on Linux")
@pytest.mark.parametrize("number", range(29, 36))
def test_every_lesson_that_compiles_says_so_in_one_line(number, tmp_path):
    done = subprocess.run([sys.executable, "-m", "minillama", "lesson", str(number)], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, "PATH": str(tmp_path)}, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("minillama: error: there is no ")


@needs_owners
def test_a_file_is_own_if_nobody_else_is_or_was_to_write_it(tmp_path, monkeypatch):
    file, link = tmp_path / "program", tmp_path / "link"
    file.write_text("x", encoding="utf-8")
    link.symlink_to(file)
    for mode, own in ((0o700, True), (0o755, True), (0o720, False), (0o702, False), (0o777, False)):
        file.chmod(mode)
        assert is_own(file) == own, oct(mode)
    file.chmod(0o700)
    assert not is_own(link) and not is_own(tmp_path) and not is_own(tmp_path / "absent")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    assert not is_own(file)


@needs_owners
def test_the_folder_is_private_or_another_one_is_and_it_is_said(tmp_path, monkeypatch, capsys):
    plain = private_folder(tmp_path / "cache" / "minillama" / "simt")
    assert plain == tmp_path / "cache" / "minillama" / "simt" and plain.stat().st_mode & 0o777 == 0o700
    plain.chmod(0o777)  # ours: it can be closed, its files are looked at one by one
    assert private_folder(plain) == plain and plain.stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)  # others could put a folder of theirs in the place of ours
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)  # as /tmp is: they could not
    assert capsys.readouterr().err == ""
    assert private_folder(tmp_path / "sticky" / "minillama" / "simt").is_relative_to(tmp_path)
    fresh = private_folder(tmp_path / "shared" / "minillama" / "simt")
    assert not fresh.is_relative_to(tmp_path) and fresh.stat().st_mode & 0o777 == 0o700
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)  # now it is a stranger's
    assert private_folder(plain) != plain
    assert capsys.readouterr().err.count("set XDG_CACHE_HOME to a folder of your own") == 2


def in_a_cache(folder, monkeypatch):
    """As if the checkout could not be written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **rest: mode != os.W_OK and real(path, mode, **rest))


@needs_owners
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the emulator is compiled on Linux")
def test_a_program_that_somebody_replaced_is_not_run(tmp_path, monkeypatch):
    in_a_cache(tmp_path / "cache", monkeypatch)
    (tmp_path / "a.cu").write_text(PROGRAM, encoding="utf-8")
    program, said = cuda_program.build(tmp_path / "a.cu"), []
    assert program.is_relative_to(tmp_path / "cache") and is_own(program)
    program.unlink()
    program.write_text("#!/bin/sh\necho planted\n", encoding="utf-8")
    program.chmod(0o777)
    cuda_program.run(cuda_program.build(tmp_path / "a.cu"), write=said.append)
    assert b"".join(said) == b"mine\n"


def _fresh(law):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        compiler._fresh_folder.cache_clear()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            listener = type("Said", (), {"readouterr": lambda: type("Text", (), {"err": said.getvalue()})})
            law(Path(folder), patch, listener)


MUTANTS = [
    Mutant("minillama.simt.compiler", "and not found.st_mode & 0o022", "", lambda: _fresh(
        lambda folder, patch, said: test_a_file_is_own_if_nobody_else_is_or_was_to_write_it(folder, patch))),
    Mutant("minillama.simt.compiler", "found.st_uid == os.geteuid() and not found", "not found", lambda: _fresh(
        lambda folder, patch, said: test_a_file_is_own_if_nobody_else_is_or_was_to_write_it(folder, patch))),
    Mutant("minillama.simt.compiler", "others = found.st_mode & 0o002 or", "others =", lambda: _fresh(
        test_the_folder_is_private_or_another_one_is_and_it_is_said)),
]
