"""Tiled attention: plain attention in every value, for every size, mask and tile."""

import functools
import math

import oracles
import pytest
import torch
from mutants import Mutant

from lessons.tiled_attention import tiled_attention, tiled_attention_with_lse
from minillama.attention import attention, visible_keys
from minillama.config import ModelConfig
from minillama.kv_cache import KVCache
from minillama.transformer import Transformer

BLOCKS = pytest.mark.parametrize(("Br", "Bc"), [(3, 3), (2, 3)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
MASKED = pytest.mark.parametrize("masked", [True, False])


def inputs(T, S, H=4, K=2, d=3, B=2, dtype=torch.float64, grad=False):
    torch.manual_seed(T * 100 + S)
    return [torch.randn(shape).to(dtype).requires_grad_(grad) for shape in [(B, H, T, d), (B, K, S, d), (B, K, S, d)]]


def random_mask(T, S, B=2):
    """About half is visible; in row 0 the first query sees nothing at all, in row 1 nobody sees the first key."""
    mask = torch.rand(B, T, S, generator=torch.Generator().manual_seed(T + S)) < 0.5
    mask[0, :1], mask[1:, :, :1] = False, False
    return mask


def every_size(Br, Bc):
    """From nothing at all to two tiles and one more row, on both sides."""
    return [(T, S) for T in range(2 * Br + 2) for S in range(2 * Bc + 2)]


def worst(ours, wanted):
    """The largest difference, NaN if there is one; 0 between empty tensors."""
    assert ours.shape == wanted.shape
    return (ours.double() - wanted.double()).abs().max().item() if ours.numel() else 0.0


def gradients(attend, qkv, upstream):
    """d(sum(upstream * attend(q, k, v))) for each of the three, from fresh leaves."""
    leaves = [x.detach().clone().requires_grad_() for x in qkv]
    return torch.autograd.grad(attend(*leaves), leaves, upstream.to(leaves[0].dtype), materialize_grads=True)


# --- the same function


@BLOCKS
@CAUSAL
@MASKED
def test_it_is_plain_attention_for_every_size_up_to_two_tiles_and_one(Br, Bc, causal, masked, sizes=None):
    for T, S in sizes or every_size(Br, Bc):
        q, k, v = inputs(T, S, dtype=torch.float32)
        mask = random_mask(T, S) if masked else None
        ours = tiled_attention(q, k, v, causal, mask, Br, Bc)
        # fp32 sums of at most 7 terms of size 1: a few units of 2^-24 each
        assert ours.dtype == q.dtype and worst(ours, attention(q, k, v, causal, mask)) < 1e-5, (T, S)


@pytest.mark.parametrize(("H", "K"), [(1, 1), (3, 3), (4, 2), (6, 2), (6, 3), (6, 1)])
@pytest.mark.parametrize(("T", "S"), [(5, 9), (9, 5), (1, 9)])
def test_it_is_the_papers_formula_with_grouped_heads(H, K, T, S):
    q, k, v = inputs(T, S, H, K)
    v = torch.cat([v, v * 2 - 1], -1)  # wider than the keys
    mask = random_mask(T, S)
    wanted = oracles.attention(q.tolist(), k.tolist(), v.tolist(),
                               lambda b, t, s: s <= t + S - T and bool(mask[b, t, s]))
    ours = tiled_attention(q, k, v, True, mask, 4, 4)
    assert worst(ours, torch.tensor(wanted, dtype=torch.float64)) < 1e-12
    upstream = torch.randn(ours.shape)
    tiled = gradients(lambda *qkv: tiled_attention(*qkv, True, mask, 4, 4), (q, k, v), upstream)
    plain = gradients(lambda *qkv: attention(*qkv, True, mask), (q, k, v), upstream)
    assert all(worst(*pair) < 1e-12 for pair in zip(tiled, plain, strict=True))


@CAUSAL
@MASKED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lse_is_the_log_of_the_sum_of_exp(causal, masked, dtype):
    for T, S in [(1, 1), (5, 9), (9, 5), (9, 9), (3, 0)]:
        q, k, v = inputs(T, S, H=4, K=4, dtype=dtype)
        mask = random_mask(T, S) if masked else None
        scores = q.double() @ k.double().mT / math.sqrt(3)
        visible = visible_keys(T, S, causal, mask, "cpu")
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)
        wanted = scores.logsumexp(-1)
        wanted = wanted.masked_fill(wanted == -math.inf, math.inf)  # who sees nothing: exp(S - LSE) has to be 0
        O, LSE = tiled_attention_with_lse(q, k, v, causal, mask, 4, 4)
        assert LSE.dtype == torch.promote_types(dtype, torch.float32) and O.dtype == dtype
        assert torch.equal(LSE.isinf(), wanted.isinf()) and (LSE[LSE.isinf()] > 0).all()
        seen = ~wanted.isinf()
        assert worst(LSE[seen], wanted[seen]) < (1e-13 if dtype == torch.float64 else 1e-5), (T, S)


# --- rows that see nothing, large numbers, small formats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_query_that_may_see_nothing_returns_zeros_and_finite_gradients(dtype):
    q, k, v = inputs(9, 3, dtype=dtype, grad=True)
    out, LSE = tiled_attention_with_lse(q, k, v, True, None, 4, 2)  # the first six stand before every key
    assert (out[:, :, :6] == 0).all() and (out[:, :, 6:] != 0).any() and (LSE[:, :, :6] == math.inf).all()
    (out.float().pow(2).sum() + LSE.float()[:, :, 6:].sum()).backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v)) and (q.grad[:, :, :6] == 0).all()
    nothing = torch.zeros(1, 1, 3, dtype=torch.bool)
    out, LSE = tiled_attention_with_lse(q, k, v, False, nothing, 4, 2)
    assert (out == 0).all() and (LSE == math.inf).all()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extreme_scores_do_not_overflow(scale):
    """Scores of 1e4 and 1e8: exp of neither is a number in fp32."""
    q, k, v = (x * factor for x, factor in zip(inputs(9, 9, dtype=torch.float32), (scale, scale, 1), strict=True))
    exact, upstream = [x.double() for x in (q, k, v)], torch.randn(q.shape)
    ours, LSE = tiled_attention_with_lse(q, k, v, True, None, 4, 4)
    # a score is only known to its last place, so P to exp of that; at 1e8 one key takes all and nothing is left to err
    last_place = 2 ** -23 * LSE.abs().max().item() if scale == 1e2 else 1e-6
    assert worst(ours, attention(*exact)) < 4 * last_place
    wanted = gradients(attention, exact, upstream)
    for gradient, true in zip(gradients(lambda *x: tiled_attention(*x, True, None, 4, 4), (q, k, v), upstream), wanted,
                              strict=True):
        assert worst(gradient, true) < 8 * last_place * max(1.0, true.abs().max().item(), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("T", "S", "d"), [(1, 65, 64), (63, 63, 16), (65, 129, 64)])
