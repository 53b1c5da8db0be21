"""LoRA's sum is formed in place, with gradients written by hand: they are autograd's of the written formula."""

from unittest import mock

import pytest
import torch
from mutants import Mutant
from test_lora import layer, normal
from torch import nn

from minillama.peft.lora import LoRAConfig, LoRALinear, low_rank_sum
from minillama.quant.nf4 import NF4Tensor

SHAPES = [(1, 1), (3, 5), (24, 40), (40, 24), (7, 129)]  # out, in


def written(module, x):
    """h = W x + s B A x, left to autograd operation by operation."""
    A, B, config = module.A, module.B, module.config
    if not config.dropout:
        return low_rank_sum(x, module.base, A, B, config.scaling)
    dropped = nn.functional.dropout(x.to(A.dtype), config.dropout, module.training)
    return low_rank_sum(dropped, lambda _: module.base(x), A, B, config.scaling)


def gradients_of(forward, module, x, dy):
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(4)  # of the dropout
    y = forward(x)
    y.backward(dy)
    return {"y": y.detach(), "x": x.grad, "A": module.A.grad, "B": module.B.grad}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["linear", "bf16", "nf4", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sum_and_gradients_are_those_of_the_written_formula(shape, kind, dropout):
    """fp32: sums of at most 129 products of size 10 in another order. bf16: some places of the last of 8 bits."""
    module = layer(*shape, kind=kind, dropout=dropout)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    x, dy = normal(2, 3, shape[1], seed=2).to(dtype), normal(2, 3, shape[0], seed=3).to(dtype)
    ours = gradients_of(module, module, x, dy)
    wanted = gradients_of(lambda x: written(module, x), module, x, dy)
    for name, value in wanted.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape
        size = max(1.0, float(value.abs().max()))
        assert float((ours[name] - value).abs().max()) <= size * (2**-6 if value.dtype != torch.float32 else 5e-6), name


def test_strided_gradients_and_vectors_are_taken_as_they_come():
    module = layer(24, 40)
    x, dy = normal(4, 40, seed=2), normal(24, 4, seed=3).T
    ours, wanted = (gradients_of(f, module, x, dy) for f in (module, lambda x: written(module, x)))
    alone = gradients_of(module, module, x[0], torch.ones(()).expand(24))
    other = gradients_of(lambda x: written(module, x), module, x[0], torch.ones(24))
    for name in wanted:
        torch.testing.assert_close(ours[name], wanted[name], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(alone[name], other[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_only_the_input_and_the_thin_product_are_kept_for_the_backward_pass(kind):
    module, kept = layer(240, 40, kind), []
    x = normal(5, 40, seed=2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        module(x)
    assert sorted(kept) == sorted([(5, 40), (5, 3), (3, 40), (240, 3)])  # x, x A^T, A, B: nothing 240 wide per token


def test_an_input_without_a_gradient_costs_no_product_with_the_base():
    module, product = layer(24, 40, "nf4"), NF4Tensor.product_backward
    with mock.patch.object(NF4Tensor, "product_backward", autospec=True, side_effect=product) as asked:
        module(normal(4, 40, seed=2)).sum().backward()
        assert not asked.called and module.A.grad is not None
        module(normal(4, 40, seed=2).requires_grad_()).sum().backward()
        assert asked.call_count == 1


def test_a_base_that_asks_for_a_gradient_is_refused_and_not_forgotten():
    module = layer(24, 40)
    assert not LoRALinear(nn.Linear(40, 24), LoRAConfig()).base.weight.requires_grad  # a fresh one is frozen
    module.base.weight.requires_grad_()
    with pytest.raises(ValueError, match="requires_grad_"):
        module(normal(4, 40))
    with torch.no_grad():
        assert module(normal(4, 40)).shape == (4, 24)


LORA = "minillama.peft.lora"


def formula(kind="linear", dropout=0.0):
    return lambda: test_sum_and_gradients_are_those_of_the_written_formula((24, 40), kind, dropout)


MUTANTS = [
    Mutant(LORA, "@ A.T).mul_(scaling)", "@ A.T)", formula()),
    Mutant(LORA, "(wide_NO @ B).mul_(ctx.scaling)", "(wide_NO @ B)", formula()),
    Mutant(LORA, "dy.reshape(-1, B.shape[0]).to(A.dtype)", "dy.abs().reshape(-1, B.shape[0]).to(A.dtype)", formula()),
    Mutant(LORA, "dropped is not None", "False", formula(dropout=0.4)),
    Mutant(LORA, "read = x if dropped is None else dropped", "read = x", formula(dropout=0.4)),
    Mutant(LORA, "            _add_product(dx.view(-1, A.shape[1]), d_low_NR, A)", "            pass", formula()),
    Mutant(LORA, "(dy, base.weight.T)", "(dy.abs(), base.weight.T)", formula()),
    Mutant(LORA, "packed_weight().product_backward(dy)", "packed_weight().product_backward(-dy)", formula("nf4")),
    Mutant(LORA, "if ctx.needs_input_grad[0] else None", "if True else None",
           test_an_input_without_a_gradient_costs_no_product_with_the_base),
    Mutant(LORA, "base.requires_grad_(False), config", "base, config",
           test_a_base_that_asks_for_a_gradient_is_refused_and_not_forgotten),
    Mutant(LORA, "torch.is_grad_enabled() and any(", "False and any(",
           test_a_base_that_asks_for_a_gradient_is_refused_and_not_forgotten),
]
