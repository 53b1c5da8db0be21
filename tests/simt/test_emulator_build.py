"""Laws of compiling for the emulator: what is passed on to g++ and to a library, and what is compiled again when.

The compiler and the libraries are stand-ins that write down what they are told: test_simt.py has the real ones.
"""

import ctypes
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama.simt import emulator_build
from minillama.simt.emulator_build import CudaSource, _argument, _caught, load

SOURCE = '''extern "C" void none() {}
extern "C" void turn(const float* x,
                     int64_t * ids, unsigned n, __half* __restrict__ y) { }
static void hidden(int n) {}
'''


class Library:
    """Writes down each call: (name, plain values)."""

    def __init__(self, stops=False, error=b""):
        self.calls, self.stops, self.error = [], stops, error

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *(getattr(argument, "value", argument) for argument in arguments)))
            if self.stops and name.startswith("simt_caught_"):
                raise KeyboardInterrupt
            return self.error

        return call


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(emulator_build, "build_folder", lambda: tmp_path / "build")
    return CudaSource(SOURCE, name="turn.cu")


def test_a_call_sets_the_order_and_names_each_tensor_to_the_emulator_as_long_as_it_lasts(source, monkeypatch):
    monkeypatch.setattr(emulator_build, "order", "shuffle:7")
    x, ids, y = torch.ones(5), torch.ones(3, dtype=torch.int64), torch.ones(2, 7, dtype=torch.half)
    for stops in (False, True):
        library = Library(stops)
        source._libraries[False] = library
        if stops:
            with pytest.raises(KeyboardInterrupt):
                source.turn(x, ids, 9, y)
        else:
            source.turn(x, ids, 9, y)
        places = [tensor.data_ptr() for tensor in (x, ids, y)]
        wanted = [("simt_set_schedule", b"shuffle:7"), ("simt_watch", places[0], 20, b"x"),
                  ("simt_watch", places[1], 24, b"ids"), ("simt_watch", places[2], 28, b"y"),
                  ("simt_caught_turn", places[0], places[1], 9, places[2]),
                  *(("simt_forget", place) for place in places)]
        assert library.calls == wanted + [("simt_take_error",)] * (not stops)
    source._libraries[False] = Library(error="Block 3: gone wrong".encode())
    with pytest.raises(RuntimeError, match="^Block 3: gone wrong$"):
        source.none()


def test_a_function_is_one_of_the_source_and_is_given_what_it_declares(source):
    source._libraries[False] = library = Library()
    for wrong in ((), (torch.ones(5),), (None,) * 5):
        with pytest.raises(TypeError, match=rf"turn takes \(const float\* x, int64_t \* ids, unsigned n, .*given "
                                            rf"{len(wrong)} arguments"):
            source.turn(*wrong)
    for name in ("hidden", "turned"):
        with pytest.raises(AttributeError, match=rf"turn.cu has no extern \"C\" void {name}\(...\)"):
            getattr(source, name)
    assert library.calls == []
    source.turn(None, None, 1, None)
    assert library.calls[1:-1] == [("simt_caught_turn", None, None, 1, None)], "no tensor is watched"


@pytest.mark.parametrize(("declared", "kind"), [
    ("int n", ctypes.c_int), ("const unsigned n", ctypes.c_uint), ("int64_t n", ctypes.c_int64),
    ("size_t n", ctypes.c_size_t), ("float n", ctypes.c_float), ("double n", ctypes.c_double),
    ("bool n", ctypes.c_bool)])
def test_a_number_is_passed_as_the_type_that_is_declared(declared, kind):
    assert type(_argument(declared, 1)) is kind and _argument(declared, 1).value == 1
    with pytest.raises(TypeError, match="'short n': numbers are passed as one of int, unsigned, int64_t"):
        _argument("short n", 1)


@pytest.mark.parametrize(("declared", "dtype"), [
    ("const float* x", torch.float32), ("double *x", torch.float64), ("int* x", torch.int32),
    ("int64_t* x", torch.int64), ("__half* x", torch.float16), ("const __nv_bfloat16* x", torch.bfloat16),
    ("uint8_t* x", torch.uint8)])
def test_a_pointer_takes_contiguous_tensors_of_its_type_alone(declared, dtype):
    x = torch.ones(3, 2).to(dtype)
    assert _argument(declared, x).value == x.data_ptr() and _argument(declared, None).value is None
    assert _argument("Mine* x", x).value == x.data_ptr(), "of types that are not known here all are taken"
    for wrong in (x.t(), x.tolist(), x.to("meta"), x.data_ptr()):
        with pytest.raises(TypeError, match="wants a contiguous tensor on the CPU, not (Tensor|list|int)"):
            _argument(declared, wrong)
    with pytest.raises(TypeError, match=f"wants {dtype}, given torch.int16"):
        _argument(declared, x.to(torch.int16))