def test_it_errs_at_most_twice_as_much_as_plain_pytorch_and_its_gradients_thrice(dtype, T, S, d):
    q, k, v = inputs(T, S, 2, 2, d, 1, dtype)
    seen, upstream = torch.ones(T, S, dtype=torch.bool).tril(S - T), torch.randn(q.shape).to(dtype)

    def plain(q, k, v):  # the textbook's line in the dtype of the inputs
        return (q @ k.mT / math.sqrt(d)).masked_fill(~seen, -math.inf).softmax(-1) @ v

    def all_of(attend, *qkv):
        return attend(*qkv), *gradients(attend, qkv, upstream)

    small_tiles = functools.partial(tiled_attention, block_q=32, block_k=8)  # many steps of rescaling
    exact = all_of(attention, q.double(), k.double(), v.double())
    for factor, ours, theirs, true in zip((2, 3, 3, 3), all_of(small_tiles, q, k, v), all_of(plain, q, k, v), exact,
                                          strict=True):
        unit = torch.finfo(dtype).eps * true.abs().max().item()  # one last place: nobody can promise less
        assert ours.dtype == dtype and worst(ours, true) <= factor * worst(theirs, true) + unit


@CAUSAL
def test_the_size_of_a_tile_changes_rounding_alone(causal):
    q, k, v = inputs(13, 17)
    mask, upstream = random_mask(13, 17), torch.randn(q.shape)
    whole = gradients(lambda *qkv: tiled_attention(*qkv, causal, mask, 99, 99), (q, k, v), upstream)
    wanted = tiled_attention_with_lse(q, k, v, causal, mask, 99, 99)
    for Br, Bc in [(1, 1), (1, 17), (13, 1), (7, 5), (64, 64)]:
        for ours, one_tile in zip(tiled_attention_with_lse(q, k, v, causal, mask, Br, Bc), wanted, strict=True):
            assert worst(ours.nan_to_num(), one_tile.nan_to_num()) < 1e-13
        parts = gradients(lambda *qkv, Br=Br, Bc=Bc: tiled_attention(*qkv, causal, mask, Br, Bc), (q, k, v), upstream)
        assert all(worst(*pair) < 1e-13 for pair in zip(parts, whole, strict=True))


