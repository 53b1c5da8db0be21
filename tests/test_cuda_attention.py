"""A decoded token by one CUDA kernel, run by the emulator: RoPE, a cache's new rows and attention, lengths unequal."""

import math
import shutil
import sys

import pytest
import torch
from guarded import at_the_end, linux
from mutants import Mutant

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.cuda_attention import append_and_attend
from minillama.generate import generate_tokens
from minillama.kv_cache import KVCache
from minillama.parity.kernels_verify import attend_by_formula
from minillama.rope import apply_rope, apply_rope_half_split, rope_frequencies, rope_rotations
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif(
    "simt" not in kernels.built_backends(), reason=f"the kernels are not built: {kernels.BUILD}"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_token(lengths, H, K, d, dtype=torch.float32, room=None, seed=0):
    """(q, k, v, keys, values) behind a cache that holds NaN where a row has no token yet."""
    torch.manual_seed(seed)
    B, room = len(lengths), room or max(lengths) + 1
    q, k, v = (torch.randn(B, 1, heads, d).to(dtype) for heads in (H, K, K))
    keys, values = (torch.randn(B, K, room, d).to(dtype) for _ in range(2))
    for cache in (keys, values):
        for row, length in zip(cache, lengths, strict=True):
            row[:, length:] = math.nan
    return q, k, v, keys, values


def table(d, rows):
    return rope_rotations(torch.arange(rows), rope_frequencies(d))


def law_holds(token, lengths, begins=None, rotations=None, interleaved=True):
    """The cache's new rows bit for bit, none other touched, and of attention what fp32 may lose and one rounding."""
    q, k, v, keys, values = token
    d, begins = q.shape[-1], begins or [0] * len(lengths)
    rotations = table(d, max(lengths) + 1) if rotations is None else rotations
    before, plain = (keys.clone(), values.clone()), apply_rope if interleaved else apply_rope_half_split
    r = 2 * rotations.shape[-1]
    out = append_and_attend(*token, rotations, torch.tensor(lengths), torch.tensor(begins), interleaved)
    assert out.shape == q.shape and out.dtype == q.dtype
    for b, (length, begin) in enumerate(zip(lengths, begins, strict=True)):
        angle = rotations[length - begin:][:1] if rotations.dim() == 2 else rotations[b]
        turned = [x[0, 0] for x in kernels.fused_rope_qk(q[b:b + 1], k[b:b + 1], angle, interleaved=interleaved,
                                                         backend="simt")]
        by_hand = torch.cat([plain(k[b, ..., :r], angle), k[b, ..., r:]], -1)[0]  # one rounding may differ
        assert (turned[1] - by_hand).abs().max() <= torch.finfo(k.dtype).eps * k.abs().max()
        assert torch.equal(keys[b, :, length], turned[1]) and torch.equal(values[b, :, length], v[b, 0])
        for cache, was in zip((keys, values), before, strict=True):
            was[b, :, length] = cache[b, :, length]
        seen = [x[b:b + 1, :, begin:length + 1].float() for x in (keys, values)]
        queries = turned[0][None, :, None].float()
        bound = attend_by_formula(queries, *seen, torch.zeros(queries.shape), True, False)["out"]
        bound = bound if out.dtype == torch.float32 else bound.stored(out.dtype)
        error = (out[b:b + 1].transpose(1, 2).double() - bound.value).abs()
        beyond = float((error / bound.error.clamp(min=1e-300)).max())
        assert beyond <= 1, f"row {b}: {beyond:.1f} bounds"
    assert all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip((keys, values), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_length_are_what_rope_a_cache_and_attention_make_of_them(dtype):
    """No token yet, one, one more and one less than a step of 16, several parts, and a row that becomes full."""
    lengths = [0, 1, 15, 17, 150, 199]
    law_holds(random_token(lengths, 4, 2, 16, dtype, room=200), lengths)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [8, 32, 40, 64, 72, 128, 136, 256])
def test_every_width_and_dtype(d, dtype):
    law_holds(random_token([70, 3], 3, 1, d, dtype), [70, 3])


@pytest.mark.parametrize(("H", "K"), [(1, 1), (4, 4), (8, 1), (5, 1), (12, 1), (18, 2)])
def test_groups_are_packed_in_tiles_of_4_or_8_rows_and_one_tile_writes(H, K):
    law_holds(random_token([150, 33], H, K, 8), [150, 33])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("r", [8, 6, 2])
def test_the_first_r_columns_turn_in_either_layout(r, interleaved, dtype):
    law_holds(random_token([40, 2], 4, 2, 8, dtype), [40, 2], rotations=table(r, 41), interleaved=interleaved)


def test_padding_at_the_start_of_a_row_is_not_seen_and_has_no_position():
    """NaN there changes nothing; a row may be all padding."""
    lengths, begins = [90, 90, 90, 64], [0, 7, 90, 63]
    token = random_token(lengths, 4, 2, 8)
    for cache in token[3:]:
        for row, begin in zip(cache, begins, strict=True):
            row[:, :begin] = math.nan
    law_holds(token, lengths, begins)


def test_the_tokens_own_rows_of_the_table_and_one_length_for_all_give_the_same_bits():
    lengths, rotations = [40, 40], table(8, 41)
    wanted = append_and_attend(*random_token(lengths, 4, 2, 8), rotations, torch.tensor(lengths))
    for own in (rotations[40:][None], rotations[40:].expand(2, 1, 4)):
        assert torch.equal(append_and_attend(*random_token(lengths, 4, 2, 8), own, 40), wanted)
    law_holds(random_token([5, 40], 4, 2, 8), [5, 40], rotations=rotations[[3, 29]][:, None])


def test_a_row_without_room_is_refused_and_nothing_is_written():
    """Also a row of no sensible length, a position without angles, and what else does not fit."""
    token = random_token([7, 5], 4, 2, 8)
    before, rotations = [x.clone() for x in token], table(8, 8)
    for lengths, begins, words in (
        ([7, 8], None, "row 1 holds 8 tokens and has room for 8: one more does not fit"),
        ([-1, 5], None, "row 0 holds -1 tokens"),
        ([7, 5], [0, 6], "row 1 begins at 6 and holds 5 tokens"),
        ([7, 5], [-1, 0], "row 0 begins at -1"),
    ):
        with pytest.raises(RuntimeError, match=words):
            append_and_attend(*token, rotations, *(x and torch.tensor(x) for x in (lengths, begins)))
    with pytest.raises(RuntimeError, match="a row holds 8 tokens and has room for 8"):
        append_and_attend(*token, rotations, 8)
    with pytest.raises(RuntimeError, match="position 7 has no row: rotations has 7"):
        append_and_attend(*token, rotations[:7], torch.tensor([7, 5]))
    with pytest.raises(RuntimeError, match="q has shape .*one token a row"):
        append_and_attend(token[0].expand(2, 2, 4, 8), *token[1:], rotations, 5)
    with pytest.raises(RuntimeError, match="cannot be read 16 bytes at a time: use the operators rope_into"):
        append_and_attend(*random_token([7, 5], 4, 2, 6), table(6, 8), 5)
    with pytest.raises(RuntimeError, match="wants a gradient, and a cache has none"):
        append_and_attend(token[0].clone().requires_grad_(), *token[1:], rotations, 5)
    with pytest.raises(ValueError, match=r"rotations are torch.float32, wanted torch.complex64"):
        append_and_attend(*token, rotations.real, 5)
    assert all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(token, before, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2, 3, 4])
