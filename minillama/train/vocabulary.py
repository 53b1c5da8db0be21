"""Rows for new pieces of the vocabulary, and which weights learn them (Chinese-LLaMA, arXiv 2304.08177, section 2.2).

A larger vocabulary needs more rows at both ends: in the table that turns ids into vectors, and in the head that turns
vectors into scores. Training goes by stages: first the two tables alone, then adapters on the linear layers as well.
"""

from dataclasses import replace

import torch
from torch import nn


@torch.no_grad()
def grow_vocabulary(model, vocab_size):
    """Give a Transformer `vocab_size` rows at both ends, in place; the old ones keep their ids and their bits.

    A new row is the mean of the V old ones (as in Alpaca's program), so its score is the mean of all scores, and n new
    rows lower no old token's log-probability by more than log(1 + n / V), exp being convex. Hidden states of old ids
    stay equal to the bit, their scores to the rounding of one product: a longer one may be added up in another order.

    ValueError for a size below the present one, or where the head is no plain linear layer.
    """
    before = model.config.vocab_size
    if type(vocab_size) is not int or vocab_size < before:
        raise ValueError(f"vocab_size is {vocab_size!r}: it must be a whole number from the present {before} on")
    if type(model.output) is not nn.Linear:
        raise ValueError(f"the head is a {type(model.output).__name__}: grow the vocabulary before adding adapters or "
                         "quantizing")
    for table in (model.tok_embeddings, model.output):
        mean = table.weight.to(torch.promote_types(table.weight.dtype, torch.float32)).mean(0).to(table.weight.dtype)
        grown = torch.cat([table.weight, mean.expand(vocab_size - before, -1)])
        table.weight = nn.Parameter(grown, requires_grad=table.weight.requires_grad)
    model.tok_embeddings.num_embeddings = model.output.out_features = vocab_size
    model.config = replace(model.config, vocab_size=vocab_size)
    model.tie_weights()


def train_vocabulary(model, alone=True):
    """Let the embedding table and the head learn. alone: nothing else (stage 1); otherwise beside what learns already,
    such as the adapters that `add_lora` has just attached (stage 2)."""
    if alone:
        model.requires_grad_(False)
    for table in (model.tok_embeddings, model.output):
        table.weight.requires_grad_()
