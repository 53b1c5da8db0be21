"""Attention: every mask and grouping against loops, and no further from the truth than PyTorch's own arithmetic."""

import math

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.attention import Attention, attention, attention_weights, torch_attention, visible_keys
from minillama.config import ModelConfig
from minillama.kv_cache import KVCache
from minillama.rope import rope_frequencies, rope_rotations

BOTH = pytest.mark.parametrize("attend", [attention, torch_attention])
SIZES = pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 2), (2, 1), (1, 7), (7, 1), (2, 2), (3, 7), (7, 3), (7, 7),
                                             (13, 17), (17, 17)])


def inputs(T, S, H=4, K=2, d=4, B=2, dtype=torch.float64):
    torch.manual_seed(T * 100 + S)
    return [torch.randn(shape).to(dtype) for shape in [(B, H, T, d), (B, K, S, d), (B, K, S, d)]]


def random_mask(T, S, B=2):
    """About half is visible; in row 0 the first query sees nothing at all, in row 1 nobody sees the first key."""
    mask = torch.rand(B, T, S, generator=torch.Generator().manual_seed(T + S)) < 0.5
    mask[0, 0], mask[1, :, 0] = False, False
    return mask


def by_loops(q, k, v, causal, mask=None):
    T, S = q.shape[2], k.shape[2]

    def sees(b, t, s):
        return (not causal or s <= t + S - T) and (mask is None or bool(mask[b, t, s]))

    return torch.tensor(oracles.attention(q.tolist(), k.tolist(), v.tolist(), sees), dtype=torch.float64)


@BOTH
@SIZES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_the_papers_formula(attend, T, S, causal, masked):
    q, k, v = inputs(T, S)
    mask = random_mask(T, S) if masked else None
    ours = attend(q, k, v, causal, mask)
    assert ours.shape == q.shape and (ours - by_loops(q, k, v, causal, mask)).abs().max() < 1e-12


@BOTH
@pytest.mark.parametrize(("H", "K"), [(1, 1), (3, 3), (4, 2), (6, 2), (6, 3), (6, 1)])
@pytest.mark.parametrize("d", [1, 5, 8])
def test_neighbouring_query_heads_share_a_key_value_head(attend, H, K, d):
    q, k, v = inputs(3, 5, H, K, d)
    ours = attend(q, k, v)
    assert (ours - by_loops(q, k, v, True)).abs().max() < 1e-12
    repeated = attend(q, k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1))
    assert (ours - repeated).abs().max() < 1e-12


@BOTH
def test_values_may_be_wider_than_keys(attend):
    q, k, v = inputs(3, 5, d=4)
    v = torch.cat([v, v * 2, v - 1], dim=-1)
    assert (attend(q, k, v) - by_loops(q, k, v, True)).abs().max() < 1e-12


