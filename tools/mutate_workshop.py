"""A private copy of a checkout, in which faults are planted one at a time and the tests about them run.

Each run of tests is a process of its own, forked from one that has imported PyTorch already: a fault in a Python module
costs the seconds that its tests take. A fault in C++ compiles its file and links the library again.
"""

import ast
import functools
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mutate_python

HANG = 60  # seconds of CPU time after which a quick test is taken to have no end
WAITS = 4  # times as long may it take, as it waits for others
WITHOUT = {"test_mutants", "test_mutate", "test_layout", "test_packaging"}  # they look at the text, not at what it does
ENGINE, TRAINING = ("test_engine", "test_engine_decoding"), ("test_kernels_training",)
ATTENTION, NF4_BYTES = ("test_attention_cpu",), ("test_nf4_quantize",)
ABOUT_CPP = {"byte_": ("test_byte_bpe", "test_byte_bpe_training", "test_byte_bpe_steps", "test_character_classes"),
             "bpe": ("test_compiled",), "word_counts": ("test_compiled",), "rope": ("test_rope_qk",),
             "unigram": ("test_unigram_steps",), "gguf": ("test_gguf_linear",),
             "attention": (*ATTENTION, *TRAINING), "exponential": (*ATTENTION, *TRAINING), "row_loops": TRAINING,
             "lanes": (*ENGINE, *NF4_BYTES, *TRAINING), "int8": ("test_int8_kernel", *ENGINE, "test_nf4_int8"),
             "engine": ENGINE, "matrix_codes": ("test_int8_kernel", *ENGINE), "matrix": ENGINE,
             "nf4_int8": ("test_nf4_int8",), "nf4_quantize": NF4_BYTES,
             "nf4_absmax": (*NF4_BYTES, "test_nf4_matvec", "test_nf4_int8"), "nf4_matvec": ("test_nf4_matvec", *ENGINE),
             "nf4_matmul": ("test_nf4_kernel", *NF4_BYTES), "vectors": ("test_nf4_kernel",)}  # by a name's beginning
AT_HOME = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]  # not to be imported from


# ---- which tests


def tests_about(root, path):
    """Names of the test files that cover a file: its own ones, then those that import it; where there are none, those
    of the modules that import it."""
    stem = Path(path).stem if Path(path).stem != "__init__" else Path(path).parent.name
    tests = {test.stem: test for test in sorted((root / "tests").rglob("*.py"))}
    if path.startswith("csrc/"):
        own = next((tests_of for begin, tests_of in ABOUT_CPP.items() if stem.startswith(begin)), ())
        found = [*own, *(name for name in tests if stem in name), "test_kernels"]
    else:
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        own = [name for name in tests if name == f"test_{stem}" or name.startswith(f"test_{stem}_")]
        found = own + [name for name in tests if module in _imports(tests, name, ())]
        if not found:  # a part that is used through one module only
            users = _users(root, path, module)
            return list(dict.fromkeys(test for other in users for test in tests_about(root, other)))
    return [tests[name].relative_to(root).as_posix() for name in dict.fromkeys(found)
            if name.startswith("test_") and name in tests and name not in WITHOUT]


def _users(root, path, module):
    """Files of the package that import a module, by its whole name or from beside it."""
    for other in sorted((root / "minillama").rglob("*.py")):
        beside = other.parent == (root / path).parent and Path(path).stem in _named_in(other)
        if module in _named_in(other) or beside:
            yield other.relative_to(root).as_posix()


def _imports(tests, name, above):
    """Modules that a test imports, itself or through helpers beside it."""
    found = set(_named_in(tests[name]))
    for helper in found & tests.keys() - {*above, name}:
        if not helper.startswith("test_"):
            found |= _imports(tests, helper, (*above, name))
    return found


