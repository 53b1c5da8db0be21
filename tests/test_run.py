"""The front door: each word runs its command, exit codes pass through, Ctrl-C ends quietly."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NUMERIC

import bootstrap
import run

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("words", "command"), [
    (["test"], "python -m pytest -n 2 --dist worksteal"),
    (["test", "tests/test_rope.py"], "python -m pytest tests/test_rope.py"),
    (["test", "tests/test_rope.py", "-x"], "python -m pytest tests/test_rope.py -x"),
    (["test", "--all"], "python -m pytest -m  -n 2 --dist worksteal"),
    (["test", "--all", "a.py", "b.py"], "python -m pytest -m  -n 2 --dist worksteal a.py b.py"),
    (["mutate", "20", "7"], f"python {ROOT / 'tools' / 'mutate.py'} 20 7"),
    (["lesson", "5", "--seeds", "3"], f"python {ROOT / 'tools' / 'lesson_seeds.py'} 5 --seeds 3"),
    (["book", "5", "--run"], f"python {ROOT / 'tools' / 'book_markdown.py'} 5 --run"),
    (["docs"], f"python {ROOT / 'tools' / 'api_pages.py'}"),
    (["gpu"], f"python {ROOT / 'tools' / 'on_gpu.py'}"),
    (["info"], "python -m minillama info"),
    (["pretrain", "--recipe", "x"], f"python {ROOT / 'tools' / 'pretrain_recipe.py'} --recipe x"),
    (["ppo", "--like", "x"], f"python {ROOT / 'tools' / 'ppo_like.py'} --like x"),
    (["ppo", "--like", "x", "--tensorboard", "d"],
     f"python {ROOT / 'tools' / 'tensorboard_log.py'} ppo --like x --tensorboard d"),
    (["llama2-chat", "ppo"], f"python {ROOT / 'tools' / 'two_rewards.py'} ppo"),
    (["ghost-attention", "--out"], f"python {ROOT / 'tools' / 'ghost_attention.py'} --out"),
    (["align", "--dry-run"], f"python {ROOT / 'tools' / 'align.py'} --dry-run"),
    (["stack-exchange", "--out", "o"], f"python {ROOT / 'tools' / 'stack_exchange.py'} --out o"),
    (["info", "tiny", "--method", "qlora"], f"python {ROOT / 'tools' / 'memory_cost.py'} tiny --method qlora"),
    (["info", "--mesh", "8x4"], f"python {ROOT / 'tools' / 'mesh_plan.py'} --mesh 8x4"),
    (["generate", "--device-map", "auto"], f"python {ROOT / 'tools' / 'generate_over_devices.py'} --device-map auto"),
    (["generate", "--prompt", "two words"], "python -m minillama generate --prompt two words"),
])
def test_each_verb_runs_its_command(words, command, monkeypatch):
    monkeypatch.setattr(bootstrap, "set_up", lambda for_tests, for_web: None)
    monkeypatch.setattr(run, "PYTHON", "python")
    monkeypatch.setattr(run, "has", lambda module: module == "xdist")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(run, "call", lambda *words, cwd=None: " ".join(map(str, words)))
    assert run.main(words) == command


@pytest.mark.parametrize(("cores", "extra", "flags"), [
    (1, True, []), (None, True, []), (2, False, []), (3, True, ["-n", "3"]), (64, True, ["-n", "4"])])
def test_tests_share_the_cores_where_there_are_some(cores, extra, flags, monkeypatch):
    monkeypatch.setattr(run, "has", lambda module: extra)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert run.side_by_side([])[:2] == flags


def test_a_cap_is_set_for_the_numeric_tests_alone_and_an_unknown_one_is_refused(monkeypatch, capsys):
    """Every name in NUMERIC is a file: one that was renamed would run under no cap, unnoticed."""
    called = []
    monkeypatch.setattr(bootstrap, "set_up", lambda for_tests, for_web: None)
    monkeypatch.setattr(run, "side_by_side", lambda words: words)
    monkeypatch.setattr(run, "call", lambda *command, cwd=None: called.append(command[3:]) or 0)
    for name, capability in (("avx2", "avx2"), ("sse", "default")):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "untouched")
        with monkeypatch.context() as patch:
            for variable in run.CAPS[name]:
                patch.setenv(variable, "")
            assert run.main(["test", "--cap", name]) == 0
            assert os.environ["ATEN_CPU_CAPABILITY"] == capability
    assert called == [("-m", "numeric and not long")] * 2
    assert run.main(["test", "--cap", "avx1024"]) == run.main(["test", "--cap"]) == 2
    assert "--cap what? There are: avx2, sse" in capsys.readouterr().out and len(called) == 2
    assert not [name for name in NUMERIC if not list((run.ROOT / "tests").rglob(f"test_{name}.py"))]


def test_without_a_gpu_its_report_says_in_one_line_what_to_do_before_anything_is_built():
    done = subprocess.run([sys.executable, ROOT / "tools" / "on_gpu.py"], capture_output=True, text=True,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    line, = done.stdout.splitlines()
    assert done.returncode == 2 and "there is no GPU that PyTorch" in line and "nvidia-smi" in line


def test_help_and_an_unknown_benchmark_need_no_set_up(monkeypatch, capsys):
    monkeypatch.delattr(bootstrap, "set_up")
    assert run.main([]) == run.main(["--help"]) == 0
    assert run.main(["bench", "no_such"]) == 2
    assert "python3 run.py tour" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "wanted"), [
    ("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137), ("raise KeyboardInterrupt", 130),
])
def test_exit_codes_are_passed_on(code, wanted):
    assert run.call(sys.executable, "-c", "import sys; sys.stderr = open('/dev/null', 'w')\n" + code) == wanted


def test_ctrl_c_ends_in_130_without_a_traceback():
    """The whole terminal group gets the signal: run.py waits for its child's last words and adds none."""
    child = ("import time; time.sleep(0.3)\n"
             "try: print('up', flush=True); time.sleep(60)\n"
             "except KeyboardInterrupt: raise SystemExit(2)")
    code = f"import sys, run; sys.exit(run.call({sys.executable!r}, '-c', {child!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "up\n"
    os.killpg(parent.pid, 2)
    assert (parent.wait(20), parent.stderr.read()) == (130, "")


