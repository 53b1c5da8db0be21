"""Tiled attention: its written-out gradients are those of plain attention, and the derivative of what it computes."""

import functools

import pytest
import torch
from mutants import Mutant
from test_tiled_attention import BLOCKS, CAUSAL, MASKED, SIZES, every_size, gradients, inputs, random_mask, worst

from lessons.tiled_attention import tiled_attention, tiled_attention_with_lse
from minillama.attention import attention


@BLOCKS
@CAUSAL
@MASKED
def test_its_gradients_are_plain_attentions_for_every_size(Br, Bc, causal, masked, sizes=None):
    for T, S in sizes or every_size(Br, Bc)[::3]:  # a third of the pairs, in which every T and every S occurs
        q, k, v = inputs(T, S)
        mask, upstream = random_mask(T, S) if masked else None, torch.randn(q.shape)
        tiled = functools.partial(tiled_attention, causal=causal, mask_BTS=mask, block_q=Br, block_k=Bc)
        plain = functools.partial(attention, causal=causal, mask_BTS=mask)
        pairs = zip("qkv", gradients(tiled, (q, k, v), upstream), gradients(plain, (q, k, v), upstream), strict=True)
        assert [name for name, ours, wanted in pairs if not worst(ours, wanted) < 1e-12] == [], (T, S)


@pytest.mark.parametrize(("T", "S", "masked"), [(3, 3, False), (3, 5, True), (5, 3, False)])
def test_its_gradient_is_the_derivative(T, S, masked):
    q, k, v = inputs(T, S, H=2, K=1, d=2, B=1, grad=True)
    mask = random_mask(T, S)[1:] if masked else None
    assert torch.autograd.gradcheck(lambda *qkv: tiled_attention(*qkv, True, mask, 2, 2), (q, k, v))


def test_lse_has_a_gradient_too():
    q, k, v = inputs(3, 5, H=2, K=1, d=2, B=1, grad=True)
    assert torch.autograd.gradcheck(lambda *qkv: tiled_attention_with_lse(*qkv, True, None, 2, 2)[1], (q, k, v))


def test_its_second_derivative_is_right_as_well():
    q, k, v = inputs(3, 2, H=2, K=1, d=1, B=1, grad=True)
    assert torch.autograd.gradgradcheck(lambda *qkv: tiled_attention(*qkv, True, None, 2, 1), (q, k, v))


def _backward():
    test_its_gradients_are_plain_attentions_for_every_size(4, 4, True, False, SIZES)


def _mutant(old, new, law):
    return Mutant("lessons.tiled_attention", old, new, law)


MUTANTS = [
    _mutant(" - D[..., i, :])", ")", _backward),
    _mutant(".sum(-1) - dLSE", ".sum(-1)", test_lse_has_a_gradient_too),
    _mutant(".sum(-1) - dLSE", ".sum(-1) + dLSE", test_lse_has_a_gradient_too),
    _mutant("dQ = (dQ / root)", "dQ = dQ", _backward),
    _mutant("dK_j / root, dV_j", "dK_j, dV_j", _backward),
    _mutant("dK_j / root, dV_j", "dK_j / root, dV_j / root", _backward),
    _mutant("- LSE[..., i, :]).exp()", "- LSE[..., i, :].clamp(max=0)).exp()", _backward),
    _mutant("                continue", "                break", _backward),
    _mutant("dQ[..., i, :] +=", "dQ[..., i, :] =", _backward),
    _mutant("dV_j += (", "dV_j = (", _backward),
    _mutant("dK_j += (", "dK_j = (", _backward),
    _mutant("(P_ij.mT @ dO_i).sum(2, keepdim=True)", "(P_ij.mT @ dO_i)[:, :, :1]", _backward),
    _mutant("(dS_ij.mT @ Q_i).sum(2, keepdim=True)", "(dS_ij.mT @ Q_i).mean(2, keepdim=True)", _backward),
]
