"""The command that plants random faults: a weak test lets them through, a strong one does not, the tree stays whole."""

import ast
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mutate
import mutate_cpp
import mutate_python
import mutate_workshop
import pytest

ROOT = Path(__file__).resolve().parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the command needs fork")


def planted_in(text, finder):
    return [text[:start] + new + text[end:] for start, end, new in finder.faults_in(text)]


# ---- what is planted


@pytest.mark.parametrize(("before", "after"), [
    ("x = a < b", "x = (a <= b)"), ("x = a + b", "x = (a - b)"), ("x = a and b", "x = (a or b)"),
    ("x = not a", "x = (a)"), ("x = 3", "x = 4"), ("x = 3", "x = 2"), ("x = 0.5", "x = 1.0"), ("x = True", "x = False"),
    ("x = a[b:c]", "x = a[b + 1:c]"), ("x = a[b:c]", "x = a[b:c + 1]"), ("f(a, b)", "(f(b, a))"), ("f(a)", "pass"),
    ("a.b = c", "pass"), ("a -= b", "a += b"), ("a -= b", "pass"),
    ("def f():\n    return a", "def f():\n    return None"),
    ("if a:\n    raise E('x' + y)", "if a:\n    pass"), ("if a: b = c", "if (not a): b = c"),
    ("x = [a for a in b if c]", "x = [a for a in b if (not c)]"), ("ä = 'ö'; x = -y", "ä = 'ö'; x = (y)"),
])
def test_each_kind_of_python_fault_is_planted_where_it_stands(before, after):
    assert after in planted_in(before, mutate_python)


def test_words_for_people_are_left_alone_in_python():
    text = '''@d(1)
def f(x: 2) -> 3:
    """4"""
    print(5, x)
    warnings.warn(f"{x + 6}", stacklevel=7)
    assert x < 8
    raise ValueError(f"{9}" + str(10))
'''
    assert planted_in(text, mutate_python) == [text.replace('raise ValueError(f"{9}" + str(10))', "pass")]


@pytest.mark.parametrize(("before", "after"), [
    ("x = a < b;", "x = a <= b;"), ("x = a && b;", "x = a || b;"), ("x = a + 0x10u;", "x = a + 17u;"),
    ("f(1);", "f(2);"), ("f(1);", "f(0);"), ("if (a(b)) c();", "if (!(a(b))) c();"), ("x += y;", "x -= y;"),
    ("{\n  f(a,\n    b);\n}", "{\n  ;\n}"), ("return std::min(a, b);", "return std::max(a, b);"),
    ("f(true);", "f(false);"),
])
def test_each_kind_of_cpp_fault_is_planted_where_it_stands(before, after):
    assert after in planted_in(before, mutate_cpp)


def test_comments_strings_types_and_constants_are_left_alone_in_cpp():
    text = ('// a < b + 1\n#define X(a) \\\n  (a + 1)\n/* 2 < 3\n 4 */\nconstexpr int kRows = 6;\n'
            'std::vector<int> *x = "a < 1 && \\"", c = \'7\';\nconst auto& y = f<T>(*x, &c);\n')
    assert planted_in(text, mutate_cpp) == []


@pytest.mark.parametrize(("language", "least"), [("python", 5000), ("cpp", 1000)])
def test_every_fault_of_the_project_changes_its_own_line_and_python_mostly_parses(language, least):
    faults = mutate.draw_faults(ROOT, language, "", 0)
    assert len(faults) == len(set(faults)) > least
    for fault in faults[:100]:
        text = (ROOT / fault.path).read_text(encoding="utf-8")
        assert fault.told(text).startswith(f"{fault.path}:{text[:fault.start].count(chr(10)) + 1}: ")
        assert len(fault.planted(text)) == len(text) - (fault.end - fault.start) + len(fault.new)
        if language == "python":
            ast.parse(fault.planted(text))


