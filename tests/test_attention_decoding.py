"""The CUDA kernel of attention for a model that writes, run by the emulator: few queries, a long cache, any mask."""

import math
import shutil
import sys

import pytest
import torch
from guarded import at_the_end, linux, sparse
from mutants import Mutant

from minillama import kernels
from minillama.attention import attention
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.parity.kernels_verify import attend_by_formula
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def decode(q, k, v, causal=True, mask_BTS=None):
    return torch.ops.minillama_simt.flash_decoding(q, k, v, causal, mask_BTS)


def random_inputs(B, H, K, T, S, d, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(B, *size, d).to(dtype) for size in ((H, T), (K, S), (K, S))]


def law_holds(q, k, v, causal=True, mask_BTS=None):
    """Within what fp32 may lose on any processor, and one rounding to the dtype: the shares are not rounded to it."""
    out = decode(q, k, v, causal, mask_BTS)
    bound = attend_by_formula(*(x.float() for x in (q, k, v)), torch.zeros(q.shape), causal, False, mask_BTS)["out"]
    bound = bound if out.dtype == torch.float32 else bound.stored(out.dtype)
    beyond = ((out.double() - bound.value).abs() / bound.error.clamp(min=1e-300)).max()
    assert out.dtype == q.dtype and out.shape == q.shape and beyond <= 1, f"{float(beyond):.1f} bounds"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", [1, 2, 31, 33, 127])
def test_one_query_keeps_the_arithmetics_bound_behind_a_cache_of_any_length(S, dtype):
    law_holds(*random_inputs(2, 4, 2, 1, S, 16, dtype))


def test_one_query_behind_4097_tokens():
    """Far more than one part: 54 of them, and one key that no step of 16 ends with."""
    law_holds(*random_inputs(1, 4, 2, 1, 4097, 8))


@pytest.mark.parametrize(("d", "dtype"), [
    *((d, dtype) for d in (8, 32, 40, 64, 72, 128, 136, 256) for dtype in DTYPES), (132, torch.float32)])
def test_every_width_and_dtype(d, dtype):
    law_holds(*random_inputs(1, 3, 1, 1, 70, d, dtype))


@pytest.mark.parametrize(("H", "K", "T"), [(1, 1, 1), (8, 1, 1), (5, 1, 1), (12, 1, 1), (6, 2, 3), (2, 2, 8),
                                         (4, 2, 5)])
@pytest.mark.parametrize("causal", [True, False])
def test_groups_and_a_few_queries_are_packed_in_tiles_of_4_or_8_rows(H, K, T, causal):
    law_holds(*random_inputs(2, H, K, T, 150, 8), causal)
    law_holds(*random_inputs(1, H, K, T, 3, 8), causal)  # as many keys or fewer than queries


def masks(B, T, S):
    """Padding on the left, caches of unequal length, both, one mask for all queries and rows, and holes."""
    key, row = torch.arange(S), torch.arange(B)[:, None, None]
    yield (key >= 7 * row + 3).expand(B, T, S)
    yield key[None, None] < S - 11 * row
    yield ((key >= 20 * row) & (key < S - 5 * row)).expand(B, 1, S)
    yield (key % 3 != 1).expand(1, 1, S)
    yield torch.rand(B, T, S, generator=torch.Generator().manual_seed(1)) < 0.3


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("number", range(5))
def test_any_mask_is_known(number, T):
    law_holds(*random_inputs(3, 4, 2, T, 150, 8), True, list(masks(3, T, 150))[number])


def test_what_the_mask_hides_and_what_lies_behind_the_cache_is_not_read():
    """NaN there changes no bit: rows of a larger cache, as the model gives them, whose ends differ."""
    q, k, v = random_inputs(2, 4, 2, 1, 90, 8)
    mask = list(masks(2, 1, 90))[2]
    clean = decode(q, k, v, True, mask)
    held = [torch.full((2, 2, 128, 8), math.nan) for _ in range(2)]
    for memory, x in zip(held, (k, v), strict=True):
        memory[:, :, :90] = x.masked_fill(~mask[:, 0, None, :, None], math.nan)
    assert torch.equal(decode(q, *(memory[:, :, :90] for memory in held), True, mask), clean)


@linux
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("S", "d"), [(1, 8), (19, 40), (33, 64), (9, 132), (35, 136)])
def test_no_row_and_no_column_too_many_is_read(S, d, dtype):
    q, k, v = random_inputs(1, 2, 1, 1, S, d, dtype)
    mask = torch.ones(1, 1, S, dtype=torch.bool)
    mask[..., 0] = S == 1
    for seen in (None, mask):
        found = decode(at_the_end(q, False), at_the_end(k), at_the_end(v), True,
                       seen if seen is None else at_the_end(seen.byte(), False).view(torch.bool))
        assert torch.equal(found, decode(q, k, v, True, seen))


@linux
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_strides_may_be_2_to_the_32(dim):
    q, k, v = random_inputs(2, 4, 2, 2, 35, 8, torch.bfloat16)
    assert torch.equal(decode(*(sparse(x, dim) for x in (q, k, v))), decode(q, k, v))


def test_any_order_of_dimensions_is_read():
    q, k, v = (torch.randn(2, 70, 3, 8).transpose(1, 2) for _ in range(3))  # (B, S, H, d) in memory
    law_holds(q[:, :, -1:], k, v)
    law_holds(q[:, :, -2:], k.permute(0, 1, 3, 2).contiguous().mT, v)  # d is not the last in memory