def test_what_is_seen_and_not_a_number_is_as_written_out(which, value):
    token = random_token([140], 2, 1, 8)
    token[which][0, 0, 0, 3] = value
    rotations = table(8, 141)
    found = append_and_attend(*token, rotations, 140)
    plain = use_plain(*token, apply_rope(token[0], rotations[140:]))
    assert torch.equal(found.isfinite(), plain.isfinite()) and torch.equal(found.isnan(), plain.isnan())


def use_plain(q, k, v, keys, values, turned):
    from minillama.attention import attention

    return attention(turned.transpose(1, 2), keys, values).transpose(1, 2)  # the cache has its new row


def test_fifty_runs_give_the_same_bits_in_any_order_and_leave_the_counters_at_0():
    runs_give_the_same_bits_and_leave_the_counters_at_0(["forward", "reverse", *(f"shuffle:{n}" for n in range(48))])


def runs_give_the_same_bits_and_leave_the_counters_at_0(orders):
    """Also where the counters are used again, whichever block was the last."""
    rotations, arrivals, first = table(8, 301), torch.zeros(8, dtype=torch.int32), None
    for order in orders:
        token = random_token([300, 65], 4, 2, 8, torch.bfloat16)
        with kernels.schedule(order):
            out = append_and_attend(*token, rotations, torch.tensor([300, 65]), arrivals=arrivals)
        first = out if first is None else first
        assert torch.equal(out, first) and not arrivals.any()


@linux
@pytest.mark.parametrize(("S", "d", "dtype"), [
    *((S, d, dtype) for S, d in ((1, 8), (19, 40), (33, 64), (35, 136)) for dtype in DTYPES), (9, 132, torch.float32)])
