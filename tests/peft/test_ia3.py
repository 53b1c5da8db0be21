"""IA3: the base at the start, peft's numbers both ways, and scales that go into the weights."""

import pytest
import torch
from mutants import Mutant
from tuned_models import changed, close, same_in_peft, small_model, tokens, tuned

from minillama.peft.methods import merge_method
from minillama.quant.quantize_linears import quantize_linears


def test_peft_and_we_compute_the_same():
    same_in_peft("ia3", lambda peft: peft.IA3Config(task_type="CAUSAL_LM"))


def test_a_new_one_is_the_base_bit_for_bit():
    assert torch.equal(tuned("ia3", change=False)(tokens()), small_model()(tokens()))


def test_merged_scales_keep_the_function_and_leave_a_plain_model():
    model = tuned("ia3")
    beside = model(tokens()).detach()
    assert changed(model) > 0.05
    merge_method(model)
    assert close(beside, model(tokens())) and set(model.state_dict()) == set(small_model().state_dict())


def test_a_quantized_base_takes_no_scale():
    model = small_model()
    quantize_linears(model)
    from minillama.peft.methods import add_method
    add_method(model, "ia3")
    with pytest.raises(ValueError, match="quantized.*dequantize_linears"):
        merge_method(model)


MUTANTS = [
    Mutant("minillama.peft.ia3", "(y * self.scale)", "(y / self.scale)", test_peft_and_we_compute_the_same),
    Mutant("minillama.peft.ia3", "(x * self.scale)", "(x)", test_peft_and_we_compute_the_same),
    Mutant("minillama.peft.ia3", "torch.ones(", "torch.zeros(", test_a_new_one_is_the_base_bit_for_bit),
    Mutant("minillama.peft.ia3", "else layer.scale.detach()[:, None]", "else 1",
           test_merged_scales_keep_the_function_and_leave_a_plain_model),
    Mutant("minillama.peft.adapter_file", "return rows(name, tensor, *heads)", "return tensor",
           test_peft_and_we_compute_the_same),
]