@functools.cache
def _named_in(path):
    """Modules, and names in them, that a file imports, and modules that it names as the place of its planted faults."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and str(node.value).startswith("minillama."):
            found.add(node.value)
    return frozenset(found)


# ---- one copy of the tree, in which faults are planted


class Workshop:
    """A copy of the checkout with its own compiled libraries."""

    def __init__(self, folder, root, compiles):
        self.folder, self.compiles, self.healthy, self.cut_off = Path(folder), compiles, set(), False
        copy_tree(root, self.folder)
        if compiles and not self.build():
            raise SystemExit("mutate: the untouched kernels cannot be compiled here: try --language python")

    def try_fault(self, fault, limit):
        """The test that noticed it, "" if none did; None where the fault makes no other program."""
        path = self.folder / fault.path
        text = path.read_text(encoding="utf-8")
        cpp = not fault.path.endswith(".py")
        before = self.libraries() if cpp else None
        try:
            if not cpp and not compiles_to_another(text, fault.planted(text)):
                return None
            path.write_text(fault.planted(text), encoding="utf-8")
            if cpp and (not self.build() or self.libraries() == before):
                return None
            killer = self.run_tests(tests_about(self.folder, fault.path), limit)
        finally:
            path.write_text(text, encoding="utf-8")
            if cpp:
                self.build()
        if killer and killer not in self.healthy and self.run_tests([killer], limit):
            raise SystemExit(f"mutate: {killer} fails without any fault: mend it first")
        self.healthy.add(killer)
        return killer

    def build(self):
        """Compile what changed; whether that worked."""
        sys_argv = ["setup.py", "-q", "build_ext", "--inplace"]
        return _in_child(self.folder, lambda: _setup(self.folder / "setup.py", sys_argv), 600) == 0

    def libraries(self):
        return [path.read_bytes() for path in sorted((self.folder / "minillama").glob("_*.*"))
                if path.suffix in (".so", ".pyd")]

    def run_tests(self, files, limit):
        """The first test that fails, crashes or finds no end; "" if none does within `limit` seconds (`cut_off`: there
        were more to run)."""
        self.cut_off = False
        if not files:
            return ""
        log = self.folder / "tests_begun.txt"
        log.write_text("")
        code = _in_child(self.folder, lambda: _pytest(files, log), limit)
        lines, self.cut_off = log.read_text().splitlines(), code is None
        if code is None or code in (0, 5):  # 5: there was no test
            return ""
        return lines[-1] if lines else files[0]


def compiles_to_another(before, after):
    """Whether Python text is a program, and not the same one."""
    try:
        return not mutate_python.same_program(before, after)
    except SyntaxError:
        return False


def copy_tree(root, folder):
    """What git knows or would know of a checkout, and its compiled libraries."""
    listed = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    paths = [root / name for name in names if name] or [path for path in root.rglob("*") if ".venv" not in path.parts]
    for path in [*paths, *(root / "minillama").glob("_*.so")]:
        if path.is_file():
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def _setup(script, argv):
    sys.argv = argv
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _pytest(files, log):
    """Run pytest here, in the copy: every name that begins is written down, and the first failure is the last."""
    import pytest

    class Witness:
        def pytest_runtest_logstart(self, nodeid):
            log.open("a").write(nodeid + "\n")
            signal.setitimer(signal.ITIMER_PROF, HANG)  # both end the process
            signal.setitimer(signal.ITIMER_REAL, WAITS * HANG)

        def pytest_collectreport(self, report):
            if report.failed:
                log.open("a").write(report.nodeid + "\n")

    return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", *files], plugins=[Witness()])


def _in_child(folder, work, limit):
    """Exit code of `work()` in a process of its own, forked with all that was imported; None after `limit` seconds."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.chdir(folder)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(quiet, stream)
            os.environ["PYTHONPATH"] = str(folder)
            sys.dont_write_bytecode = True  # two faults of one length, planted within a second, would share a .pyc
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            for name in [name for name, module in sys.modules.items() if _is_from_home(name, module)]:
                del sys.modules[name]  # the copy's is to be imported
            sys.path[:] = [str(folder), *(path for path in sys.path if Path(path or ".").resolve() not in AT_HOME)]
            code = work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: B036
            pass
        os._exit(int(code or 0))
    return _wait(child, limit)


def _is_from_home(name, module):
    """Whether a module is the package's, or one of the tests that run this very run."""
    file = getattr(module, "__file__", None)
    return name.split(".")[0] == "minillama" or bool(file) and AT_HOME[1] / "tests" in Path(file).resolve().parents


def _wait(child, limit):
    """Its exit code, minus the signal that ended it, or None after `limit` seconds. Nothing it started is left."""
    end, status = time.monotonic() + limit, None
    try:
        while status is None and time.monotonic() < end:
            done, found = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if done else None
            time.sleep(0.05)
    finally:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if status is None:
            os.waitpid(child, 0)
    return status
