"""RMSNorm: the paper's formula, to the bit of the published code, in every dtype."""

import math

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.rms_norm import RMSNorm, rms_norm

FP32_EPS, FP64_EPS = 2.0**-24, 2.0**-53  # half a unit in the last place


@pytest.mark.parametrize("width", [1, 2, 7, 63, 64, 65])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, FP32_EPS), (torch.float64, FP64_EPS)])
def test_it_is_the_papers_formula_on_the_last_axis(width, dtype, unit):
    torch.manual_seed(width)
    x, weight = torch.randn(2, 3, width, dtype=dtype), torch.randn(width, dtype=dtype)
    wanted = torch.tensor([[oracles.rms_norm(v, weight.tolist(), 1e-2) for v in row] for row in x.tolist()],
                          dtype=torch.float64)
    error = (rms_norm(x, weight, 1e-2).double() - wanted).abs()
    # square, mean (a sum of `width` terms), rsqrt (2 units), two products: each rounds once
    assert (error <= (width + 8) * unit * wanted.abs()).all()


def test_epsilon_stands_under_the_root():
    x = torch.tensor([[3e-4, -3e-4, 3e-4, -3e-4]])
    wanted = 3e-4 / math.sqrt(9e-8 + 1e-5)  # outside the root it would be 3e-4 / (3e-4 + 1e-5) = 0.97
    assert rms_norm(x, torch.ones(4), 1e-5)[0, 0].item() == pytest.approx(wanted, rel=1e-6)
    assert rms_norm(torch.zeros(1, 4), torch.ones(4), 1e-5).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_bit_equal_to_transformers(dtype, weight_dtype):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="oracle: transformers")
    torch.manual_seed(1)
    x, theirs = (torch.randn(5, 7, 96) * 3).to(dtype), llama.LlamaRMSNorm(96, eps=1e-5)
    theirs.weight.data = torch.randn(96).to(weight_dtype)
    ours = rms_norm(x, theirs.weight, 1e-5)
    assert ours.dtype == theirs(x).dtype and torch.equal(ours, theirs(x))


def test_squares_of_half_precision_do_not_overflow():
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # 300^2 is above float16's largest number, 65504
    assert rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-5).tolist() == [[1.0] * 8]


def test_the_result_has_length_root_of_width_whatever_the_input_length():
    torch.manual_seed(2)
    x = torch.randn(17, 64, dtype=torch.float64) * torch.logspace(-2, 4, 17, dtype=torch.float64)[:, None]
    lengths = rms_norm(x, torch.ones(64, dtype=torch.float64), 1e-12).norm(dim=-1)
    assert (lengths - 8).abs().max() < 1e-6  # 1e-12 beside mean squares of 1e-4: 5e-9


def test_its_gradient_is_the_derivative():
    torch.manual_seed(3)
    x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    inputs = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-5), inputs)


def test_the_layer_starts_with_gains_of_one_and_uses_its_epsilon():
    layer = RMSNorm(6, eps=0.5)
    assert [tuple(p.shape) for p in layer.parameters()] == [(6,)] and layer.weight.tolist() == [1.0] * 6
    x = torch.randn(4, 6)
    assert torch.equal(layer(x), rms_norm(x, torch.ones(6), 0.5))
    layer.weight.data *= 2
    assert torch.equal(layer(x), 2 * rms_norm(x, torch.ones(6), 0.5))


def _bit_equal_in_bf16():
    test_it_is_bit_equal_to_transformers(torch.bfloat16, torch.bfloat16)


MUTANTS = [
    Mutant("minillama.rms_norm", "mean(-1, keepdim=True) + eps)", "mean(-1, keepdim=True)) + eps",
           test_epsilon_stands_under_the_root),
    Mutant("minillama.rms_norm", ".mean(-1, keepdim=True)", ".mean(0, keepdim=True)",
           lambda: test_it_is_the_papers_formula_on_the_last_axis(7, torch.float32, FP32_EPS)),
    Mutant("minillama.rms_norm", ".mean(-1, keepdim=True)", ".sum(-1, keepdim=True)",
           lambda: test_it_is_the_papers_formula_on_the_last_axis(7, torch.float32, FP32_EPS)),
    Mutant("minillama.rms_norm", "wide.pow(2)", "(wide - wide.mean(-1, keepdim=True)).pow(2)",
           lambda: test_it_is_the_papers_formula_on_the_last_axis(7, torch.float32, FP32_EPS)),
    Mutant("minillama.rms_norm", "(wide * scale).to(x.dtype) * weight", "(wide * scale * weight).to(x.dtype)",
           _bit_equal_in_bf16),
    Mutant("minillama.rms_norm", "x.to(torch.promote_types(x.dtype, torch.float32))", "x",
           test_squares_of_half_precision_do_not_overflow),
    Mutant("minillama.rms_norm", "x.to(torch.promote_types(x.dtype, torch.float32))", "x.float()",
           lambda: test_it_is_the_papers_formula_on_the_last_axis(7, torch.float64, FP64_EPS)),
]
