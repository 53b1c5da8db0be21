"""The two commands on a fresh machine: what the set-up does when things are missing, broken, or already done.

The machine is a toy: a temporary checkout, and commands that only leave the traces which the real ones leave.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import types
from pathlib import Path

import pytest
from mutants import Mutant

import bootstrap

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "numpy", "regex", "tqdm", "matplotlib")


class Machine:
    """Answers the set-up's commands. `without`: substrings of commands that fail here."""

    def __init__(self, root):
        self.root, self.venv, self.commands, self.without, self.version = root, root / ".venv", [], [], "3.11"

    def popen(self, command, **options):
        line = " ".join(command)
        self.commands.append(line)
        code = int(any(text in line for text in self.without))
        if not code:
            self.leave_traces(line)
        return types.SimpleNamespace(wait=lambda timeout=None: code)

    def leave_traces(self, line):
        site = self.venv / f"lib/python{self.version}/site-packages"
        if any(text in line for text in ("-m venv", "-m virtualenv", "uv venv")):
            for folder in (self.venv / "bin", site / "pip") if not line.startswith("uv") else (self.venv / "bin", site):
                folder.mkdir(parents=True)
            (self.venv / "bin/python").touch()
            (site / "pip/__init__.py").touch() if not line.startswith("uv") else None
        if "install" in line and "torch" in line:
            for name in LIBRARIES:
                (site / name).mkdir(exist_ok=True)
                (site / name / "__init__.py").touch()
        for name in ("starlette", "uvicorn"):
            if "install" in line and name in line:
                (site / name).mkdir(exist_ok=True)
                (site / name / "__init__.py").touch()
        if "build_ext" in line:
            (self.root / "minillama/_ops.so").touch()

    def run(self, command, **options):
        if not Path(command[0]).exists():
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, stdout=f"Python {self.version}.2\n")

    def ran(self, text):
        return sum(text in line for line in self.commands)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return toy_machine(tmp_path, monkeypatch)


def toy_machine(root, monkeypatch):
    """A Linux laptop with venv, pip and a compiler; without a GPU, uv, or PyTorch's own index."""
    for folder in ("csrc", "minillama", "tests"):
        (root / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "tests/oracles.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / "csrc/ops.cpp").write_text("// version 1")
    toy = Machine(root)
    places = {"ROOT": root, "VENV": root / ".venv", "PYTHON": root / ".venv/bin/python", "WINDOWS": False,
              "STAMP": root / ".venv/stamp.json", "LOG": root / "build/setup.log"}
    for name, value in places.items():
        monkeypatch.setattr(bootstrap, name, value)
    monkeypatch.setattr(bootstrap.subprocess, "Popen", toy.popen)
    monkeypatch.setattr(bootstrap.subprocess, "run", toy.run)
    monkeypatch.setattr(bootstrap, "answers", lambda url: False)
    monkeypatch.setattr(bootstrap, "default_torch", lambda: "cpu")
    monkeypatch.setattr(bootstrap, "find_compiler", lambda: ("/usr/bin/c++", "sudo apt install g++"))
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: None)
    monkeypatch.delenv("MINILLAMA_TORCH", raising=False)
    return toy


def test_the_first_start_makes_everything_and_the_second_runs_nothing(machine):
    bootstrap.set_up(for_tests=True)
    assert [machine.ran(text) for text in ("-m venv", "torch==", "build_ext", "pytest>=")] == [1, 1, 1, 1]
    before = len(machine.commands)
    bootstrap.set_up(for_tests=True)
    assert len(machine.commands) == before


def test_the_pages_libraries_come_when_the_page_is_first_asked_for(machine):
    bootstrap.set_up()
    assert not machine.ran("starlette")
    for _ in range(2):
        bootstrap.set_up(for_web=True)
        assert machine.ran("uvicorn") == machine.ran("starlette") == 1


