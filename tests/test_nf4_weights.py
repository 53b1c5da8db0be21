"""NF4 on real weights beside llama.cpp's Q4_0: how far the next token's probabilities move from the original's."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from test_parity_peers import smollm2

from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.parity import ladder
from minillama.quant.quantize_linears import quantize_linears

TOPICS = ("assert", "class", "compound", "debugger", "exceptions", "execmodel", "import", "naming")
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def original():
    model, tokenizer = load_model(smollm2())
    return use_kernels(model.eval(), "torch"), tokenizer


@torch.no_grad()
def log_probabilities(model, tokens_BT):
    return torch.cat([model(row[None])[0].log_softmax(-1) for row in tokens_BT])


def with_q4_0(model):
    """llama.cpp's blocks of 32 with one fp16 scale, 4.5 bits a weight, in place of the same linear layers."""
    quants = pytest.importorskip("gguf.quants", reason="gguf is the reference of Q4_0")
    kind = quants.GGMLQuantizationType.Q4_0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".attention.w" in name or ".feed_forward.w" in name:
                rounded = quants.dequantize(quants.quantize(weight.numpy(), kind), kind)
                weight.copy_(torch.from_numpy(np.ascontiguousarray(rounded)))
    return model


@pytest.mark.long
def test_nf4_moves_smollm2_no_further_than_q4_0_and_it_still_knows_paris():
    """KL(original, quantized) over 2,048 tokens of Python's manual, the embedding and head in both as they were.
    "No further": not above Q4_0's by more than two standard errors of the differences, token by token; NF4 takes 4.127
    bits a weight, Q4_0 4.5. In blocks of 32, with 4.254 bits, NF4 is closer beyond doubt: by more than five"""
    model, tokenizer = original()
    ids = tokenizer.encode("".join(topics[name] for name in TOPICS))[:2048]
    tokens_BT = torch.tensor(ids).view(4, 512)
    wanted = log_probabilities(model, tokens_BT)

    def divergence(changed):
        return (wanted.exp() * (wanted - log_probabilities(changed, tokens_BT))).sum(-1).double()

    q4_0 = divergence(with_q4_0(original()[0]))
    found = {}
    for block_size in (64, 32):
        changed = original()[0]
        quantize_linears(changed, block_size=block_size)
        found[block_size] = divergence(changed)
        if block_size == 64:
            question = torch.tensor([tokenizer.encode(QUESTION, allowed_special="all")])
            answer = ladder(changed, question)["greedy tokens"].tolist()
            assert tokenizer.decode(answer).startswith("The capital of France is Paris")
    means = {"Q4_0": q4_0.mean().item(), **{f"NF4/{size}": kl.mean().item() for size, kl in found.items()}}
    print(means)
    error = {size: ((kl - q4_0).std() / len(kl) ** 0.5).item() for size, kl in found.items()}
    assert (found[64] - q4_0).mean().item() <= 2 * error[64], means
    assert (found[32] - q4_0).mean().item() <= -5 * error[32], means
