"""The kernels of the NF4 product, for processors and for GPUs (run by the emulator): the stored bits mean what the
reference says they mean."""

import itertools
import re

import pytest
import torch
from mutants import Mutant

from minillama import kernels
from minillama.quant.nf4 import DYNAMIC_MAP, NF4_LEVELS, NF4Linear, quantize_nf4

needs_simt = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
SHAPES = [(1, 1, 1), (3, 5, 7), (8, 24, 64), (2, 65, 63), (5, 3, 65), (1, 72, 130), (33, 64, 320)]  # (M, N, K)
AROUND_TILES = [(4, 47, 1025), (5, 49, 127), (63, 48, 129), (64, 97, 128), (65, 6, 257), (130, 131, 65)]
VECTORS = [(1, 17, 32), (1, 3, 1056), (1, 9, 3104), (2, 16, 96), (9, 15, 1024),
           (8, 66, 264)]  # GPUs read 4 or 16 bytes of codes
TENSOR_CORES = [(8, 33, 64), (9, 70, 192), (16, 40, 1088), (17, 31, 128), (33, 129, 64), (64, 20, 448), (65, 130, 192)]
BACKWARD = [(8, 40, 32), (17, 72, 96), (33, 136, 64), (65, 264, 160)]  # whole 16 bytes of gradients
KINDS = ["simt", "cpu plain", "cpu avx2", "cpu avx512"]


@pytest.fixture
def backend(request):
    """One of KINDS: a backend, and which vectors its loops are to use."""
    name, *vectors = request.param.split()
    if vectors:
        try:
            torch.ops.minillama.set_vectors(*vectors)
        except RuntimeError:
            pytest.skip(f"this processor has no {vectors[0]}")
    yield name
    if vectors:
        torch.ops.minillama.set_vectors("best")


every_kind = pytest.mark.parametrize("backend", KINDS, indirect=True)


def operators(backend):
    return getattr(torch.ops, kernels.LIBRARIES[backend])


def law(ours, plain, exact, factor):
    """Error against float64 at most `factor` times plain PyTorch's, plus a unit in the last place of the largest."""
    unit = torch.finfo(ours.dtype).eps * float(exact.abs().max())
    error, of_plain = (float((found.double() - exact).abs().max()) for found in (ours, plain))
    assert ours.dtype == plain.dtype and ours.shape == exact.shape
    assert error <= factor * of_plain + unit, f"error {error:.2e}, plain PyTorch has {of_plain:.2e}"


def test_the_kernels_tables_are_the_references():
    text = (kernels.source_folder() / "nf4_table.h").read_text(encoding="utf-8")
    lists = [[float(number) for number in re.findall(r"(-?[\d.]+(?:e-?\d+)?)f", part)]
             for part in text.split("#define")[1:]]
    for found, wanted in zip(lists, (NF4_LEVELS, DYNAMIC_MAP), strict=True):
        assert torch.equal(torch.tensor(found), torch.tensor(wanted))


@needs_simt
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("M", "N", "K", "backend"), [(*shape, kind) for kind in KINDS for shape in SHAPES] +
                         [(*shape, kind) for kind in KINDS[1:] for shape in AROUND_TILES] +
                         [(*shape, "simt") for shape in VECTORS + TENSOR_CORES + BACKWARD], indirect=["backend"])
def test_product_and_gradient_keep_the_tolerance_law(M, N, K, dtype, double, backend):
    torch.manual_seed(0)
    stored = quantize_nf4(torch.randn(N, K), double_quantization=double)
    x, dy = torch.randn(M, K).to(dtype).requires_grad_(), torch.randn(M, N).to(dtype)
    ours, weight = kernels.nf4_matmul(x, stored, backend), stored.dequantize()
    law(ours.detach(), stored.product(x.detach()), x.detach().double() @ weight.double().T, 2)
    assert torch.equal(kernels.nf4_matmul_backward(dy, stored, backend), torch.autograd.grad(ours, x, dy, True)[0])
    law(torch.autograd.grad(ours, x, dy)[0], dy @ weight.to(dtype), dy.double() @ weight.double(), 3)


@needs_simt
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("M", "N", "K"), [(8, 264, 64), (17, 136, 96), (40, 72, 160), (65, 136, 6848)])
def test_scales_above_65504_give_the_gradient_in_fp16_that_fp32_gives(M, N, K, double):
    """fp16 has no number for them: rows here and there, of which some are the last of a step, and whole results that it
    has numbers for."""
    torch.manual_seed(0)
    weight = torch.randn(N, K)
    weight[[0, 15, 16, 63, 71]] *= 4e5
    stored, dy = quantize_nf4(weight, double_quantization=double), (torch.randn(M, N) * 1e-3).half()
    exact, plain = dy.double() @ stored.dequantize().double(), dy.float() @ stored.dequantize()
    law(kernels.nf4_matmul_backward(dy, stored, "simt"), plain.half(), exact, 3)


