"""BitFit: as many numbers as the layers have outputs, the base at the start, and a bias is what torch's is."""

import torch
from mutants import Mutant
from torch import nn
from tuned_models import close, small_model, tokens, trained, tuned


def test_as_many_numbers_as_outputs_and_the_base_bit_for_bit():
    model = tuned("bitfit", change=False)
    outputs = sum(layer.out_features for name, layer in small_model().named_modules()
                  if isinstance(layer, nn.Linear) and name != "output")
    assert sum(p.numel() for p in trained(model).values()) == outputs
    assert torch.equal(model(tokens()), small_model()(tokens()))


def test_it_is_a_model_with_torchs_biases():
    model, plain = tuned("bitfit"), small_model()
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear) and name != "output":
            layer.bias = nn.Parameter(model.get_submodule(name).bias.detach())
    assert close(model(tokens()), plain(tokens()))


MUTANTS = [
    Mutant("minillama.peft.bitfit", '"feed_forward.*"', '"feed_forward.w1"',
           test_as_many_numbers_as_outputs_and_the_base_bit_for_bit),
    Mutant("minillama.peft.bitfit", "y + self.bias", "y - self.bias", test_it_is_a_model_with_torchs_biases),
    Mutant("minillama.peft.bitfit", "torch.zeros(", "torch.ones(",
           test_as_many_numbers_as_outputs_and_the_base_bit_for_bit),
]