def test_a_row_that_sees_nothing_is_zeros():
    q, k, v = random_inputs(2, 2, 1, 3, 2, 8)
    mask = torch.ones(2, 3, 2, dtype=torch.bool)
    mask[1] = False
    out = decode(q, k, v, True, mask)
    assert (out[1] == 0).all() and (out[0, :, 0] == 0).all() and (out[0, :, 1:] != 0).all()
    assert (decode(q, k[:, :, :0], v[:, :, :0]) == 0).all()  # no keys at all


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_seen_and_not_a_number_is_as_written_out(which, value):
    """NaN stays NaN wherever it stands, and the rest stays what it is; also where a part has nothing else."""
    for place in (0, 70, -1):
        inputs = random_inputs(1, 2, 1, 1, 140, 8)
        inputs[which][0, 0, place if which else 0, 3] = value
        ours, plain = decode(*inputs), attention(*inputs)
        assert torch.equal(ours.isfinite(), plain.isfinite()) and torch.equal(ours.isnan(), plain.isnan())
    q, k, v = (torch.full((1, 1, 1 if x < 0 else 140, 8), x) for x in (-math.inf, 1.0, 1.0))
    assert decode(q, k, v).isnan().all() and attention(q, k, v).isnan().all()


@pytest.mark.parametrize("d", [8, 16, 80])
def test_scores_far_from_zero_neither_overflow_nor_vanish(d):
    q, k, v = random_inputs(1, 4, 2, 1, 150, d)
    for factor in (1e4, -1e4):
        out, exact = decode(q * factor, k, v), attention((q * factor).double(), k.double(), v.double())
        assert (out - exact).abs().max() <= 2 * torch.finfo(torch.float32).eps * v.abs().max()  # one value, of weight 1


def test_fifty_runs_give_the_same_bits_in_any_order_of_threads():
    q, k, v = random_inputs(1, 4, 2, 1, 300, 8, torch.bfloat16)
    first = decode(q, k, v)
    for seed in range(49):
        with kernels.schedule(f"shuffle:{seed}"):
            assert torch.equal(decode(q, k, v), first)
    for order in ("forward", "reverse"):
        with kernels.schedule(order):
            assert torch.equal(decode(q, k, v), first)


def test_what_is_not_aligned_is_left_to_version_1():
    q, k, v = random_inputs(1, 2, 1, 1, 33, 6)
    for mask in (None, torch.arange(33).expand(1, 1, 33) % 3 > 0):
        of_version_1 = torch.ops.minillama_simt.flash_attention(q, k, v, True, mask)[0]
        assert torch.equal(decode(q, k, v, True, mask), of_version_1)
    with pytest.raises(RuntimeError, match="q has 9 queries, and this kernel takes up to 8"):
        decode(*random_inputs(1, 1, 1, 9, 9, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_passes_pytorchs_own_check(dtype):
    inputs = random_inputs(2, 4, 2, 1, 20, 8, dtype)
    for mask in (None, torch.ones(2, 1, 20, dtype=torch.bool)):
        torch.library.opcheck(torch.ops.minillama_simt.flash_decoding.default, (*inputs, True, mask))


def test_a_model_that_writes_uses_it_and_one_that_learns_does_not(monkeypatch):
    """A batch with padding too, whose logits are the reference's."""
    asked, real = [], kernels.operator_of
    monkeypatch.setattr(kernels, "operator_of", lambda *names: asked.extend(names) or real(*names))
    torch.manual_seed(0)
    model = Transformer(ModelConfig(32, 1, 4, 61, n_kv_heads=2, hidden_dim=48, max_seq_len=16)).eval()
    tokens_BT, left_pad_B = torch.randint(61, (2, 7)), torch.tensor([0, 3])
    with torch.no_grad():
        wanted = model(tokens_BT, left_pad_B=left_pad_B)
        found = use_kernels(model, "simt")(tokens_BT, left_pad_B=left_pad_B)
    assert any(name == "flash_decoding" for name in asked if isinstance(name, str))
    real_BT = torch.arange(7) >= left_pad_B[:, None]
    assert (found - wanted)[real_BT].abs().max() <= 1e-5 * wanted.abs().max()
    asked.clear()
    model(tokens_BT)
    assert not any(name == "flash_decoding" for name in asked if isinstance(name, str))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                    reason="the profiler is compiled on the spot by g++, on Linux")
def test_4096_tokens_of_32_over_8_heads_move_1_03_of_the_bytes_there_are_in_108_blocks():
    """Keys and values once for their group, in whole sectors; what the parts leave is written and read once."""
    H, K, S, d = 32, 8, 4096, 128
    q, k, v = random_inputs(1, H, K, 1, S, d, torch.bfloat16)
    with kernels.profile() as p:
        decode(q, k, v)
    needed = 2 * d * (2 * K * S + 2 * H)  # k and v, q and out
    parts = -(-108 // K)
    left = 4 * (d + 2) * H * parts
    assert p.global_load.compulsory + p.global_store.compulsory == needed + 2 * left <= 1.03 * needed
    loads = p.total("global", "load", "flash_decoding")
    assert 32 * loads.sectors == 2 * d * (2 * K * S + H * parts)  # and q once for every part
    assert parts * K >= 108 and p.events("barrier", "flash_decoding") == 2 * parts * K
    assert p.findings == []


def _of_a_model():
    with pytest.MonkeyPatch.context() as patch:
        test_a_model_that_writes_uses_it_and_one_that_learns_does_not(patch)


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.cuda_attention", "if _learns(q_BHTd, k_BKSd", "if not _learns(q_BHTd, k_BKSd",
           lambda: _of_a_model()),
]
