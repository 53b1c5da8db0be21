"""The gated feed-forward layer: the paper's five gates, the published layer, and the price of a gate."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from mutants import Mutant

from minillama import swiglu
from minillama.config import hidden_dim_rule
from minillama.swiglu import SwiGLU, gated_linear_unit


@pytest.mark.parametrize("gate", ["glu", "bilinear", "reglu", "geglu", "swiglu"])
@pytest.mark.parametrize(("width", "hidden"), [(1, 1), (3, 7), (8, 5)])
def test_each_member_of_the_family_is_the_papers_formula(gate, width, hidden):
    torch.manual_seed(width)
    x, gate_FD, up_FD, down_DF = (torch.randn(shape, dtype=torch.float64) for shape in
                                  [(2, width), (hidden, width), (hidden, width), (width, hidden)])
    wanted = [oracles.gated_linear_unit(v, gate_FD.tolist(), up_FD.tolist(), down_DF.tolist(), gate)
              for v in x.tolist()]
    ours = gated_linear_unit(x, gate_FD, up_FD, down_DF, gate)
    assert (ours - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-12


def test_the_gates_are_torchs_functions():
    x = torch.linspace(-8, 8, 1001)
    theirs = {"glu": torch.sigmoid, "bilinear": torch.nn.Identity(), "reglu": torch.relu, "geglu": F.gelu,
              "swiglu": F.silu}
    assert set(swiglu.GATES) == set(theirs)
    for name, gate in swiglu.GATES.items():
        assert torch.equal(gate(x), theirs[name](x)), name




def test_the_layer_equals_the_mlp_of_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="oracle: transformers")
    from transformers import LlamaConfig

    torch.manual_seed(4)
    ours = SwiGLU(48, 80)
    theirs = llama.LlamaMLP(LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=2))
    for mine, name in [(ours.w1, "gate_proj"), (ours.w2, "down_proj"), (ours.w3, "up_proj")]:
        getattr(theirs, name).weight.data = mine.weight.data.clone()
    x = torch.randn(3, 5, 48)
    assert (ours(x) - theirs(x)).abs().max() < 1e-6


def test_the_layer_is_the_function_with_its_three_matrices():
    torch.manual_seed(5)
    layer, x = SwiGLU(6, 10), torch.randn(2, 3, 6)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "w1.weight": (10, 6), "w2.weight": (6, 10), "w3.weight": (10, 6)}
    by_hand = gated_linear_unit(x, layer.w1.weight, layer.w3.weight, layer.w2.weight)
    assert torch.equal(layer(x), by_hand)


@pytest.mark.parametrize("width", [768, 4096, 8192])
def test_two_thirds_of_the_width_pay_for_the_third_matrix(width):
    """A plain layer has 2 D 4D numbers, a gated one 3 D F: F's rounding is all that differs."""
    gated, plain = 3 * width * hidden_dim_rule(width), 2 * width * 4 * width
    assert 0 <= gated - plain + 3 * width <= 3 * width * 256


def test_its_gradient_is_the_derivative():
    torch.manual_seed(6)
    shapes = [(2, 3), (4, 3), (4, 3), (3, 4)]
    assert torch.autograd.gradcheck(gated_linear_unit, [torch.randn(s, dtype=torch.float64).requires_grad_()
                                                        for s in shapes])


def test_an_unknown_gate_is_refused_with_the_list():
    with pytest.raises(ValueError, match="gate 'swish' is not known: choose one of glu, bilinear, reglu"):
        gated_linear_unit(torch.ones(1, 1), *[torch.ones(1, 1)] * 3, gate="swish")


MUTANTS = [
    Mutant("minillama.swiglu", "self.multiply(self.w1(x), self.w3(x))", "self.multiply(self.w3(x), self.w1(x))",
           test_the_layer_equals_the_mlp_of_transformers),
    Mutant("minillama.swiglu", "self.multiply(self.w1(x), self.w3(x))", "self.multiply(self.w1(x) * self.w3(x), 1)",
           test_the_layer_is_the_function_with_its_three_matrices),
    Mutant("minillama.swiglu", '"swiglu": F.silu', '"swiglu": F.gelu',
           lambda: test_each_member_of_the_family_is_the_papers_formula("swiglu", 3, 7)),
    Mutant("minillama.swiglu", '"geglu": F.gelu', '"geglu": lambda x: F.gelu(x, approximate="tanh")',
           lambda: test_each_member_of_the_family_is_the_papers_formula("geglu", 3, 7)),
    Mutant("minillama.swiglu", "GATES[gate](F.linear(x, w_gate)) * F.linear(x, w_up)",
           "GATES[gate](F.linear(x, w_up)) * F.linear(x, w_gate)",
           lambda: test_each_member_of_the_family_is_the_papers_formula("glu", 3, 7)),
]
