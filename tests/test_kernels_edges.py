"""CUDA kernels at the edges of memory: nothing beyond a tensor is read, no stride is cut to 32 bits, and what is not
aligned is not taken for it."""

import ctypes

import pytest
import torch
from guarded import at_the_end, linux, sparse

from minillama import kernels
from minillama.quant.nf4 import NF4Tensor, quantize_nf4
from minillama.rope import rope_frequencies, rope_rotations

pytestmark = [linux, pytest.mark.skipif("simt" not in kernels.built_backends(),
                                        reason=f"the kernels are not built: {kernels.BUILD}")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# ---- nothing is read beyond a tensor's end

def same(ours, wanted, aligned):
    """Bit for bit where the same kernel ran; what is not aligned is summed by another."""
    for a, b in zip(ours, wanted, strict=True):
        assert torch.equal(a, b) if aligned else (torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4) is None)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 17, 32), (1, 10, 2112), (3, 18, 1056), (9, 67, 96), (2, 5, 33),
                                             (1, 3, 264)])
def test_nf4_products_read_no_row_and_no_column_too_many(M, N, K, double, aligned):
    stored = quantize_nf4(torch.randn(N, K), double_quantization=double)
    for dtype in DTYPES:
        x, dy = torch.randn(M, K).to(dtype), torch.randn(M, N).to(dtype)
        parts = [part if part is None else at_the_end(part, aligned) for part in stored.parts()]
        found = [torch.ops.minillama_simt.nf4_matmul(at_the_end(x, aligned), *parts, N, 64),
                 torch.ops.minillama_simt.nf4_matmul_backward(at_the_end(dy, aligned), *parts, K, 64)]
        same(found, [kernels.nf4_matmul(x, stored, "simt"), kernels.nf4_matmul_backward(dy, stored, "simt")], aligned)


@pytest.mark.parametrize(("M", "N", "K"), [(8, 33, 64), (17, 70, 192), (65, 130, 128), (9, 40, 96), (33, 72, 160)])
def test_nf4_products_on_tensor_cores_read_no_row_and_no_column_too_many(M, N, K):
    stored = quantize_nf4(torch.randn(N, K))
    for dtype in DTYPES[1:]:
        x, parts = torch.randn(M, K).to(dtype), [at_the_end(part) for part in stored.parts()]
        ours = torch.ops.minillama_simt.nf4_matmul(at_the_end(x), *parts, N, 64)
        assert torch.equal(ours, kernels.nf4_matmul(x, stored, "simt"))
        dy = torch.randn(M, N).to(dtype)
        ours = torch.ops.minillama_simt.nf4_matmul_backward(at_the_end(dy), *parts, K, 64)
        assert torch.equal(ours, kernels.nf4_matmul_backward(dy, stored, "simt"))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "S", "d"), [(1, 1, 1), (5, 19, 12), (17, 33, 64), (3, 70, 80), (19, 35, 200)])
def test_attention_reads_no_row_and_no_column_too_many(T, S, d, dtype, aligned):
    q, k, v = (torch.randn(1, heads, rows, d).to(dtype) for heads, rows in ((2, T), (1, S), (1, S)))
    found = []
    for place in (torch.clone, lambda x: at_the_end(x, aligned)):
        out, lse, rows = torch.ops.minillama_simt.flash_attention(place(q), place(k), place(v), True)
        gradients = torch.ops.minillama_simt.flash_attention_backward(
            place(torch.ones_like(q)), place(lse), place(q), place(k), place(v), place(out), place(rows), True)
        found.append([out, lse, *gradients])
    same(*found, aligned)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "r"), [(6, 6), (10, 6), (64, 64), (64, 32), (80, 80)])
def test_rope_reads_no_token_and_no_row_of_the_table_too_many(d, r, dtype, aligned):
    q, k = torch.randn(2, 5, 3, d).to(dtype), torch.randn(2, 5, 1, d).to(dtype)
    table = torch.view_as_real(rope_rotations(torch.arange(5), rope_frequencies(r)))
    for interleaved in (True, False):
        found = [torch.ops.minillama_simt.rope(place(q), place(k), place(table), None, 0, interleaved, False)
                 for place in (torch.clone, lambda x: at_the_end(x, aligned))]
        same(*found, aligned)


