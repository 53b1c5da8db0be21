"""What quantized linear layers share: products, gradients to x alone, bits that casting leaves alone, state dicts."""

import math
import tempfile
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from test_nf4 import normal
from torch import nn

from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.quant.nf4 import NF4Linear


def layer(out_features=24, in_features=40, **settings):
    return NF4Linear.from_weight(normal(out_features, in_features), **settings)


@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (3, 5), (24, 40), (64, 64), (7, 129)])
def test_forward_and_gradient_are_those_of_the_dequantized_matrix(out_features, in_features):
    """1e-5: fp32 sums of at most 129 products of size ~1, against float64."""
    linear = layer(out_features, in_features)
    weight = linear.dequantize().double()
    x = normal(2, 3, in_features, seed=1).requires_grad_()
    dy = normal(2, 3, out_features, seed=2)
    y = linear(x)
    y.backward(dy)
    product = torch.einsum("bti,oi->bto", x.detach().double(), weight)
    assert torch.allclose(y.detach().double(), product, atol=1e-5)
    assert torch.allclose(x.grad.double(), torch.einsum("bto,oi->bti", dy.double(), weight), atol=1e-5)


def test_nothing_of_the_weights_size_is_saved_for_the_backward_pass():
    linear, saved = layer(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        linear(normal(3, 40).requires_grad_())
    assert sum(saved) < 24 * 40


def test_the_layer_has_no_parameters_and_gives_its_weight_no_gradient():
    linear = layer()
    assert not list(linear.parameters())
    assert not any(buffer.requires_grad for buffer in linear.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_layer_leaves_its_bits_alone(dtype):
    linear = layer()
    before = linear.dequantize()
    linear.to(dtype)
    assert linear.absmax_scale.dtype == torch.float32
    assert torch.equal(linear.dequantize(), before)
    assert linear(normal(2, 40, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (24, 40)])
def test_state_dict_goes_there_and_back(shape, double, tmp_path):
    first = NF4Linear.from_weight(normal(*shape), block_size=32, double_quantization=double)
    second = NF4Linear.from_weight(normal(*shape, seed=9), block_size=32, double_quantization=double)
    write_safetensors(tmp_path / "a.safetensors", first.state_dict())
    second.load_state_dict(read_safetensors(tmp_path / "a.safetensors"))
    assert torch.equal(first.dequantize(), second.dequantize())
    assert first.layout.tolist() == [*shape, 32, math.prod(shape) % 2]


def test_bytes_of_another_block_size_or_shape_are_not_loaded():
    state = layer(24, 40).state_dict()
    for other in (layer(24, 40, block_size=32), layer(40, 24)):
        with pytest.raises(RuntimeError, match="layout is .* settings of the file"):
            other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="absmax_scale"):
        layer(24, 40, double_quantization=False).load_state_dict(state)


def test_a_layer_with_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        NF4Linear.from_linear(nn.Linear(64, 2))


NF4, LINEAR = "minillama.quant.nf4", "minillama.quant.quantized_linear"


def forward_and_gradient():
    test_forward_and_gradient_are_those_of_the_dequantized_matrix(24, 40)


def state_dict():
    with tempfile.TemporaryDirectory() as folder:
        test_state_dict_goes_there_and_back((3, 5), True, Path(folder))


MUTANTS = [
    Mutant(NF4, "stored.block_size, padding]", "64, padding]", state_dict),
    Mutant(LINEAR, "FrozenProduct.apply(x, self.packed_weight())", "self.packed_weight().product(x)",
           test_nothing_of_the_weights_size_is_saved_for_the_backward_pass),
    Mutant(LINEAR, "ctx.stored.product_backward(dy)", "ctx.stored.product_backward(dy.abs())",
           forward_and_gradient),
    Mutant(LINEAR, "if getattr(self, name).dtype != buffer.dtype:", "if False:",
           lambda: test_casting_the_layer_leaves_its_bits_alone(torch.bfloat16)),
    Mutant(LINEAR, "theirs.tolist() != self.layout.tolist()", "False",
           test_bytes_of_another_block_size_or_shape_are_not_loaded),
]
