"""The held-out loss against a loop that shows the model one context at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.train.data import Tokens
from minillama.train.perplexity import bits_per_character, held_out_loss, model_nats, sliding_windows
from minillama.transformer import Transformer

V = 11


def tiny_model(max_seq_len=8):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(8, 1, 2, V, hidden_dim=16, max_seq_len=max_seq_len)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10)  # far from uniform: contexts matter
    return model


def random_row(n, characters=0):
    return Tokens(np.random.default_rng(0).integers(0, V, n), V, characters=characters)


def nats_of_target(model, tokens, target, start):
    """-log p(token at `target` | tokens from `start` up to it)."""
    context = torch.from_numpy(tokens.ids[None, start:target])
    with torch.no_grad():
        return -model(context)[0, -1].double().log_softmax(-1)[tokens.ids[target]].item()


def by_loop(model, tokens, seq_len, stride):
    """Each target with the context its window gives it: an end that advances by `stride` after the first window."""
    total, end = 0.0, min(seq_len, len(tokens) - 1)
    for target in range(1, len(tokens)):
        if target > end:
            end = min(end + stride, len(tokens) - 1)
        total += nats_of_target(model, tokens, target, max(0, end - seq_len))
    return total


@pytest.mark.parametrize("n", [2, 8, 9, 10, 29])
@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 3), (8, 1), (5, 2), (1, 1)])
def test_every_target_is_counted_once_with_the_promised_context(n, seq_len, stride):
    """Tolerance: logits, and so losses, are fp32 (2^-24) below a sum in fp64; losses here are below 20 nats."""
    model, tokens = tiny_model(), random_row(n)
    nats, targets = model_nats(model, tokens, seq_len, stride, batch_size=3)
    assert targets == n - 1
    assert nats == pytest.approx(by_loop(model, tokens, seq_len, stride), rel=2e-6)


@pytest.mark.parametrize("n", [2, 7, 8, 9, 50])
def test_windows_partition_the_targets_and_all_have_one_length(n):
    for seq_len in (1, 3, 8):
        for stride in range(1, seq_len + 1):
            length, counted = min(seq_len, n - 1), []
            for start, new in sliding_windows(n, seq_len, stride):
                assert 0 <= start and start + length <= n - 1
                counted += range(start + 1 + length - new, start + 1 + length)
            assert counted == list(range(1, n))


def test_an_even_guess_costs_ln_v_a_token():
    model, tokens = tiny_model(), random_row(30, characters=58)
    with torch.no_grad():
        model.output.weight.zero_()
    assert model_nats(model, tokens)[0] == pytest.approx(29 * math.log(V), rel=1e-6)
    assert bits_per_character(model, tokens) == pytest.approx(29 / 58 * math.log2(V), rel=1e-6)
    assert held_out_loss(model, tokens, 4) == pytest.approx(math.log(V), rel=1e-6)


def test_the_mean_over_all_windows_is_the_mean_over_all_targets():
    model, tokens = tiny_model(), random_row(30)
    nats, targets = model_nats(model, tokens, 4)
    assert held_out_loss(model, tokens, 4) == held_out_loss(model, tokens, 4, n_windows=99) == nats / targets


def test_some_windows_are_spread_evenly_and_always_the_same():
    model, tokens = tiny_model(), random_row(81)
    expected = [nats_of_target(model, tokens, start + i + 1, start) for start in (0, 24, 48) for i in range(8)]
    for batch_size in (1, 2, 16):  # 10 windows of 8; three of them begin at windows 0, 3 and 6
        loss = held_out_loss(model, tokens, 8, n_windows=3, batch_size=batch_size)
        assert loss == pytest.approx(sum(expected) / 24, rel=2e-6)


def test_evaluation_is_without_dropout_and_leaves_the_mode_alone():
    model, tokens = tiny_model(), random_row(30)
    reference = held_out_loss(model, tokens, 8)
    model.norm.register_forward_hook(lambda part, _, x: torch.nn.functional.dropout(x, 0.5, part.training))
    for mode in (True, False):
        model.train(mode)
        assert held_out_loss(model, tokens, 8) == reference
        assert model.training is mode
    assert all(p.grad is None for p in model.parameters())


def test_impossible_requests_are_refused():
    model = tiny_model()
    for seq_len, stride in ((9, 1), (4, 5), (4, 0)):
        with pytest.raises(ValueError, match="expected 1 <= stride <= seq_len <= 8"):
            model_nats(model, random_row(30), seq_len, stride)
    with pytest.raises(ValueError, match="at least 2"):
        model_nats(model, random_row(1))
    with pytest.raises(ValueError, match="number of characters"):
        bits_per_character(SimpleNamespace(), random_row(30))


def _mutant(old, new, law):
    return Mutant("minillama.train.perplexity", old, new, law)


def once():
    test_every_target_is_counted_once_with_the_promised_context(29, 8, 3)


MUTANTS = [
    _mutant("(stride if windows else length)", "stride", once),
    _mutant("windows.append((end - length, end - counted))", "windows.append((counted, end - counted))", once),
    _mutant(">= length - torch", "< torch", once),
    _mutant(".double()[is_new_BT.flatten()].sum()", ".double().sum()", once),
    _mutant("/ math.log(2)", "", test_an_even_guess_costs_ln_v_a_token),
    _mutant("    model.eval()\n", "    pass\n", test_evaluation_is_without_dropout_and_leaves_the_mode_alone),
    _mutant("model.train(training)", "model.train()", test_evaluation_is_without_dropout_and_leaves_the_mode_alone),
    _mutant("windows[i * len(windows) // n_windows]", "windows[i]",
            test_some_windows_are_spread_evenly_and_always_the_same),
]
