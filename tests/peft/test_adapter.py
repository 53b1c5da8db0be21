"""Adapters in series and in parallel: their formula, their count, the base at the start."""

import torch
from mutants import Mutant
from test_lora import normal
from torch import nn
from tuned_models import small_model, tokens, trained, tuned

from minillama.peft.adapter import WithBottleneck


def bottleneck(parallel):
    base = nn.Linear(6, 6, bias=False)
    base.w1 = base if parallel else None
    layer = WithBottleneck(base, 6, 3, parallel)
    for parameter, seed in zip((layer.up.weight, layer.up.bias, layer.down.bias), (1, 2, 3), strict=True):
        parameter.data = normal(*parameter.shape, seed=seed)
    return base, layer


def test_the_change_is_of_the_output_in_series_and_of_the_input_in_parallel():
    for parallel in (False, True):
        base, layer = bottleneck(parallel)
        x = normal(4, 6)
        y = base(x)
        read = x if parallel else y
        inner = (read @ layer.down.weight.T + layer.down.bias).clamp(min=0)
        assert torch.allclose(layer(x), y + inner @ layer.up.weight.T + layer.up.bias, atol=1e-5)


def test_two_in_each_block_or_one_have_their_formulas_count():
    each = 2 * 5 * 32 + 32 + 5  # 2 m D + D + m
    for name, places in (("adapter", 2), ("parallel-adapter", 1)):
        assert sum(p.numel() for p in trained(tuned(name)).values()) == 2 * places * each


def test_a_new_one_is_the_base_bit_for_bit():
    for name in ("adapter", "parallel-adapter"):
        assert torch.equal(tuned(name, change=False)(tokens()), small_model()(tokens()))


MUTANTS = [
    Mutant("minillama.peft.adapter", "(x if self.parallel else y)", "y",
           test_the_change_is_of_the_output_in_series_and_of_the_input_in_parallel),
    Mutant("minillama.peft.adapter", ".relu()", "",
           test_the_change_is_of_the_output_in_series_and_of_the_input_in_parallel),
    Mutant("minillama.peft.adapter", "nn.init.zeros_(self.up.weight)", "pass", test_a_new_one_is_the_base_bit_for_bit),
    Mutant("minillama.peft.adapter", "nn.init.zeros_(self.up.bias)", "pass", test_a_new_one_is_the_base_bit_for_bit),
]