@needs_simt
def test_17_to_64_rows_are_multiplied_in_tiles_of_32_whatever_the_weights_rows():
    """In two ways, by how many blocks there would be: each row is what it is alone among others."""
    for N in (40, 6920):
        stored = quantize_nf4(torch.randn(N, 320))
        x = torch.randn(64, 320).half()
        exact, plain = x.double() @ stored.dequantize().double().T, stored.product(x)
        for M in (17, 33, 64):
            law(kernels.nf4_matmul(x[:M], stored, "simt"), plain[:M], exact[:M], 2)


@needs_simt
@pytest.mark.parametrize("block", [32, 256])
def test_gradients_of_many_tiles_are_those_of_few(block):
    """From 108 tiles of 64 by 128 on, no warps share columns; dy's first eight rows alone are another kernel's."""
    stored, dy = quantize_nf4(torch.randn(16, 6816), block), torch.randn(65, 16).bfloat16()
    many, few = (kernels.nf4_matmul_backward(rows, stored, "simt") for rows in (dy, dy[:8]))
    assert torch.equal(many[:8], few)
    law(many, dy @ stored.dequantize().to(dy.dtype), dy.double() @ stored.dequantize().double(), 3)


@needs_simt
@every_kind
@pytest.mark.parametrize("double", [True, False])
def test_the_identity_gives_back_the_dequantized_weight_bit_for_bit(double, backend):
    """Sums of one number and zeros are exact, and a scale is never fused into its offset."""
    stored = quantize_nf4(torch.randn(24, 48), double_quantization=double)
    assert torch.equal(kernels.nf4_matmul(torch.eye(48), stored, backend).T, stored.dequantize())
    rows = operators(backend).nf4_matmul_backward(torch.eye(24), *stored.parts(), 48, 64)
    assert torch.equal(rows, stored.dequantize())


@needs_simt
@every_kind
@pytest.mark.parametrize("block_size", [2, 6, 32, 4096])
def test_any_block_size_is_read(block_size, backend):
    stored = quantize_nf4(torch.randn(17, 31), block_size)
    assert torch.equal(kernels.nf4_matmul(torch.eye(31), stored, backend).T, stored.dequantize())


@needs_simt
@every_kind
@pytest.mark.parametrize("block_size", [2, 4096])
@pytest.mark.parametrize("K", [8191, 8192])
def test_neither_two_thousand_blocks_nor_one_block_are_summed_number_by_number(K, block_size, backend):
    """Of positive numbers a sum one by one would be off by dozens of units in the last place."""
    for seed in range(3):
        torch.manual_seed(seed)
        stored, x = quantize_nf4(torch.rand(3, K), block_size), torch.rand(2, K)
        weight = stored.dequantize()
        law(kernels.nf4_matmul(x, stored, backend), x @ weight.T, x.double() @ weight.double().T, 2)


@needs_simt
@every_kind
@pytest.mark.parametrize(("M", "K"), [(1, 64), (3, 64), (2, 63)])
def test_what_overflows_in_the_result_alone_is_infinite(M, K, backend):
    """1e38 times small weights is finite, in whatever order it is summed; times large ones it is not."""
    x, dy = torch.full((M, K), 1e38), torch.full((M, 5), 1e38)
    for dtype in (torch.float32, torch.bfloat16):
        small, large = (quantize_nf4(torch.full((5, K), size)) for size in (1e-2, 1e3))
        found = kernels.nf4_matmul(x.to(dtype), small, backend).double()
        torch.testing.assert_close(found, x.to(dtype).double() @ small.dequantize().double().T, rtol=1e-2, atol=0)
        found = kernels.nf4_matmul_backward(dy.to(dtype), small, backend).double()
        torch.testing.assert_close(found, dy.to(dtype).double() @ small.dequantize().double(), rtol=1e-2, atol=0)
        assert kernels.nf4_matmul(x.to(dtype), large, backend).isinf().all()


@needs_simt
@every_kind
def test_more_than_a_group_of_scales_and_rows_of_zeros(backend):
    """300 blocks need a second fp32 scale; a block of zeros has absmax 0."""
    weight = torch.randn(300, 64)
    weight[7] = 0
    stored = quantize_nf4(weight, double_quantization=True)
    assert torch.equal(kernels.nf4_matmul(torch.eye(64), stored, backend).T, stored.dequantize())


@needs_simt
@every_kind
def test_leading_dimensions_and_strides_do_not_matter(backend):
    stored = quantize_nf4(torch.randn(5, 8))
    x = torch.randn(8, 3, 2).permute(2, 1, 0)
    dense = kernels.nf4_matmul(x.reshape(6, 8), stored, backend)
    assert torch.equal(kernels.nf4_matmul(x, stored, backend), dense.view(2, 3, 5))
    assert kernels.nf4_matmul(torch.zeros(0, 3, 8), stored, backend).shape == (0, 3, 5)
    assert kernels.nf4_matmul(x[0, 0], stored, backend).shape == (5,)


@needs_simt
@every_kind
def test_a_layers_stored_bits_go_straight_in(backend):
    layer = NF4Linear.from_weight(torch.randn(6, 10))
    x = torch.randn(4, 10)
    torch.testing.assert_close(kernels.nf4_matmul(x, layer.packed_weight(), backend), layer(x), rtol=0, atol=1e-5)