# ---- strides have 64 bits

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_attention_reads_strides_of_2_to_the_32(dim, dtype):
    inputs = [torch.randn(2, 2, 3, 16).to(dtype) for _ in range(4)]
    found = []
    for q, k, v, direction in (inputs, [sparse(x, dim) for x in inputs]):
        out, lse, rows = torch.ops.minillama_simt.flash_attention(q, k, v, True)
        found.append([out, *torch.ops.minillama_simt.flash_attention_backward(
            direction, torch.zeros_like(lse), q, k, v, out, rows, True)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("d", [6, 16])
def test_rope_reads_and_writes_strides_of_2_to_the_32(d, dim):
    q, k = torch.randn(2, 3, 3, d), torch.randn(2, 3, 2, d)
    rotations = rope_rotations(torch.arange(3), rope_frequencies(d))
    wanted = kernels.fused_rope_qk(q, k, rotations, backend="simt")
    out = [sparse(torch.zeros_like(x), dim) for x in (q, k)]
    kernels.fused_rope_qk(sparse(q, dim), sparse(k, dim), rotations, out=tuple(out), backend="simt")
    assert all(torch.equal(a, b) for a, b in zip(wanted, out, strict=True))


# ---- what is not aligned goes element by element

def kernels_launched(run):
    """Names of the kernels that `run` launches, by the emulator's own account."""
    with kernels.profile() as p:
        run()
    assert p.findings == []
    return [name.split("<")[0] for name in p.kernels]


def off(x):
    """The same numbers one element behind a multiple of 16 bytes."""
    return torch.empty(x.numel() + 16, dtype=x.dtype)[1:1 + x.numel()].view(x.shape).copy_(x)


@pytest.mark.long
def test_vectors_are_used_where_all_is_aligned_and_only_there():
    """Each of x, y and their strides, each of x and the codes: one of them off, and no 16 bytes are touched at once."""
    q, k = torch.randn(1, 3, 4, 16).bfloat16(), torch.randn(1, 3, 1, 16).bfloat16()
    rotations = rope_rotations(torch.arange(3), rope_frequencies(16))
    wide = torch.zeros(1, 3, 4, 20).bfloat16()[..., :16]  # a head's stride is no multiple of 8

    def rope(q, k, y):
        return lambda: kernels.fused_rope_qk(q, k, rotations, out=(y, torch.empty_like(k)), backend="simt")

    def nf4(x, codes, product=kernels.nf4_matmul):
        moved = NF4Tensor(codes, stored.absmax, stored.absmax_scale, stored.absmax_offset, stored.shape, 64)
        return lambda: product(x, moved, "simt")

    def gradient(dy, codes):
        return nf4(dy, codes, kernels.nf4_matmul_backward)

    stored, x, rows = quantize_nf4(torch.randn(8, 64)), torch.randn(1, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    empty, dy = torch.empty_like(q), torch.randn(8, 8).bfloat16()
    for run, kernel in ((rope(q, k, empty), "rope_v4"), (rope(off(q), k, empty), "rope_scalar"),
                        (rope(q, off(k), empty), "rope_scalar"), (rope(q, k, off(empty)), "rope_scalar"),
                        (rope(q, k, wide), "rope_scalar"), (rope(wide, k, empty), "rope_scalar"),
                        (nf4(x, stored.codes), "nf4_matvec_v1"), (nf4(off(x), stored.codes), "nf4_matmul_v1"),
                        (nf4(x, off(stored.codes)), "nf4_matmul_v1"), (nf4(rows, stored.codes), "nf4_matmul_v3"),
                        (nf4(rows[:7], stored.codes), "nf4_matmul_v2"),
                        (nf4(x.float(), stored.codes), "nf4_matmul_v2"),
                        (nf4(rows.float(), stored.codes), "nf4_matmul_v2"),
                        (nf4(off(rows), stored.codes), "nf4_matmul_v1"),
                        (gradient(dy, stored.codes), "nf4_matmul_backward_v3"),
                        (gradient(dy[:7], stored.codes), "nf4_matmul_backward_v2"),
                        (gradient(dy.float(), stored.codes), "nf4_matmul_backward_v2"),
                        (gradient(off(dy), stored.codes), "nf4_matmul_backward_v1"),
                        (gradient(dy, off(stored.codes)), "nf4_matmul_backward_v1")):
        assert kernels_launched(run) == [kernel]


# ---- what only the kernel itself can be asked: the operators check positions, and launch RoPE's last version

class Rows(ctypes.Structure):
    """`RopeRows` of csrc/cuda/kernels.h."""

    _fields_ = [("x", ctypes.c_void_p), ("x_batch", ctypes.c_int64), ("x_head", ctypes.c_int64),
                ("x_row", ctypes.c_int64), ("y", ctypes.c_void_p), ("y_batch", ctypes.c_int64),
                ("y_head", ctypes.c_int64), ("y_row", ctypes.c_int64), ("heads", ctypes.c_int64)]


class Table(ctypes.Structure):
    """`RopeTable`."""

    _fields_ = [("rotations", ctypes.c_void_p), ("positions", ctypes.c_void_p), ("rows", ctypes.c_int64),
                ("half", ctypes.c_int64), ("batch", ctypes.c_int64), ("offset", ctypes.c_int64)]


class Shape(ctypes.Structure):
    """`RopeShape`."""

    _fields_ = [("batch", ctypes.c_int64), ("tokens", ctypes.c_int64), ("width", ctypes.c_int64),
                ("interleaved", ctypes.c_bool), ("inverse", ctypes.c_bool)]


def exported(name):
    import minillama._ops

    return ctypes.CDLL(minillama._ops.__file__)[name]


@pytest.mark.parametrize("width", [16, 14])
def test_a_position_without_a_row_makes_nan_and_reads_nothing(width):
    """The first number behind the table is such a position too. In vectors, and element by element."""
    rope = exported("_ZN9minillama7kernels4ropeENS0_5DTypeENS0_8RopeRowsES2_NS0_9RopeTableENS0_9RopeShapeEPv")
    x, y = torch.randn(5, width), torch.zeros(5, width)
    positions = torch.tensor([2, 3, -1, 0, 2**40])
    rotations = rope_rotations(torch.arange(3), rope_frequencies(width))
    table = at_the_end(torch.view_as_real(rotations))
    q = Rows(x.data_ptr(), 5 * width, width, width, y.data_ptr(), 5 * width, width, width, 1)
    rope(0, q, Rows(), Table(table.data_ptr(), positions.data_ptr(), 3, width // 2, 5, 0),
         Shape(1, 5, width, True, False), None)
    assert y.isnan().all(-1).tolist() == [False, True, True, False, True]
    wanted = kernels.fused_rope(x[None, [0, 3], None], rotations[[2, 0]], backend="simt")[0, :, 0]
    assert torch.equal(y[[0, 3]], wanted)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_token_turns_by_its_own_row_in_versions_1_to_3(version, interleaved):
    run = exported("_ZN9minillama7kernels12rope_versionEiNS0_5DTypeEPKvPKfPvlllbS6_")
    T, H, d = 3, 2, 16
    x, y = torch.randn(1, T, H, d), torch.zeros(1, T, H, d)
    rotations = torch.polar(torch.ones(T, d // 2), torch.randn(T, d // 2))
    table = at_the_end(torch.view_as_real(rotations))
    run(version, 0, *(ctypes.c_void_p(one.data_ptr()) for one in (x, table, y)), ctypes.c_int64(T), ctypes.c_int64(H),
        ctypes.c_int64(d // 2), ctypes.c_bool(interleaved), None)
    assert torch.equal(y, kernels.fused_rope(x, rotations, interleaved, "simt"))
