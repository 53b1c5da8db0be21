"""Compiled kernels say what the plain PyTorch reference says; what is not built is refused with the way to build it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.rope import apply_rope, apply_rope_half_split, rope_frequencies, rope_rotations
from minillama.simt import emulator_build

needs_cpu = pytest.mark.skipif(
    "cpu" not in kernels.built_backends(), reason=f"the CPU kernels are not built: {kernels.BUILD}"
)
SHAPES = [(1, 1, 1, 2), (2, 7, 3, 6), (2, 97, 4, 96), (3, 31, 5, 10), (2, 1, 32, 128)]  # the third is shared by threads


def rotated_pair(shape, dtype, interleaved, per_row=False, seed=0):
    """(what the kernel makes, what the reference makes) of a random x at positions far from 0."""
    torch.manual_seed(seed)
    x = torch.randn(shape).to(dtype)
    positions = torch.randint(0, 4096, shape[:2] if per_row else shape[1:2])
    rotations = rope_rotations(positions, rope_frequencies(shape[-1]))
    reference = apply_rope if interleaved else apply_rope_half_split
    return kernels.fused_rope(x, rotations, interleaved), reference(x, rotations)


def equal_up_to_one_rounding(ours, reference):
    """fp32: both sum two products, fused or not, so they differ by two roundings of numbers below |x0| + |x1|; the
    narrow dtypes then round once, and a difference in the last fp32 bit can flip that: one unit in the last place."""
    assert ours.dtype == reference.dtype and ours.shape == reference.shape
    unit = torch.finfo(ours.dtype).eps
    scale = reference.float().abs() + (1e-1 if ours.dtype == torch.float32 else 1e-5)
    assert ((ours.float() - reference.float()).abs() <= (16 if ours.dtype == torch.float32 else 1) * unit * scale).all()


@needs_cpu
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_rope_equals_the_reference(shape, dtype, interleaved):
    for per_row in (False, True):
        equal_up_to_one_rounding(*rotated_pair(shape, dtype, interleaved, per_row))


@needs_cpu
def test_fused_rope_reads_a_strided_input():
    x = torch.randn(2, 4, 7, 6).transpose(1, 2)  # (B, H, T, d) memory seen as (B, T, H, d)
    rotations = rope_rotations(torch.arange(7), rope_frequencies(6))
    equal_up_to_one_rounding(kernels.fused_rope(x, rotations), apply_rope(x, rotations))


@needs_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="the build uses OpenMP on Linux")
def test_the_kernels_are_built_with_threads():
    """Without OpenMP's flag, parallel_for compiles to a plain loop, and nothing says so."""
    import minillama._ops

    assert b"GOMP_parallel" in Path(minillama._ops.__file__).read_bytes()


@needs_cpu
@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4)])
def test_fused_rope_of_nothing_is_nothing(shape):
    ours, reference = rotated_pair(shape, torch.float32, interleaved=True)
    assert ours.shape == reference.shape == shape


@needs_cpu
@pytest.mark.parametrize("interleaved", [True, False])
def test_gradient_of_fused_rope_is_the_references(interleaved):
    torch.manual_seed(1)
    x = torch.randn(2, 5, 3, 8, requires_grad=True)
    rotations = rope_rotations(torch.arange(100, 105), rope_frequencies(8))
    reference = apply_rope if interleaved else apply_rope_half_split
    upstream = torch.randn(2, 5, 3, 8)
    (ours,) = torch.autograd.grad(kernels.fused_rope(x, rotations, interleaved), x, upstream)
    (wanted,) = torch.autograd.grad(reference(x, rotations), x, upstream)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=4 * torch.finfo(torch.float32).eps * 8)  # |g| < 8


@needs_cpu
@pytest.mark.parametrize(("x", "rotations"), [
    ((2, 5, 3, 7), (5, 3)), ((2, 5, 3, 8), (6, 4)), ((2, 5, 3, 8), (3, 5, 4)), ((2, 5, 3, 8), (1, 1, 5, 4)),
    ((5, 8), (5, 4)), ((2, 5, 3, 8), (5, 2))], ids=str)