def test_a_half_made_venv_is_made_anew(machine):
    machine.without = ["torch=="]
    with pytest.raises(bootstrap.SetupError):
        bootstrap.set_up()
    (machine.venv / "torn").touch()
    machine.without = []
    bootstrap.set_up()
    assert not (machine.venv / "torn").exists() and bootstrap.installed("torch")


@pytest.mark.parametrize("damage", ["bin/python", "lib/python3.11/site-packages/torch", "stamp.json"])
def test_a_broken_venv_is_repaired(machine, damage):
    bootstrap.set_up()
    broken = machine.venv / damage
    shutil.rmtree(broken) if broken.is_dir() else broken.unlink()
    bootstrap.set_up()
    assert machine.ran("-m venv") == 2 and bootstrap.installed("torch")


def test_a_lost_library_is_installed_again_in_place(machine):
    bootstrap.set_up()
    shutil.rmtree(machine.venv / "lib/python3.11/site-packages/regex")
    bootstrap.set_up()
    assert machine.ran("-m venv") == 1 and bootstrap.installed("regex")


def test_an_upgraded_system_python_means_a_new_venv(machine):
    bootstrap.set_up()
    machine.version = "3.12"
    bootstrap.set_up()
    assert machine.ran("-m venv") == 2 and bootstrap.installed("torch")


def test_without_ensurepip_a_virtualenv_does_it(machine):
    machine.without = ["-m venv"]
    bootstrap.set_up()
    assert machine.ran("install --target") == machine.ran("-m virtualenv") == 1 and bootstrap.installed("torch")


def test_without_ensurepip_and_pip_the_one_missing_line_is_said(machine):
    machine.without = ["-m venv", "-m pip"]
    with pytest.raises(bootstrap.SetupError, match="sudo apt install python3-venv|brew install python"):
        bootstrap.set_up()


