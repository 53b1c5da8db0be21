"""Rows of unequal length as one tensor: the one place where anything is padded."""

from dataclasses import fields

import torch
from torch.nn.functional import pad

IGNORE = -100  # the label of a token that is not to be learned, as everywhere in PyTorch
FILL = {"tokens": 0, "labels": IGNORE, "document_ids": -1}  # what stands behind the end of a row


def pad_rows(rows, fill=0, left=False, device="cpu"):
    """Lists of ids (or 1-D tensors) as one int64 tensor, (B, T): shorter rows are filled up on the right, or the left.

    Any id will do for LLaMA, which has no pad token: what is padding is told by a mask or a label, never by an id.
    ValueError where there is no row, or one holds no token.
    """
    rows = [torch.as_tensor(row) for row in rows]
    if not rows or not all(len(row) for row in rows):
        raise ValueError(f"{len(rows)} rows, of which one holds no token: give at least one row and one token in each, "
                         "for instance the tokenizer's bos_id")
    T = max(len(row) for row in rows)
    padded = [pad(row, (T - len(row), 0) if left else (0, T - len(row)), value=fill) for row in rows]
    return torch.stack(padded).to(device)


def real_tokens(rows, left=False, device="cpu"):
    """Which places of `pad_rows(rows, left=left)` hold a token of a row: bool (B, T)."""
    return pad_rows([[1] * len(row) for row in rows], 0, left, device).bool()


def tokens_in_rows(rows, vocab_size, device="cpu"):
    """Which ids stand in each row: bool (B, V)."""
    held_BV = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for row, ids in enumerate(rows):
        held_BV[row, torch.tensor(list(ids), device=device)] = True
    return held_BV


def collate(examples, device="cpu"):
    """`Sequence`s -> (tokens_BT, labels_BT); `Chunk`s -> (tokens_BT, labels_BT, document_ids_BT), padded on the right.

    Causal attention keeps the padding from the tokens, and its label from the loss. An EOS inside an example stays
    learned: labels are not found by id.
    """
    names = [field.name for field in fields(examples[0])]
    return [pad_rows([getattr(example, name) for example in examples], FILL[name], device=device) for name in names]