def test_no_row_and_no_column_too_many_is_read_or_written(S, d, dtype):
    token, rotations = random_token([S - 1], 2, 1, d, dtype), table(d, S)
    wanted = append_and_attend(*(x.clone() for x in token), rotations, S - 1)
    q, k, v, keys, values = token
    guarded = (at_the_end(q, False), at_the_end(k, False), at_the_end(v, False), at_the_end(keys), at_the_end(values))
    assert torch.equal(append_and_attend(*guarded, rotations, S - 1), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_passes_pytorchs_own_check(dtype):
    q, k, v, keys, values = random_token([20, 9], 4, 2, 8, dtype)
    keys, values = keys.nan_to_num(0), values.nan_to_num(0)
    arrivals, angles = torch.zeros(8, dtype=torch.int32), torch.view_as_real(table(8, 21))
    torch.library.opcheck(torch.ops.minillama_simt.flash_decoding_append.default,
                          (q, k, v, keys, values, arrivals, angles, torch.tensor([20, 9]), 0, None, True))


def tiny_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(32, 2, 4, 61, n_kv_heads=2, hidden_dim=48, max_seq_len=24)).eval()


def asked_operators(monkeypatch):
    asked, real = [], kernels.operator_of
    monkeypatch.setattr(kernels, "operator_of", lambda *names: asked.append(names[-1] if len(names) > 3 else names[0])
                        or real(*names))
    return asked


def test_a_whole_generation_takes_one_launch_a_layer_and_token_and_writes_the_references_ids(monkeypatch):
    """Prompts of unequal length, of which one row ends early: no other kernel is asked for once they are read."""
    prompts, model = [[1, 5, 9, 22, 3], [7], [30, 31]], tiny_model()
    wanted = list(generate_tokens(model, prompts, 9, stop_ids=()))
    stop = wanted[3][1]  # ends at least the second row
    wanted = list(generate_tokens(model, prompts, 9, stop_ids=(stop,)))
    use_kernels(model, "simt")
    asked = asked_operators(monkeypatch)
    assert list(generate_tokens(model, prompts, 9, stop_ids=(stop,))) == wanted and len(wanted) > 4
    prefill = asked.index("flash_decoding_append")
    assert asked[prefill:] == ["flash_decoding_append"] * 2 * (len(wanted) - 1)


def test_what_the_kernel_does_not_do_takes_rope_the_cache_and_attention_in_turn(monkeypatch):
    """More tokens than one, a gradient, a cache of another dtype; and a full cache says so."""
    model, asked = use_kernels(tiny_model(), "simt"), asked_operators(monkeypatch)
    for tokens, dtype, grad in ((2, torch.float32, False), (1, torch.bfloat16, False), (1, torch.float32, True)):
        asked.clear()
        with torch.set_grad_enabled(grad):
            model(torch.ones(1, tokens, dtype=torch.long), KVCache(model.config, 1, 4, dtype))
        assert "flash_decoding_append" not in asked and "rope" in asked
    cache = KVCache(model.config, 1, 1)
    with torch.no_grad():
        model(torch.ones(1, 1, dtype=torch.long), cache)
        with pytest.raises(ValueError, match="the cache holds 1 tokens and 2 are wanted"):
            model(torch.ones(1, 1, dtype=torch.long), cache)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                    reason="the profiler is compiled on the spot by g++, on Linux")
def test_4096_tokens_of_32_over_8_heads_move_1_03_of_the_bytes_there_are_in_one_launch_of_112_blocks():
    H, K, S, d = 32, 8, 4096, 128
    token, rotations = random_token([S - 1], H, K, d, torch.bfloat16), table(d, S)
    with kernels.profile() as p:
        append_and_attend(*token, rotations, torch.tensor([S - 1]))
    needed = 2 * d * (2 * K * S + 2 * H + 2 * K) + 4 * d + 8  # the cache, q, out, k and v; angles and the length
    parts = -(-108 // K)
    left = 4 * (d + 2) * H * parts
    moved = p.global_load.compulsory + p.global_store.compulsory
    assert moved <= 1.03 * needed and abs(moved / (needed + 2 * left) - 1) < 0.001
    assert p.events("barrier", "flash_decoding") == 4 * parts * K and parts * K >= 108
    assert p.findings == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                    reason="the profiler is compiled on the spot by g++, on Linux")
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle:3"])
def test_no_block_races_with_the_one_that_writes_the_cache_or_with_the_one_that_adds_the_parts(order):
    lengths = [0, 1, 150, 199]
    with kernels.schedule(order), kernels.profile() as p:
        append_and_attend(*random_token(lengths, 12, 1, 8, room=200), table(8, 200), torch.tensor(lengths))
    assert p.findings == []


MUTANTS = [] if "simt" not in kernels.built_backends() else [
    Mutant("minillama.cuda_attention", "lengths, length = (None, lengths_B)", "lengths, length = (None, lengths_B - 1)",
           test_the_tokens_own_rows_of_the_table_and_one_length_for_all_give_the_same_bits),
]
