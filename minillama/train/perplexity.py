"""How well a model predicts text it was not trained on: nats per token, and bits per character.

Nats per token depend on the tokenizer (longer pieces are harder to guess); bits per character do not,
so they compare models with different vocabularies. Perplexity is exp(nats per token).
"""

import contextlib
import math

import numpy as np
import torch
from torch.nn import functional as F

from minillama.train.data import inputs_and_targets


def held_out_loss(model, tokens, seq_len, n_windows=0, batch_size=16):
    """Mean nats per token over a fixed set of windows: n_windows of seq_len targets, spread evenly over
    the whole row and the same ones in every call; 0 for all of them, which leaves out no target."""
    windows = sliding_windows(len(tokens), seq_len, seq_len)
    if 0 < n_windows < len(windows):
        windows = [windows[i * len(windows) // n_windows] for i in range(n_windows)]
    nats, targets = nats_of_windows(model, tokens, windows, min(seq_len, len(tokens) - 1), batch_size)
    return nats / targets


def model_nats(model, tokens, seq_len=None, stride=None, batch_size=16):
    """-> (nats, targets): minus the log-likelihood of all targets of a row of tokens, each counted exactly once.

    The first token (bos) is given, so N tokens are N - 1 targets. A window of seq_len tokens (default: the model's
    max_seq_len) slides by `stride` and only what is new in it is counted, so that behind the first window every target
    sees at least seq_len - stride + 1 tokens. stride = seq_len (the default) is the cheapest; at stride 1 each target
    has all the context the model can take, at seq_len times the work.
    """
    seq_len = model.config.max_seq_len if seq_len is None else seq_len
    stride = seq_len if stride is None else stride
    if not 1 <= stride <= seq_len <= model.config.max_seq_len:
        raise ValueError(f"seq_len {seq_len}, stride {stride}: expected 1 <= stride <= seq_len <= "
                         f"{model.config.max_seq_len}, the model's max_seq_len")
    windows = sliding_windows(len(tokens), seq_len, stride)
    return nats_of_windows(model, tokens, windows, min(seq_len, len(tokens) - 1), batch_size)


def bits_per_character(model, tokens, seq_len=None, stride=None, batch_size=16):
    """nats / characters / ln 2 of a token file. The eos and bos that join documents are paid for and are no
    characters, so this is the honest, slightly larger figure."""
    if not tokens.characters:
        raise ValueError("these tokens do not know their number of characters: write them with "
                         "write_tokens, or divide model_nats by the count yourself")
    nats, _ = model_nats(model, tokens, seq_len, stride, batch_size)
    return nats / tokens.characters / math.log(2)


def sliding_windows(n_tokens, seq_len, stride):
    """[(start, new)]: all windows have min(seq_len, N - 1) targets, of which the last `new` were not counted before.

    >>> sliding_windows(10, 4, 3)   # targets are the places 1 ... 9
    [(0, 4), (3, 3), (5, 2)]
    """
    if n_tokens < 2:
        raise ValueError(f"{n_tokens} tokens hold nothing to predict: at least 2 are needed")
    length, counted, windows = min(seq_len, n_tokens - 1), 0, []
    while counted < n_tokens - 1:
        end = min(counted + (stride if windows else length), n_tokens - 1)
        windows.append((end - length, end - counted))
        counted = end
    return windows


@contextlib.contextmanager
def in_eval_mode(model):
    """Within it the model drops nothing out; afterwards it is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def nats_of_windows(model, tokens, windows, length, batch_size):
    """-> (sum of nats, number of targets) over the new targets of (start, new) windows, `length` targets each.

    Losses in fp32, their sum in fp64; the model is in eval mode meanwhile (no dropout).
    """
    device, total = next(model.parameters()).device, 0.0
    with in_eval_mode(model):
        for first in range(0, len(windows), batch_size):
            starts, new = np.array(windows[first:first + batch_size]).T
            tokens_BT, targets_BT = inputs_and_targets(tokens, starts[:, None] + np.arange(length + 1))
            logits_BTV = model(tokens_BT.to(device))
            targets = targets_BT.flatten().to(device)
            losses = F.cross_entropy(logits_BTV.flatten(0, 1), targets, reduction="none")
            is_new_BT = torch.arange(length) >= length - torch.from_numpy(new)[:, None]
            total += losses.cpu().double()[is_new_BT.flatten()].sum().item()
    return total, sum(new for _, new in windows)