def test_uv_is_used_where_it_is_and_venv_takes_over_where_it_fails(machine, monkeypatch):
    monkeypatch.setattr(bootstrap.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    bootstrap.set_up()
    assert machine.ran("uv pip install") == 1 and not machine.ran("-m venv")
    shutil.rmtree(machine.venv)
    machine.without = ["uv pip"]
    bootstrap.set_up()
    assert machine.ran("-m venv") == 1 and bootstrap.installed("torch")


def test_the_cpu_build_is_asked_for_by_name_and_the_plain_pin_only_after_it(machine, monkeypatch, capsys):
    assert bootstrap.torch_sources("cpu") == [[bootstrap.TORCH + "+cpu"], [bootstrap.TORCH]]
    monkeypatch.setattr(bootstrap, "answers", lambda url: url.startswith(bootstrap.CPU_INDEX))
    assert bootstrap.torch_sources("cpu")[0] == [bootstrap.TORCH + "+cpu", "--extra-index-url", bootstrap.CPU_INDEX]
    machine.without = ["+cpu"]
    bootstrap.set_up()
    installs = [line for line in machine.commands if "torch==" in line]
    assert len(installs) == 2 and "+cpu" not in installs[1]
    assert "may be the CUDA build" in capsys.readouterr().out


@pytest.mark.parametrize(("torch", "wanted"), [
    ("cuda", bootstrap.TORCH), ("default", bootstrap.TORCH), ("torch==2.9.1", "torch==2.9.1"), ("/a/b.whl", "/a/b.whl"),
])
def test_other_machines_and_wishes_ask_once(torch, wanted):
    assert bootstrap.torch_sources(torch) == [[wanted]]


def test_a_wished_torch_is_installed_and_kept_when_the_wish_is_not_repeated(machine, monkeypatch):
    bootstrap.set_up()
    monkeypatch.setenv("MINILLAMA_TORCH", "torch==2.9.1")
    bootstrap.set_up()
    assert machine.ran("torch==2.9.1") == 1
    monkeypatch.delenv("MINILLAMA_TORCH")
    bootstrap.set_up()
    assert machine.ran("-m venv") == 2


def test_too_little_disk_is_said_before_anything_is_run(machine, monkeypatch):
    usage = shutil.disk_usage(machine.root)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(bootstrap.SetupError, match="1.5 GB needed, 1.0 GB free"):
        bootstrap.set_up()
    assert not machine.commands


def test_an_oracle_that_cannot_be_had_is_named_and_tried_again(machine, capsys):
    machine.without = ["bitsandbytes"]
    bootstrap.set_up(for_tests=True)
    assert "not to be had here: bitsandbytes==" in capsys.readouterr().out
    machine.without, before = [], len(machine.commands)
    bootstrap.set_up(for_tests=True)
    again = machine.commands[before:]
    assert any("bitsandbytes" in line for line in again) and not any("transformers" in line for line in again)


def test_an_oracle_marked_so_comes_without_its_dependencies(machine):
    (machine.root / "tests/oracles.txt").write_text("# a comment\nfirst==1\n\nsecond==2  # --no-deps: why\n")
    bootstrap.set_up(for_tests=True)
    (first,), (second,) = ([line for line in machine.commands if name in line] for name in ("first", "second"))
    assert "--no-deps" not in first and second.endswith("--no-deps second==2")


def test_an_address_that_never_answers_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        start = time.monotonic()
        assert not bootstrap.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - start < 5
    assert not bootstrap.answers("http://127.0.0.1:1/", seconds=3)


def test_requirements_are_what_pyproject_says():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader to compare with")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert bootstrap.requirements("dependencies") == project["dependencies"]
    assert bootstrap.requirements("build") == project["optional-dependencies"]["build"]
    assert bootstrap.requirements("test") == project["optional-dependencies"]["test"]
    assert bootstrap.requirements("web") == project["optional-dependencies"]["web"]


def test_clean_removes_what_the_set_up_made(machine):
    bootstrap.set_up()
    bootstrap.clean()
    assert not machine.venv.exists() and not list((machine.root / "minillama").glob("*.so"))


@pytest.mark.long
def test_the_systems_python_sets_itself_up_from_a_fresh_clone(tmp_path):
    """The real thing under the distribution's own Python, with venv refused, so that virtualenv has to do it."""
    system = "/usr/bin/python3"
    if not os.path.exists(system) or subprocess.run([system, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("needs the distribution's /usr/bin/python3 with pip")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    code = ("import bootstrap\nreal = bootstrap.fails\n"
            "bootstrap.fails = lambda title, command, **o: 'venv' in command or real(title, command, **o)\n"
            "bootstrap.set_up()")
    for _ in range(2):
        done = subprocess.run([system, "-c", code], cwd=tmp_path / "clone", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""  # the second start has nothing to do
    probe = [tmp_path / "clone/.venv/bin/python", "-c", "import minillama.kernels as k; print(k.built_backends())"]
    assert "reference" in subprocess.run(probe, cwd=tmp_path / "clone", capture_output=True, text=True).stdout


def law(test, *arguments):
    """The test on a toy machine of its own, for the mutants."""
    def run_it():
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            test(toy_machine(Path(folder), patch), *arguments)
    return run_it


MUTANTS = [
    Mutant("bootstrap", 'done.get("torch") != torch or not installed("torch")', 'done.get("torch") != torch',
           law(test_a_broken_venv_is_repaired, "lib/python3.11/site-packages/torch")),
    Mutant("bootstrap", 'not installed("starlette", "uvicorn")', "True",
           law(test_the_pages_libraries_come_when_the_page_is_first_asked_for)),
    Mutant("bootstrap", 'if line not in done.get("oracles", [])', "if True",
           law(test_the_first_start_makes_everything_and_the_second_runs_nothing)),
    Mutant("bootstrap", '("--no-deps" in line) == bool(flags)', "True",
           law(test_an_oracle_marked_so_comes_without_its_dependencies)),
    Mutant("bootstrap", "shutil.rmtree(VENV, ignore_errors=True)\n            make()", "make()",
           law(test_a_half_made_venv_is_made_anew)),
]