def test_shapes_that_do_not_fit_are_refused_with_the_wanted_and_the_given(x, rotations):
    with pytest.raises(ValueError, match=r"x has shape .* and rotations .*: wanted \(\.\.\., T, H, d\), d even"):
        kernels.fused_rope(torch.zeros(x), torch.ones(rotations, dtype=torch.complex64))


def test_a_backend_that_is_not_built_is_refused_with_the_command_that_builds_it(monkeypatch):
    monkeypatch.setattr(kernels, "_load_operators", lambda: "minillama._ops was never compiled")
    assert kernels.built_backends() == ("reference",)
    with pytest.raises(RuntimeError, match="never compiled.*setup.py build_ext --inplace"):
        kernels.fused_rope(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, dtype=torch.complex64))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'tpu' is not known: choose 'reference', 'cpu', 'simt', 'cuda'"):
        kernels.require("tpu")


def test_a_backend_takes_tensors_of_its_own_device_only():
    with pytest.raises(ValueError, match="x is on meta, and backend 'cpu' takes tensors on cpu"):
        kernels.fused_rope(torch.zeros(1, 1, 1, 2, device="meta"), torch.ones(1, 1, dtype=torch.complex64))


def test_the_cuda_backend_is_refused_with_its_own_command_where_it_is_not_built():
    if "cuda" in kernels.built_backends():
        pytest.skip("it is built here")
    with pytest.raises(RuntimeError, match="_cuda was never compiled.*with nvcc: MINILLAMA_CUDA=1 python setup.py"):
        kernels.require("cuda")


def test_operators_for_gpus_are_loaded_before_anything_is_registered_for_them(monkeypatch):
    done = []
    monkeypatch.setattr(kernels.importlib, "import_module", done.append)
    monkeypatch.setattr(torch.library, "register_fake", lambda name, fake: done.append("registered"))
    monkeypatch.setattr(torch.library, "register_autograd", lambda *given, **named: None)
    kernels._load_library.cache_clear()
    try:
        assert kernels._load_operators.__wrapped__() is None
    finally:
        kernels._load_library.cache_clear()
    assert done[:2] == ["minillama._ops", "minillama._cuda"] and set(done[2:]) <= {"registered"}


@pytest.mark.skipif("simt" not in kernels.built_backends(), reason="the emulated kernels are not built")
def test_a_schedule_holds_within_its_block_and_the_one_before_it_afterwards(monkeypatch):
    orders = []
    monkeypatch.setattr(torch.ops.minillama_simt, "set_schedule", orders.append)
    monkeypatch.setattr(emulator_build, "order", "forward")
    with pytest.raises(KeyError), kernels.schedule("shuffle:12"):
        assert orders == ["shuffle:12"] and emulator_build.order == "shuffle:12"
        raise KeyError
    assert orders == ["shuffle:12", "forward"] and emulator_build.order == "forward"
    with kernels.schedule("reverse"):
        with pytest.raises(KeyError), kernels.schedule("shuffle:3"):
            raise KeyError
        assert orders[2:] == ["reverse", "shuffle:3", "reverse"] and emulator_build.order == "reverse"
    assert orders[-1] == "forward" and emulator_build.order == "forward"
    for wrong in ("sideways", "shuffle", "shuffle:x", "forward "):
        with pytest.raises(ValueError, match="is not known: use 'forward', 'reverse' or 'shuffle:SEED'"):
            kernels.schedule(wrong).__enter__()