def test_what_a_function_throws_is_caught_in_cpp():
    assert _caught(("f", ["const float* x", "int n"])) == "SIMT_CAUGHT(f, (const float* x, int n), (x, n))\n"


def test_each_form_is_compiled_once_and_keeps_its_errors(source, monkeypatch):
    built, made = [], []
    monkeypatch.setattr(emulator_build, "build", lambda *given: built.append(given) or str(len(built)))
    monkeypatch.setattr(emulator_build, "load", lambda path: made.append(Library()) or made[-1])
    plain = source.library()
    source.profiled = True
    profiled = source.library()
    source.profiled = False
    assert source.library() is plain and made == [plain, profiled]
    assert [given[1] for given in built] == [False, True] and all(given[0] == source.path for given in built)
    assert built[0][2] == _caught(("none", [])) + _caught(("turn", [
        "const float* x", "int64_t * ids", "unsigned n", "__half* __restrict__ y"]))
    assert [library.calls for library in made] == [[("simt_keep_errors", 1)]] * 2


def test_a_text_is_kept_under_its_digest_and_a_path_where_it_is(source, tmp_path):
    assert source.path.read_text(encoding="utf-8") == SOURCE and source.path.name == "turn.cu"
    assert CudaSource(SOURCE, "turn.cu").path == source.path != CudaSource(SOURCE + "\n", "turn.cu").path
    (tmp_path / "other.cu").write_text(SOURCE)
    assert CudaSource(tmp_path / "other.cu").path == (tmp_path / "other.cu").resolve()