# --- in the model, and at the door


CONFIG = ModelConfig(24, 2, 4, 31, n_kv_heads=2, head_dim=6, hidden_dim=20, max_seq_len=80)


def model_with(attend):
    torch.manual_seed(5)
    return Transformer(CONFIG, attend)


def test_a_model_on_tiles_has_the_same_logits_and_gradients():
    plain = model_with(attention)
    tokens = torch.randint(31, (2, 67), generator=torch.Generator().manual_seed(1))
    logits = plain(tokens)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for attend in (tiled_attention, functools.partial(tiled_attention, block_q=8, block_k=16)):
        tiled = model_with(attend)
        ours = tiled(tokens)
        torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        assert worst(ours, logits) < 1e-5
        assert all(worst(ours.grad, wanted.grad) < 1e-5
                   for ours, wanted in zip(tiled.parameters(), plain.parameters(), strict=True))


def test_a_model_on_tiles_reads_on_behind_its_cache():
    tiled = model_with(functools.partial(tiled_attention, block_q=4, block_k=4))
    tokens, cache, parts = torch.arange(20)[None] % 31, KVCache(CONFIG, 1, 20), []
    with torch.no_grad():
        for part in tokens.split([7, 1, 12], dim=1):
            parts.append(tiled(part, cache))
        assert worst(torch.cat(parts, 1), model_with(attention)(tokens)) < 1e-5


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"k_BKSd": torch.zeros(1, 3, 5, 2)}, ValueError, "4 query heads cannot share 3 key/value heads evenly"),
    ({"block_q": 0}, ValueError, "tiles of 0 queries and 64 keys: both must be at least 1"),
    ({"block_k": -1}, ValueError, "tiles of 64 queries and -1 keys: both must be at least 1"),
    ({"mask_BTS": torch.ones(1, 3, 5)}, TypeError, r"mask_BTS is torch.float32: give torch.bool"),
    ({"mask_BTS": torch.ones(1, 3, 4) > 0}, ValueError, r"mask_BTS has shape \(1, 3, 4\): \(1, 3, 5\) is wanted"),
    ({"mask_BTS": torch.ones(3, 5) > 0}, ValueError, r"mask_BTS has shape \(3, 5\): \(1, 3, 5\) is wanted"),
])
def test_what_does_not_fit_is_refused(change, error, message):
    q, k, v = inputs(3, 5, B=1, d=2)
    with pytest.raises(error, match=message):
        tiled_attention(**{"q_BHTd": q, "k_BKSd": k, "v_BKSd": v, **change})


