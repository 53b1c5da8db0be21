"""Quantized layers put into a whole model: which ones, and that adapters learn on top of them."""

import pytest
import torch
from mutants import Mutant
from test_lora import ALL, small_model, tokens
from torch import nn

from minillama.peft.lora import LoRAConfig, add_lora
from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear
from minillama.quant.quantize_linears import quantize_linears


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantize_linears_spares_embedding_and_head_and_adapters_learn_on_top(kind):
    model = small_model()
    quantize_linears(model, kind=kind)
    assert type(model.output) is nn.Linear and type(model.tok_embeddings) is nn.Embedding
    assert type(model.layers[1].feed_forward.w2) in (NF4Linear, Int8Linear)
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=ALL))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, batch = torch.optim.Adam(parameters, lr=1e-2), tokens(16)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_quantize_linears_takes_patterns_and_refuses_unknown_kinds():
    model = small_model()
    assert quantize_linears(model, "layers.0.attention.*", block_size=32) == [
        f"layers.0.attention.{w}" for w in ("wq", "wk", "wv", "wo")]
    assert model.layers[0].attention.wq.settings() == {"block_size": 32, "double_quantization": True}
    assert quantize_linears(model, ("output",), "int8", skip=(), threshold=5.0) == ["output"]
    assert model.output.threshold == 5.0
    with pytest.raises(ValueError, match="nf4"):
        quantize_linears(model, kind="int3")
    with pytest.raises(ValueError, match="no_such"):
        quantize_linears(model, "no_such")


MUTANTS = [
    Mutant("minillama.quant.quantize_linears", 'skip=("output",)', "skip=()",
           lambda: test_quantize_linears_spares_embedding_and_head_and_adapters_learn_on_top("nf4")),
    Mutant("minillama.quant.quantize_linears", "linears[name], **settings", "linears[name]",
           test_quantize_linears_takes_patterns_and_refuses_unknown_kinds),
    Mutant("minillama.quant.quantized_linear", "if not any(name_matches(name, pattern) for name in candidates):",
           "if False:", test_quantize_linears_takes_patterns_and_refuses_unknown_kinds),
]