def test_a_seed_decides_which_faults_and_in_which_order():
    first, again, other = (mutate.draw_faults(ROOT, "python", "minillama/tokenizer/", seed) for seed in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(other)


def test_what_compiles_to_the_same_program_is_no_fault():
    assert mutate_python.same_program("x = 2 * 3", "\nx = (6)")
    assert not mutate_python.same_program("def f(): return 1", "def f(): return True")
    assert not mutate_workshop.compiles_to_another("x = 1", "x = (")


# ---- which tests, and what they notice


def test_a_modules_own_tests_come_first_then_those_that_import_it():
    about = mutate_workshop.tests_about(ROOT, "minillama/rope.py")
    assert about[:3] == ["tests/test_rope.py", "tests/test_rope_kernel.py", "tests/test_rope_qk.py"]
    assert "tests/test_attention.py" in about[3:] and "tests/test_mutants.py" not in about
    assert "tests/corpus/test_forum.py" not in about
    through_a_helper = mutate_workshop.tests_about(ROOT, "minillama/config.py")
    assert "tests/checkpoint/test_huggingface.py" in through_a_helper


def test_every_file_of_the_compiled_loops_has_tests_beside_those_of_all_kernels():
    """A test that was renamed would be left out unnoticed."""
    tests = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name for names in mutate_workshop.ABOUT_CPP.values() for name in names} <= tests
    for path in (ROOT / "csrc/cpu").iterdir():
        assert set(mutate_workshop.tests_about(ROOT, f"csrc/cpu/{path.name}")) > {"tests/test_kernels.py"}, path.name
    assert mutate_workshop.tests_about(ROOT, "csrc/cpu/row_loops.cpp")[0] == "tests/test_kernels_training.py"


def test_every_module_that_can_hold_a_fault_has_tests_also_where_only_another_module_imports_it():
    assert "tests/tokenizer/test_bpe.py" in mutate_workshop.tests_about(ROOT, "minillama/tokenizer/piece_trainer.py")
    assert mutate_workshop.tests_about(ROOT, "minillama/simt/ptx_tables.py") == ["tests/simt/test_ptx_instructions.py"]
    planting = mutate_workshop.tests_about(ROOT, "minillama/peft/lora_file.py")
    assert "tests/peft/test_dora.py" in planting, "it imports another module, and plants faults in this one"
    paths = {fault.path for fault in mutate.draw_faults(ROOT, "python", "", 0)}
    untested = {path for path in paths if not mutate_workshop.tests_about(ROOT, path)}
    assert not untested


TOY = {"minillama/__init__.py": "", "minillama/toy.py": "def older(a, b):\n    return a > b\n"}
WEAK = "from minillama.toy import older\ndef test_it():\n    assert older(2, 1) and not older(1, 2)\n"
STRONG = WEAK + "    assert not older(1, 1)\n"