def test_waiting_threads_are_told_not_to_spin(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run.environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run.environment()["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(("unwanted", "place"), [("1", str(ROOT / "build" / "bytecode")), ("", None)])
def test_bytecode_that_may_not_lie_beside_its_source_lies_in_build(unwanted, place, monkeypatch):
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", unwanted)
    environment = run.environment()
    assert "PYTHONDONTWRITEBYTECODE" not in environment and environment.get("PYTHONPYCACHEPREFIX") == place
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "elsewhere")
    assert run.environment()["PYTHONPYCACHEPREFIX"] == "elsewhere"


def test_the_front_door_needs_only_the_standard_library_and_tells_an_old_python():
    for name in ("run.py", "bootstrap.py"):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 4 if name == "run.py" else 10))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {getattr(node, "module", None) or node.names[0].name for node in imports}
        assert {n.split(".")[0] for n in names} <= set(sys.stdlib_module_names) | {"bootstrap"}


def test_python_2_can_read_the_front_door():
    """By its grammar, since few machines have it; where there is one, it reads it."""
    text = (ROOT / "run.py").read_text(encoding="ascii")
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, (ast.JoinedStr, ast.AsyncFunctionDef, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal,
                                     ast.YieldFrom)), ast.unparse(node)
        if isinstance(node, ast.arguments):
            assert not node.kwonlyargs and not node.posonlyargs and not any(arg.annotation for arg in node.args)
        if isinstance(node, ast.Call):
            assert sum(isinstance(argument, ast.Starred) for argument in node.args) <= 1, ast.unparse(node)
            assert sum(keyword.arg is None for keyword in node.keywords) <= 1, ast.unparse(node)
            assert not (getattr(node.func, "id", "") == "print" and (node.keywords or len(node.args) > 1))
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            assert not any(isinstance(part, ast.Starred) for part in node.elts), ast.unparse(node)
        if isinstance(node, ast.Dict):
            assert None not in node.keys, ast.unparse(node)


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.7", "python3.8", "python3.9"])
def test_an_old_python_is_told_in_one_line(name):
    if subprocess.run(["sh", "-c", f"{name} -V"], capture_output=True).returncode:
        pytest.skip(f"needs {name}")
    done = subprocess.run([name, "run.py", "info"], cwd=ROOT, capture_output=True, text=True)
    version = name.removeprefix("python")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"minillama needs Python 3.10 or newer, this is {version}: try python3.12 run.py\n"


@pytest.mark.parametrize(("redirect", "code"), [(">/dev/full", 1), (">&-", 0), ("| head -c 0", 0)])
def test_help_that_nobody_can_read_is_one_line_or_none(redirect, code):
    if "full" in redirect and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    done = subprocess.run(["bash", "-c", f"set -o pipefail; '{sys.executable}' run.py help {redirect}"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == code and len(done.stderr.splitlines()) == int(code > 0)