SIZES = [(9, 9), (7, 9), (9, 5), (1, 9)]


def _forward(masked=False):
    return lambda: test_it_is_plain_attention_for_every_size_up_to_two_tiles_and_one(4, 4, True, masked, SIZES)


def _mutant(old, new, law):
    return Mutant("lessons.tiled_attention", old, new, law)


def _lse():
    test_lse_is_the_log_of_the_sum_of_exp(True, True, torch.float32)


def _empty_rows():
    test_a_query_that_may_see_nothing_returns_zeros_and_finite_gradients(torch.float32)


def _extreme():
    test_extreme_scores_do_not_overflow(1e2)


def _bfloat16():
    test_it_errs_at_most_twice_as_much_as_plain_pytorch_and_its_gradients_thrice(torch.bfloat16, 65, 129, 64)


MUTANTS = [
    _mutant("O_i = rescale * O_i +", "O_i = O_i +", _forward()),
    _mutant("l = rescale * l +", "l = l +", _forward()),
    _mutant("(m - finite).exp()", "(finite - m).exp()", _forward()),
    _mutant("            m = m_new\n", "", _forward()),
    _mutant("finite = m_new.masked_fill(m_new == -math.inf, 0.0)", "finite = m_new", _forward(masked=True)),
    _mutant("(S_ij - finite).exp(), (m - finite).exp()", "S_ij.exp(), torch.ones_like(m)", _extreme),
    _mutant("O_i / l.masked_fill(l == 0, 1.0)", "O_i", _forward()),
    _mutant("O_i / l.masked_fill(l == 0, 1.0)", "O_i / l", _empty_rows),
    _mutant("(m + l.log())", "l.log()", _lse),
    _mutant("(m + l.log())", "(m + l.log2())", _lse),
    _mutant(".masked_fill(l == 0, math.inf)", "", _lse),
    _mutant(".masked_fill(l == 0, math.inf)", "", _empty_rows),
    _mutant("torch.promote_types(q.dtype, torch.float32)", "q.dtype", _bfloat16),
    _mutant("torch.promote_types(q.dtype, torch.float32)", "torch.float32",
            lambda: test_the_size_of_a_tile_changes_rounding_alone(True)),
    _mutant("key > query[:, None] + S - T", "key > query[:, None]", _forward()),  # top-left
    _mutant("key > query[:, None] + S - T", "key >= query[:, None] + S - T", _forward()),
    _mutant("key > query[:, None] + S - T", "key > query[:, None] + S - T + 1", _forward()),
    _mutant("j.start > i.stop - 1 + S - T", "j.start >= i.stop - 1 + S - T", _forward()),
    _mutant("j.start > i.stop - 1 + S - T", "j.start > i.stop - 1", _forward()),
    _mutant("j.stop - 1 > i.start + S - T", "j.stop - 1 > i.stop - 1 + S - T", _forward()),
    _mutant("j.stop - 1 > i.start + S - T", "j.stop - 2 > i.start + S - T", _forward()),
    _mutant("return S_ij if mask is None else", "return S_ij if mask is None or causal else", _forward(masked=True)),
    _mutant("masked_fill(~mask[", "masked_fill(mask[", _forward(masked=True)),
    _mutant("/ math.sqrt(Q_i.shape[-1])", "", _forward()),
    _mutant("x_BHTd.unflatten(1, (K, x_BHTd.shape[1] // K))",
            "x_BHTd.unflatten(1, (x_BHTd.shape[1] // K, K)).transpose(1, 2)",
            lambda: test_it_is_the_papers_formula_with_grouped_heads(6, 3, 5, 9)),
    _mutant("(d_v, 1))", "(q.shape[-1], 1))",
            lambda: test_it_is_the_papers_formula_with_grouped_heads(1, 1, 5, 9)),
    _mutant("range(0, length, block)", "range(0, length, 4 * block)", _forward()),
]