def toy_tree(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.long
@needs_fork
@pytest.mark.parametrize(("tests", "processes", "surviving"), [
    (WEAK, 1, ["minillama/toy.py:2: return a > b  ->  return (a >= b)"]), (STRONG, 2, [])], ids=["weak", "strong"])
def test_a_weak_test_lets_a_python_fault_survive_and_a_strong_one_does_not(tmp_path, tests, processes, surviving):
    root = toy_tree(tmp_path, {**TOY, "tests/test_toy.py": tests})
    before = {path: path.read_bytes() for path in root.rglob("*.py")}
    found = mutate.examine(root, "python", 10, 0, processes=processes)
    assert len(found) == 2 and [told for told, killer in found if not killer] == surviving  # there are but two faults
    assert {path: path.read_bytes() for path in root.rglob("*.py")} == before, "the tree itself is never touched"


CPP = {"csrc/cpu/toy.cpp": 'extern "C" int older(int a, int b) {\n  return a > b;\n}\n',
       "setup.py": "import os, subprocess\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n"
                   "subprocess.run('c++ -shared -fPIC csrc/cpu/toy.cpp -o minillama/_toy.so'.split(), check=True)\n",
       "minillama/__init__.py": ""}
LOAD = "import ctypes\nfrom pathlib import Path\nlib = ctypes.CDLL(Path(__file__).parents[1] / 'minillama/_toy.so')\n"


@pytest.mark.long
@needs_fork
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
@pytest.mark.parametrize(("more", "surviving"), [
    ("", ["csrc/cpu/toy.cpp:2: return a > b;  ->  return a >= b;"]), (" and not lib.older(1, 1)", [])])
def test_a_weak_test_lets_a_cpp_fault_survive_and_a_strong_one_does_not(tmp_path, more, surviving):
    test = f"{LOAD}def test_it():\n    assert lib.older(2, 1) and not lib.older(1, 2){more}\n"
    root = toy_tree(tmp_path, {**CPP, "tests/test_toy.py": test})
    assert [told for told, killer in mutate.examine(root, "cpp", 10, 0) if not killer] == surviving


@pytest.mark.long
@needs_fork
def test_a_crash_and_a_test_without_end_are_noticed_and_one_that_always_fails_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate_workshop, "HANG", 5)
    crash = ("import os\nfrom minillama.toy import older\n"
             "def test_it():\n    os.kill(os.getpid(), 9) if older(1, 1) else None\n    while not older(2, 1): pass\n")
    tree = toy_tree(tmp_path, {**TOY, "tests/test_toy.py": crash})
    assert [killer for _, killer in mutate.examine(tree, "python", 2, 0)] == ["tests/test_toy.py::test_it"] * 2
    toy_tree(tmp_path, {"tests/test_toy.py": "def test_it():\n    assert False\n"})
    with pytest.raises(SystemExit, match="test_it fails without any fault"):
        mutate.examine(tree, "python", 2, 0)


@pytest.mark.long
@needs_fork
def test_a_test_that_this_process_has_loaded_is_the_copys_own_in_the_copy(tmp_path):
    """The long tests plant faults from inside a run of all tests, whose files have the same names."""
    assert importlib.import_module("test_config_checks")
    root = toy_tree(tmp_path, {**TOY, "tests/test_config_checks.py": STRONG})
    killers = [killer for _, killer in mutate.examine(root, "python", 2, 0)]
    assert killers == ["tests/test_config_checks.py::test_it"] * 2


@pytest.mark.parametrize(("survivors", "code"), [(0, 0), (6, 0), (7, 1)])
def test_more_than_six_in_a_hundred_are_an_error(survivors, code, monkeypatch, capsys):
    monkeypatch.setattr(mutate, "examine", lambda root, language, count, *rest: [
        ("x", "")] * (n := survivors // 2 + survivors % 2 * (language == "cpp")) + [("y", "a test")] * (count - n))
    monkeypatch.setattr(mutate, "HEAVY", ())
    assert mutate.main(["100", "1"]) == code
    assert f"{survivors} of 100 survive" in capsys.readouterr().out


def test_a_number_of_faults_below_one_is_refused():
    done = subprocess.run([sys.executable, ROOT / "tools/mutate.py", "0", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "at least 1" in done.stderr


@needs_fork
@pytest.mark.long
@pytest.mark.parametrize("language", ["python", "cpp"])
def test_few_random_faults_in_the_project_survive(language):
    """Where 6 of 100 survive, more than 4 of 20 do so in less than one draw in a hundred. In a process of its own:
    PyTorch takes a library of operators once, and this one has loaded the checkout's."""
    chance = sum(math.comb(20, n) * 0.06**n * 0.94**(20 - n) for n in range(5, 21))
    command = [sys.executable, ROOT / "tools/mutate.py", "20", "2026", "--language", language]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = re.search(r"^(\d+) of (\d+) survive$", ended.stdout, re.MULTILINE)
    assert said, ended.stderr[-2000:]
    survivors, found = map(int, said.groups())
    assert found == 20 and chance < 0.01 and survivors <= 4, ended.stdout