def test_the_reference_needs_no_library():
    """In a fresh process where `minillama._ops` cannot be found, everything but the kernels is there."""
    code = ("import sys; sys.modules['minillama._ops'] = None\n"
            "import minillama.transformer, minillama.kernels as k; assert k.built_backends() == ('reference',)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_command_loads_torch_compile_before_it_is_asked_for():
    """It takes as long to load as PyTorch, and every command would wait. A model's shape is made without it too."""
    code = ("import sys, torch\nfrom minillama.cli.command_line import build_parser\nbuild_parser()\n"
            "from minillama.checkpoint.weights import planned_model\nfrom minillama.config import preset\n"
            "import minillama.chat, minillama.generate, minillama.rlhf.train_ppo, minillama.train.sft\n"
            "model = planned_model(preset('stories260k'))\n"
            "assert all(weight.is_meta for weight in model.parameters())\n"
            "assert 'torch._dynamo' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


OLDER = """
import sys, types, torch
sys.modules.update({"minillama._ops": types.ModuleType("_ops"), "minillama._cuda": None})
from types import SimpleNamespace
from minillama import kernels
from minillama.backends import use_kernels
from minillama.quant.nf4 import quantize_nf4
turn = "rope(Tensor q, Tensor k, Tensor t, Tensor? p, SymInt o, bool i, bool inverse) -> (Tensor, Tensor)"
matmul = "nf4_matmul(Tensor x, Tensor c, Tensor a, Tensor? s, Tensor? o, int features, int size) -> Tensor"
libraries = [torch.library.Library(name, "DEF") for name in ("minillama", "minillama_simt")]
for library in libraries:
    library.define(turn)
    library.impl("rope", lambda q, k, *how: (q.clone(), k.clone()), "CPU")
libraries[0].define(matmul)  # as it was while only GPUs had a kernel of that name
x, table = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, dtype=torch.complex64)
assert kernels.fused_rope(x, table).shape == x.shape
for call in (lambda: kernels.nf4_matmul(torch.zeros(64), quantize_nf4(torch.ones(1, 64)), "cpu"),
             lambda: kernels.nf4_matmul_backward(torch.zeros(1), quantize_nf4(torch.ones(1, 64)), "simt"),
             lambda: kernels.fused_rope_qk(x, x, table, in_place=True),
             lambda: kernels.fused_rope_qk(x, x, table, out=(x, x)),
             lambda: kernels.flash_attention(x, x, x, backend="simt"),
             lambda: use_kernels(SimpleNamespace(layers=[], modules=list, named_modules=list), "cpu")):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""


def test_compiled_kernels_older_than_the_sources_are_named_in_one_sentence_with_the_command():
    """In a fresh process: libraries that know rope alone, and nf4_matmul for no processor."""
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True)
    lacking = [("cpu", "nf4_matmul"), ("simt", "nf4_matmul_backward"), ("cpu", "rope_"), ("cpu", "rope_into"),
               ("simt", "flash_attention"), ("cpu", "silu_product")]
    assert done.stdout.splitlines() == [
        f"the compiled kernels of backend {backend!r} are older than the sources: they lack {name}. "
        "In the checkout: python setup.py build_ext --inplace" for backend, name in lacking], done.stderr


def test_a_missing_source_is_named():
    with pytest.raises(FileNotFoundError, match="no_such.cpp"):
        emulator_build._find_source("no_such.cpp")


@pytest.mark.long
def test_a_source_is_compiled_on_the_spot_with_the_headers_of_csrc(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    source = tmp_path / "lab.cpp"
    source.write_text("""
        #include <pybind11/pybind11.h>
        #include "cpu/rope.h"
        double turned(double x0, double x1, double c, double s) {
          const float x[] = {float(x0), float(x1)}, table[] = {float(c), float(s)};
          float y[2];
          const minillama::kernels::RopeRows rows = {{x, 2, 2, 2}, y, 2, 2, 2, 1}, none = {};
          minillama::rope_cpu<float>(rows, none, {table, nullptr, 1, 1, 0, 0}, {1, 1, 2, true, false}, 0, 1);
          return y[0];
        }
        PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("turned", &turned); }
    """)
    lab = kernels.load_source("lab", [source, "cpu/rope.cpp"])
    assert lab.turned(3.0, 5.0, 0.5, 0.25) == 3.0 * 0.5 - 5.0 * 0.25


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "ctx.interleaved, not ctx.inverse)", "ctx.interleaved, ctx.inverse)",
           lambda: test_gradient_of_fused_rope_is_the_references(True)),
    Mutant("minillama.kernels", "table, None, 0, interleaved, False)[0]", "table, None, 0, True, False)[0]",
           lambda: test_fused_rope_equals_the_reference((2, 7, 3, 6), torch.float32, False)),
]