def test_texts_of_a_library_are_declared_as_such(monkeypatch):
    function = type("Function", (), {})
    library = type("L", (), {"simt_take_error": function(), "simt_json": function(), "simt_watch": function()})
    monkeypatch.setattr(emulator_build.ctypes, "CDLL", lambda path: library if path == "a.so" else None)
    assert load(Path("a.so")) is library
    assert library.simt_take_error.restype is library.simt_json.restype is ctypes.c_char_p
    assert not hasattr(library.simt_watch, "restype")


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The calls of a stand-in for g++, whose csrc and build folder are small ones of its own."""
    calls = []

    def gcc(arguments, text, target):
        calls.append((target, arguments, text))
        target.parent.mkdir(exist_ok=True)
        target.write_text("compiled")
        target.chmod(0o700)
        return ""

    simt = tmp_path / "csrc" / "simt"
    (simt / "profile").mkdir(parents=True)
    for name in [*emulator_build.RUNTIME, *emulator_build.PROFILER, emulator_build.GUARD, "simt.h"]:
        (simt / name).write_text(name)
    (tmp_path / "csrc" / "ours.cuh").write_text("ours")
    (tmp_path / "k.cu").write_text("k")
    monkeypatch.setattr(emulator_build, "source_folder", lambda: tmp_path / "csrc")
    monkeypatch.setattr(emulator_build, "build_folder", lambda: (tmp_path / "build").mkdir(exist_ok=True) or
                        tmp_path / "build")
    monkeypatch.setattr(emulator_build, "require_compiler", lambda: None)
    monkeypatch.setattr(emulator_build, "gcc", gcc)
    return calls


@pytest.mark.parametrize("profiled", [False, True])
def test_runtime_and_kernels_are_compiled_with_their_flags_and_linked_in_order(tmp_path, compiled, profiled):
    library = emulator_build.build(tmp_path / "k.cu", profiled, "before")
    (runtime, runtime_flags, together), (kernels, flags, _), (linked, order, _) = compiled
    assert linked == library and kernels == library.with_suffix(".o") and not kernels.exists(), "only the library stays"
    simt = tmp_path / "csrc" / "simt"
    names = emulator_build.RUNTIME + (emulator_build.PROFILER if profiled else [])
    assert together == "".join(f'#include "{simt / name}"\n' for name in names)
    asked = ["-DSIMT_PROFILE", "-fsanitize=thread", "-g"], ["-g1"]
    assert all(flag in flags for flag in asked[not profiled]) and not any(flag in flags for flag in asked[profiled])
    assert ("-DSIMT_PROFILE" in runtime_flags) is profiled and "-fsanitize=thread" not in runtime_flags
    assert set(emulator_build.FAST) < set(flags) and set(emulator_build.FAST) < set(runtime_flags)
    included = [flags[i + 1] for i, flag in enumerate(flags) if flag == "-include"]
    assert included == [str(simt / "simt.h"), str(library.with_suffix(".h"))]
    assert library.with_suffix(".h").read_text() == "before" and f"-I{tmp_path / 'csrc'}" in flags
    assert flags[-4:] == ["-c", "-x", "c++", str((tmp_path / "k.cu").resolve())] and runtime_flags[-1] == "-"
    guard = [str(simt / emulator_build.GUARD)] * profiled
    assert order[:2 + 2 * profiled] == [str(runtime), *guard, str(kernels), *guard]


@pytest.mark.parametrize(("changed", "again"), [
    (None, []), ("k.cu", ["k", "k"]), ("beside.h", ["k", "k"]), ("csrc/ours.cuh", ["k", "k"]),
    ("csrc/new.h", ["k", "k"]), ("csrc/simt/simt.h", ["runtime", "k", "k"]),
    ("csrc/simt/grid.cpp", ["runtime", "k", "k"]), ("csrc/simt/profile/guard.cpp", ["runtime", "k", "k"]),
    ("csrc/simt/profile/shadow.cpp", []), ("csrc/ops.cpp", []), ("before", ["k", "k"]),
    ("profiled", ["runtime", "k", "k"])])
def test_what_a_library_is_made_of_is_compiled_again_when_it_changes_and_the_rest_is_kept(tmp_path, compiled, changed,
                                                                                         again):
    first = emulator_build.build(tmp_path / "k.cu", False)
    compiled.clear()
    if changed and "." in changed:
        (tmp_path / changed).write_text("changed")
    second = emulator_build.build(tmp_path / "k.cu", changed == "profiled", "before" if changed == "before" else "")
    assert [target.name.split("-")[0] for target, _, _ in compiled] == again and (first == second) is (again == [])
    compiled.clear()
    assert emulator_build.build(tmp_path / "k.cu", False) in (first, second) and compiled == []


def test_what_gcc_says_is_the_error_and_its_end_at_most(tmp_path, compiled, monkeypatch):
    monkeypatch.setattr(emulator_build, "gcc", lambda *given: "x" * 5000 + "y" * 4000)
    with pytest.raises(RuntimeError, match="^g\\+\\+ does not compile this:\ny{4000}$"):
        emulator_build.build(tmp_path / "k.cu", False)


def test_sources_lie_in_the_package_or_beside_it_and_what_is_built_in_the_checkout_or_the_cache(tmp_path, monkeypatch):
    package = tmp_path / "minillama"
    monkeypatch.setattr(emulator_build, "__file__", str(package / "simt" / "emulator_build.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="neither in .*minillama nor beside it"):
        emulator_build.source_folder()
    for folder in (tmp_path / "csrc", package / "csrc"):  # the package's own comes first
        folder.mkdir(parents=True)
        (folder / "ops.cpp").touch()
        assert emulator_build.source_folder() == folder
    assert emulator_build.build_folder() == tmp_path / "cache" / "minillama" / "simt"
    (package / "setup.py").touch()
    assert emulator_build.build_folder() == package / "build" / "simt"
    monkeypatch.setattr(emulator_build.os, "access", lambda path, mode: False)
    assert emulator_build.build_folder() == tmp_path / "cache" / "minillama" / "simt"


def test_a_quick_source_is_looked_for_here_and_then_in_csrc(tmp_path, monkeypatch):
    from torch.utils import cpp_extension

    given = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(emulator_build, "require_compiler", lambda *words, **more: given.append((words, more)))
    monkeypatch.setattr(cpp_extension, "load", lambda *words, **more: given.append((words, more)) or "module")
    monkeypatch.setenv("CXX", "my++")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.delenv("MAX_JOBS", raising=False)
    (tmp_path / "mine.cpp").touch()
    assert emulator_build.load_source("quick", ["mine.cpp", "ops.cpp"], python_module=False) == "module"
    (compiler, (words, more)) = given
    csrc = emulator_build.source_folder()
    assert compiler == (("my++",), {"linux_only": False})
    assert words == ("quick", [str(tmp_path / "mine.cpp"), str((csrc / "ops.cpp").resolve())])
    assert more["extra_cflags"][0] == "-O3" and more["extra_include_paths"] == [str(csrc)]
    assert more["is_python_module"] is False
    path = emulator_build.os.environ["PATH"]
    assert path == f"{Path(emulator_build.sys.executable).parent}{emulator_build.os.pathsep}/bin"
    emulator_build.load_source("quick", ["mine.cpp"])
    assert given[-1][1]["is_python_module"] is True and emulator_build.os.environ["PATH"] == path
    with pytest.raises(FileNotFoundError, match="source 'none.cpp' is neither a file here nor one in "):
        emulator_build.load_source("quick", ["none.cpp"])


MUTANTS = [
    Mutant("minillama.simt.emulator_build", "({passed}))", "())", test_what_a_function_throws_is_caught_in_cpp),
]