def plain_pytorch(q, k, v, seen_TS):
    """The textbook's line in the dtype of the inputs, for equally many heads."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~seen_TS, -math.inf).softmax(-1) @ v


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "S", "d"), [(1, 65, 64), (63, 63, 16), (65, 129, 64)])
def test_it_errs_at_most_twice_as_much_as_plain_pytorch(attend, dtype, T, S, d):
    q, k, v = inputs(T, S, 2, 2, d, dtype=dtype)
    exact = attention(*(x.double() for x in (q, k, v)))  # itself checked against loops above
    plain = plain_pytorch(q, k, v, torch.ones(T, S, dtype=torch.bool).tril(S - T))
    ours = attend(q, k, v)
    error, error_of_plain = ((out.double() - exact).abs().max().item() for out in (ours, plain))
    unit = torch.finfo(dtype).eps * exact.abs().max().item()  # one last place: nobody can promise less
    assert ours.dtype == dtype and error <= 2 * error_of_plain + unit


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_query_that_may_see_nothing_returns_zeros_and_finite_gradients(attend, dtype):
    q, k, v = (x.requires_grad_() for x in inputs(5, 3, dtype=dtype))
    out = attend(q, k, v)  # 5 queries on 3 keys: the first two stand before every key
    assert (out[:, :, :2] == 0).all() and (out[:, :, 2:] != 0).any()
    out.float().pow(2).sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v)) and (q.grad[:, :, :2] == 0).all()
    nothing = torch.zeros(2, 5, 3, dtype=torch.bool)
    assert (attend(q, k, v, False, nothing) == 0).all()


@BOTH
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_keys_give_zeros(attend, causal, dtype):
    q, k, v = inputs(3, 0, dtype=dtype)
    assert torch.equal(attend(q, k, v, causal), torch.zeros_like(q))


@BOTH
def test_the_future_changes_nothing(attend):
    q, k, v = inputs(7, 7)
    before = attend(q, k, v)
    for t in range(6):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, t + 1:], v2[:, :, t + 1:] = 1e3, -1e3
        assert torch.equal(attend(q, k2, v2)[:, :, :t + 1], before[:, :, :t + 1])
    assert not torch.equal(attend(q, k + 1, v + 1), before)


@BOTH
def test_a_mask_that_shows_everything_is_no_mask(attend):
    q, k, v = inputs(5, 9)
    everything = torch.ones(2, 5, 9, dtype=torch.bool)
    for causal in (True, False):
        assert (attend(q, k, v, causal, everything) - attend(q, k, v, causal)).abs().max() < 1e-12
    one_for_all_queries = random_mask(1, 9)
    spelled_out = one_for_all_queries.expand(-1, 5, -1)
    assert (attend(q, k, v, False, one_for_all_queries) - attend(q, k, v, False, spelled_out)).abs().max() < 1e-12


@BOTH
def test_hiding_keys_is_leaving_them_out(attend):
    q, k, v = inputs(4, 9)
    mask = torch.zeros(2, 4, 9, dtype=torch.bool)
    mask[:, :, [1, 4, 8]] = True
    kept = attend(q, k[:, :, [1, 4, 8]], v[:, :, [1, 4, 8]], False)
    assert (attend(q, k, v, False, mask) - kept).abs().max() < 1e-12


def test_one_query_behind_a_cache_needs_no_mask():
    assert visible_keys(1, 7, True, None, "cpu") is None and visible_keys(3, 7, False, None, "cpu") is None
    assert visible_keys(2, 3, True, None, "cpu").tolist() == [[True, True, False], [True, True, True]]
    assert visible_keys(1, 0, True, None, "cpu").shape == (1, 0)


@BOTH
@pytest.mark.parametrize(("T", "S", "masked"), [(3, 3, False), (2, 4, True), (4, 2, False)])
def test_its_gradient_is_the_derivative(attend, T, S, masked):
    q, k, v = (x.requires_grad_() for x in inputs(T, S, H=2, K=1, d=2, B=1))
    mask = random_mask(T, S)[:1] if masked else None
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, True, mask), (q, k, v))


@BOTH
def test_huge_scores_do_not_overflow(attend):
    q, k, v = inputs(3, 3, dtype=torch.float32)
    out, wanted = attend(q * 1e4, k * 1e4, v), by_loops(q * 1e4, k * 1e4, v, True)
    assert (out - wanted).abs().max() < 1e-6  # exp(1e8) is no number, exp(0) is: one key takes all


@pytest.mark.parametrize(("T", "S", "causal", "masked"), [(3, 7, True, False), (7, 7, True, True), (7, 3, False, True)])
def test_the_weights_are_what_each_query_takes_of_each_value(T, S, causal, masked):
    q, k, _ = inputs(T, S)
    mask = random_mask(T, S) if masked else None
    weights = attention_weights(q, k, causal, mask)
    assert weights.shape == (*q.shape[:3], S)
    one_hot = torch.eye(S, dtype=q.dtype).expand(*k.shape[:2], S, S)  # value s is the unit vector of key s
    wanted = by_loops(q, k, one_hot, causal, mask)
    assert (weights - wanted).abs().max() < 1e-12
    empty = wanted.sum(-1) == 0
    assert (weights.sum(-1)[~empty] - 1).abs().max() < 1e-12 and (weights[empty] == 0).all()


@BOTH
def test_heads_that_cannot_be_shared_are_refused(attend):
    q, k, v = inputs(3, 3, H=4, K=3)
    with pytest.raises((ValueError, RuntimeError), match="heads"):
        attend(q, k, v)
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads evenly"):
        attention(q, k, v)


CONFIG = ModelConfig(12, 1, 3, 5, n_kv_heads=1, head_dim=6, hidden_dim=8)  # H d = 18 is not D = 12


def layer_and_input(T):
    torch.manual_seed(9)
    return Attention(CONFIG).double(), torch.randn(1, T, 12, dtype=torch.float64)


def test_the_layer_projects_turns_attends_and_projects_back():
    layer, x = layer_and_input(5)
    ours = layer(x, rope_rotations(torch.arange(5), rope_frequencies(6)))
    w = {name: weight.tolist() for name, weight in layer.named_parameters()}
    rows = {name: [[oracles.dot(row, v) for row in w[name + ".weight"]] for v in x[0].tolist()]
            for name in ("wq", "wk", "wv")}
    q = [[oracles.rope(row[6 * h:6 * h + 6], t) for t, row in enumerate(rows["wq"])] for h in range(3)]
    k = [[oracles.rope(row, t) for t, row in enumerate(rows["wk"])]]
    heads = oracles.attention([q], [k], [[rows["wv"]]], lambda b, t, s: s <= t)[0]
    wanted = [[oracles.dot(row, [c for head in heads for c in head[t]]) for row in w["wo.weight"]] for t in range(5)]
    # only the angles are fp32: 4 rad at most, a few units of 2^-24 each
    assert (ours[0] - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-6
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "wq.weight": (18, 12), "wk.weight": (6, 12), "wv.weight": (6, 12), "wo.weight": (12, 18)}


def test_the_layer_reads_on_behind_its_cache():
    layer, x = layer_and_input(7)
    rotations, cache = rope_rotations(torch.arange(7), rope_frequencies(6)), KVCache(CONFIG, 1, 7, torch.float64)
    parts = []
    with torch.no_grad():
        for start, end in [(0, 3), (3, 4), (4, 7)]:
            parts.append(layer(x[:, start:end], rotations[start:end], cache))
            cache.advance(end - start)
        assert (torch.cat(parts, 1) - layer(x, rotations)).abs().max() < 1e-12


def test_the_layer_uses_the_attention_it_was_given():
    layer, x = layer_and_input(5)
    rotations = rope_rotations(torch.arange(5), rope_frequencies(6))
    other = Attention(CONFIG, attend=lambda q, k, v, causal, mask_BTS: torch.zeros_like(q)).double()
    assert (other(x, rotations) == 0).all() and (layer(x, rotations) != 0).any()


def _formula(attend, T, S, causal, masked):
    return lambda: test_it_is_the_papers_formula(attend, T, S, causal, masked)


MUTANTS = [
    Mutant("minillama.attention", ".tril(S - T)", ".tril()", _formula(attention, 3, 7, True, False)),
    Mutant("minillama.attention", ".tril(S - T)", ".tril(S - T - 1)", _formula(attention, 7, 7, True, False)),
    Mutant("minillama.attention", ".tril(S - T)", ".tril(S - T + 1)",
           lambda: test_the_future_changes_nothing(attention)),
    Mutant("minillama.attention", "/ math.sqrt(d)", "/ d", _formula(attention, 3, 7, True, False)),
    Mutant("minillama.attention", "/ math.sqrt(d)", "/ math.sqrt(d * H)", _formula(attention, 3, 7, True, False)),
    Mutant("minillama.attention", "q_BHTd.reshape(B, K, H // K * T, d)",
           "q_BHTd.reshape(B, H // K, K, T, d).transpose(1, 2).flatten(2, 3)",
           lambda: test_neighbouring_query_heads_share_a_key_value_head(attention, 6, 3, 5)),
    Mutant("minillama.attention", "triangle if mask is None else triangle & mask", "triangle",
           _formula(attention, 7, 7, True, True)),
    Mutant("minillama.attention", "triangle if mask is None else triangle & mask", "triangle if mask is None else mask",
           _formula(attention, 7, 7, True, True)),
    Mutant("minillama.attention", "if not causal or T == 1 <= S:", "if not causal or T <= S:",
           _formula(attention, 3, 7, True, False)),
    Mutant("minillama.attention", "if mask_BTS is None and T <= S:", "if True:",
           lambda: test_a_query_that_may_see_nothing_returns_zeros_and_finite_gradients(
               attention, torch.float32)),
    Mutant("minillama.attention", "masked_fill(~visible, -math.inf)", "masked_fill(~visible, 0.0)",
           _formula(attention, 7, 7, True, False)),
    Mutant("minillama.attention", "if causal and mask_BTS is None and T == S:", "if causal and mask_BTS is None:",
           _formula(torch_attention, 3, 7, True, False)),
    Mutant("minillama.attention", "mixed_BKGd.view(B, H, T, v_BKSd.shape[-1])", "mixed_BKGd.view(B, H, T, 3)",
           lambda: test_values_may_be_wider_than_keys(attention)),
    Mutant("minillama.attention", "enable_gqa=K != H", "enable_gqa=False",
           lambda: test_neighbouring_query_heads_share_a_key_value_head(torch_attention, 6, 3, 5)),
    Mutant("minillama.attention", "q_BTHd, k_BTKd = self.rotate(q_BTHd, k_BTKd, rotations)", "pass",
           test_the_layer_projects_turns_attends_and_projects_back),
    Mutant("minillama.attention", "v_BTKd.transpose(1, 2)\n",
           "apply_rope_qk(v_BTKd, v_BTKd, rotations)[0].transpose(1, 2)\n",
           test_the_layer_projects_turns_attends_and_projects_back),
    Mutant("minillama.attention", "mixed_BHTd.transpose(1, 2).flatten(-2)",
           "mixed_BHTd.permute(0, 2, 3, 1).flatten(-2)",
           test_the_layer_projects_turns_attends_and_projects_back),
    Mutant("minillama.attention", "            k_BKTd, v_BKTd = cache.append", "            cache.append",
           test_the_layer_reads_on_behind_its_cache),
]
