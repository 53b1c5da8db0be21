"""Tiled attention keeps nothing of size T x S, makes nothing of that size, and skips what no query may see."""

import functools

import pytest
import torch
from mutants import Mutant
from test_tiled_attention import CAUSAL, MASKED, inputs, random_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lessons.tiled_attention import tiled_attention
from minillama.attention import attention


def saved_for_backward(attend, *arguments):
    """Bytes of the storages that the backward pass will hold, each counted once."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        keep = attend(*arguments)
    return sum(storages.values()), keep


def test_it_saves_q_k_v_o_and_one_number_a_query():
    H, K, d = 4, 2, 3
    for T, S in [(33, 33), (33, 66), (66, 66)]:
        q, k, v = inputs(T, S, H, K, d, 1, torch.float32, grad=True)
        saved, _ = saved_for_backward(lambda *qkv: tiled_attention(*qkv, block_q=4, block_k=4), q, k, v)
        assert saved == 4 * (2 * H * T * d + 2 * K * S * d + H * T)
        assert saved_for_backward(attention, q, k, v)[0] > 4 * H * T * S
    mask = random_mask(66, 66, 1)
    assert saved_for_backward(tiled_attention, q, k, v, True, mask)[0] == saved + mask.numel()  # a bool is a byte


class Allocations(TorchDispatchMode):
    """Sizes in bytes of the storages that operators make, those of `given` tensors and views left out."""

    def __init__(self, given):
        super().__init__()
        self.given, self.bytes = {x.untyped_storage().data_ptr() for x in given}, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.given:
                self.bytes.append(x.untyped_storage().nbytes())
        return made


@MASKED
def test_nothing_larger_than_a_tile_is_made_but_what_is_asked_for(masked):
    T, H, d, block = 24, 2, 2, 4
    q, k, v = inputs(T, T, H, 1, d, 1, torch.float32, grad=True)
    mask = random_mask(T, T, 1) if masked else None
    largest_tile, per_query = 4 * H * block * block, 4 * H * T * d  # per_query: O, and in the backward pass dO and dQ

    def made(attend, backward):
        with Allocations([q, k, v, *([mask] if masked else [])]) as log:
            out = attend(q, k, v, True, mask)
            if backward:
                out.backward(torch.ones_like(out))
        return log.bytes

    tiled = functools.partial(tiled_attention, block_q=block, block_k=block)
    large = [size for size in made(tiled, False) if size > largest_tile]
    assert set(large) == {per_query, per_query // d}  # O and LSE
    assert max(made(tiled, True)) == per_query < 4 * T * T / 4  # less than a quarter of one head's matrix
    assert max(made(attention, False)) == 4 * H * T * T  # the measure does see a matrix where there is one


@pytest.mark.parametrize(("T", "S"), [(4, 4), (5, 5), (7, 13), (13, 7), (2, 9)])
@CAUSAL
@pytest.mark.parametrize(("Br", "Bc"), [(4, 3), (4, 4)])
def test_tiles_above_the_diagonal_cost_nothing(T, S, causal, Br, Bc):
    """2 products forward (S, PV) and 5 backward (S, dP, dV, dQ, dK) for every tile in which anything is seen."""
    H, d = 4, 3
    q, k, v = inputs(T, S, H, 2, d, 1, grad=True)
    seen = [(t, s) for t in range(T) for s in range(S) if not causal or s <= t + S - T]
    visited = {(t // Br, s // Bc) for t, s in seen}
    area = sum((min(Br, T - Br * i)) * min(Bc, S - Bc * j) for i, j in visited)
    with FlopCounterMode(display=False) as forward:
        out = tiled_attention(q, k, v, causal, None, Br, Bc)
    with FlopCounterMode(display=False) as backward:
        out.backward(torch.ones_like(out))
    assert forward.get_total_flops() == 2 * 2 * H * area * d
    assert backward.get_total_flops() == 5 * 2 * H * area * d


def _mutant(old, new, law):
    return Mutant("lessons.tiled_attention", old, new, law)


def _skipped():
    test_tiles_above_the_diagonal_cost_nothing(13, 13, True, 4, 4)


MUTANTS = [
    _mutant("j.start > i.stop - 1 + S - T", "j.start > i.stop + S - T", _skipped),
    _mutant("j.start > i.stop - 1 + S - T", "False", _skipped),
    _mutant("LSE, mask)\n", "LSE, q.new_ones(q.shape[2], k.shape[2]))\n",
            test_it_saves_q_k_v_o_and_one_number_a_query),
    _mutant("return [slice(start, min(start + block, length)) for", "return [slice(0, length) for",
            lambda: test_nothing_larger_than_a_tile_is_made_but_what_is_asked_for(False)),
    _mutant("mask_BTS.expand(B, T, S)  # a view", "mask_BTS.expand(B, T, S).clone()",
            lambda: test_nothing_larger_than_a_tile_is_made_but_what_is_asked_for(True)),
]