@needs_simt
@every_kind
@pytest.mark.parametrize("double", [True, False])
def test_the_operators_pass_pytorchs_own_check(double, backend):
    stored = quantize_nf4(torch.randn(5, 8), double_quantization=double)
    forward, gradient = operators(backend).nf4_matmul.default, operators(backend).nf4_matmul_backward.default
    torch.library.opcheck(forward, (torch.randn(3, 8, requires_grad=True), *stored.parts(), 5, 64))
    torch.library.opcheck(gradient, (torch.randn(3, 5), *stored.parts(), 8, 64))


@needs_simt
@every_kind
def test_it_compiles_into_one_graph(backend):
    stored = quantize_nf4(torch.randn(5, 8))
    function = torch.compile(lambda x: kernels.nf4_matmul(x * 2, stored, backend).sum(), fullgraph=True,
                             backend="aot_eager")
    x = torch.randn(3, 8, requires_grad=True)
    (dx,) = torch.autograd.grad(function(x), x)
    torch.testing.assert_close(dx, 2 * torch.ones(3, 5) @ stored.dequantize())


@needs_simt
@every_kind
@pytest.mark.parametrize(("change", "message"), [
    (dict(codes=torch.zeros(3, dtype=torch.uint8)), r"codes holds 3 bytes, wanted 20 for a weight of shape \(5, 8\)"),
    (dict(codes=torch.zeros(20)), "codes has dtype Float, wanted Byte"),
    (dict(absmax=torch.zeros(2, dtype=torch.uint8)), "absmax holds 2 values, wanted 1 for 40 weights in blocks of 64"),
    (dict(absmax=torch.zeros(1)), "absmax has dtype Float, wanted Byte"),
    (dict(offset=None), "belong together"),
    (dict(scale=torch.zeros(2)), "absmax_scale holds 2 values and absmax_offset 1, wanted 1 and 1"),
    (dict(block=3), "block_size 3 is not allowed"),
    (dict(block=2**63 - 2), "block_size 9223372036854775806 is not allowed: use an even number up to 2"),
])
def test_wrong_arguments_are_refused_with_the_wanted_and_the_given(change, message, backend):
    codes, absmax, scale, offset = quantize_nf4(torch.randn(5, 8)).parts()
    given = {**dict(codes=codes, absmax=absmax, scale=scale, offset=offset, rows=5, block=64), **change}
    with pytest.raises(RuntimeError, match=message):
        operators(backend).nf4_matmul(torch.zeros(3, 8), *given.values())


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(3, 7\) and the weight \(5, 8\)"):
        kernels.nf4_matmul(torch.zeros(3, 7), quantize_nf4(torch.randn(5, 8)))
    with pytest.raises(ValueError, match="a product needs a matrix"):
        kernels.nf4_matmul(torch.zeros(3, 7), quantize_nf4(torch.randn(5)))


@needs_simt
def test_a_backend_without_this_kernel_is_refused():
    with pytest.raises(ValueError, match="nf4_matmul has no kernel for backend 'reference': choose from cpu, simt"):
        kernels.nf4_matmul(torch.zeros(3, 8), quantize_nf4(torch.randn(5, 8)), backend="reference")


@needs_simt
def test_what_pytorch_may_use_of_a_processor_caps_the_best_vectors_and_no_others(monkeypatch):
    """Each kind sums in an order of its own, which shows in the last bits of long sums."""
    torch.manual_seed(0)
    stored, x = quantize_nf4(torch.randn(7, 1031)), torch.randn(3, 1031)

    def bits(kind):
        torch.ops.minillama.set_vectors(kind)
        return kernels.nf4_matmul(x, stored, "cpu")

    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    try:
        known = {}
        for kind in ("plain", "avx2", "avx512"):
            try:
                known[kind] = bits(kind)
            except RuntimeError:
                pass  # not of this processor
        best = list(known)[-1]
        assert all(not torch.equal(known[a], known[b]) for a, b in itertools.combinations(known, 2))
        for cap, kind in ((None, best), ("", best), ("avx512", best), ("avx2", "avx2"), ("default", "plain")):
            monkeypatch.setenv("ATEN_CPU_CAPABILITY", cap) if cap is not None else None
            assert torch.equal(bits("best"), known.get(kind, known[best])), (cap, kind)
            assert all(torch.equal(bits(asked), known[asked]) for asked in known), "asked for by name"
        with pytest.raises(RuntimeError, match="sse9"):
            torch.ops.minillama.set_vectors("sse9")
    finally:
        monkeypatch.undo()
        torch.ops.minillama.set_vectors("best")


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.quant.nf4", "self.absmax_scale, self.absmax_offset\n", "self.absmax_scale, "
           "self.absmax_offset and self.absmax_offset * 0\n",
           lambda: test_the_identity_gives_back_the_dequantized_weight_bit_for_bit(True, "cpu")),
    Mutant("minillama.kernels", "gradient, *ctx.saved_tensors, ctx.in_features", "gradient * 1.02, *ctx.saved_tensors, "
           "ctx.in_features",
           lambda: test_product_and_gradient_keep_the_tolerance_law(3, 5, 7, torch.float32, True, "cpu")),
]
