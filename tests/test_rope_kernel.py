"""The CUDA kernel of RoPE, run by the emulator, turns pairs as the reference does."""

import pytest
import torch
from mutants import Mutant
from test_kernels import SHAPES, equal_up_to_one_rounding

from minillama import kernels
from minillama.rope import apply_rope, apply_rope_half_split, rope_frequencies, rope_rotations

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def turned(x, positions, interleaved=True):
    """(the kernel's result, the reference's)"""
    rotations = rope_rotations(positions, rope_frequencies(x.shape[-1]))
    reference = apply_rope if interleaved else apply_rope_half_split
    dense = x.clone(memory_format=torch.contiguous_format)
    return kernels.fused_rope(x, rotations, interleaved, backend="simt"), reference(dense, rotations)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_reference(shape, dtype, interleaved):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    equal_up_to_one_rounding(*turned(x, torch.randint(0, 100_000, shape[1:2]), interleaved))
    equal_up_to_one_rounding(*turned(x, torch.randint(0, 100_000, shape[:2]), interleaved))  # a table for each row


def test_any_strides_and_an_offset_are_read():
    torch.manual_seed(1)
    memory = torch.randn(2 * 4 * 7 * 6 + 1)[1:]
    x = memory.view(2, 4, 7, 6)
    for view in (x.transpose(1, 2), x.permute(0, 3, 2, 1)[..., :4], x[:, ::2], x.expand(3, 2, 4, 7, 6)[:, 1]):
        equal_up_to_one_rounding(*turned(view, torch.arange(5, 5 + view.shape[-3])))


def test_leading_dimensions_are_a_batch():
    x = torch.randn(2, 3, 5, 1, 4)
    equal_up_to_one_rounding(*turned(x, torch.arange(5)))
    equal_up_to_one_rounding(*turned(x[0, 0], torch.arange(5)))


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0)])
def test_nothing_is_turned_into_nothing(shape):
    ours, reference = turned(torch.randn(shape), torch.arange(shape[1]))
    assert ours.shape == reference.shape == shape


def test_turning_back_gives_the_gradient_and_keeps_lengths():
    for d in (6, 8):  # element by element, and in vectors
        x = torch.randn(2, 9, 3, d, requires_grad=True)
        y, _ = turned(x, torch.arange(9))
        (dx,) = torch.autograd.grad(y, x, y)  # that of |y|^2 / 2 is x itself, because the turn is orthogonal
        bound = 8 * torch.finfo(torch.float32).eps * float(x.detach().abs().max())  # two turns of four roundings each
        torch.testing.assert_close(dx, x.detach(), rtol=0, atol=bound)


def test_it_compiles_into_one_graph():
    rotations = rope_rotations(torch.arange(5), rope_frequencies(8))
    function = torch.compile(lambda x: kernels.fused_rope(x * 2, rotations, backend="simt").sum(), fullgraph=True,
                             backend="aot_eager")
    x = torch.randn(2, 5, 3, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(function(x), x)
    (wanted,) = torch.autograd.grad(apply_rope(x * 2, rotations).sum(), x)
    torch.testing.assert_close(ours, wanted)


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.kernels", "ctx.interleaved, not ctx.inverse)", "ctx.interleaved, ctx.inverse)",
           test_turning_back_gives_the_gradient_and_keeps_lengths),
]
