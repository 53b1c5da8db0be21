"""NF4 and double quantization: bytes equal to bitsandbytes', errors as published."""

import math

import pytest
import torch
from mutants import Mutant
from oracles_quant import (
    BNB_FP4,
    E2M1,
    INT4,
    PUBLISHED_NF4,
    block_codes,
    nibbles,
    relative_rmse,
)

from minillama.parity.rounding import FP32, gamma
from minillama.quant.nf4 import DYNAMIC_MAP, NF4_LEVELS, quantize_nf4

SHAPES = [(1,), (2,), (63,), (64,), (65,), (127,), (3, 43), (8, 24), (5, 7, 11), (64 * 256 + 64,), (1, 16385)]


def bitsandbytes():
    return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle of the bytes")


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("shape", "block_size"), [(shape, 64) for shape in SHAPES] + [((3, 43), 32)], ids=str)
def test_bytes_equal_the_loop(shape, block_size):
    weight = normal(*shape)
    ours = quantize_nf4(weight, block_size, double_quantization=False)
    codes, absmax = block_codes(weight.flatten().tolist(), PUBLISHED_NF4, block_size)
    assert ours.codes.tolist() == nibbles(codes, zero_code=7)
    assert ours.absmax.tolist() == [float(value) for value in absmax]
    ours = quantize_nf4(weight, block_size)
    offset = ours.absmax_offset.numpy()
    codes, scale = block_codes([value - offset for value in absmax], DYNAMIC_MAP, 256)
    assert ours.absmax.tolist() == codes
    assert ours.absmax_scale.tolist() == [float(value) for value in scale]
    assert float(offset) == pytest.approx(sum(map(float, absmax)) / len(absmax), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (256, 192), (1024, 1024), (16, 1024 + 64)], ids=str)
def test_both_levels_of_codes_equal_bitsandbytes_byte_for_byte(shape, dtype):
    """Its plain second-level kernel is the oracle: see the next test for the one its CPU library substitutes. The mean
    that it takes away is a PyTorch sum in fp32, in an order of the processor's: ours is exact, and theirs within the
    rounding of n additions."""
    weight = normal(*shape, seed=1, dtype=dtype)
    ours = quantize_nf4(weight)
    theirs, state = bitsandbytes().quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    absmax = quantize_nf4(weight, double_quantization=False).absmax
    plain = torch.ops.bitsandbytes.quantize_blockwise.default._op_dk  # the kernel registered for any device
    codes, scale = plain(torch._C.DispatchKey.CompositeExplicitAutograd, absmax - ours.absmax_offset,
                         torch.tensor(DYNAMIC_MAP), 256)
    assert torch.equal(ours.codes, theirs.flatten())
    assert torch.equal(ours.absmax, codes)
    assert torch.equal(ours.absmax_scale, scale)
    assert ours.absmax_offset == absmax.double().mean().float()  # float64 adds these without an error that matters
    off = abs(float(state.offset) - float(ours.absmax_offset))
    assert off <= (gamma(len(absmax)) + FP32) * float(ours.absmax_offset)
    assert (scale - state.state2.absmax).abs().max() <= off + FP32 * float(scale.max())
    state.absmax, state.offset, state.state2.absmax = ours.absmax, ours.absmax_offset, ours.absmax_scale
    state.state2.code = torch.tensor(DYNAMIC_MAP)
    assert torch.equal(ours.dequantize(dtype), bitsandbytes().dequantize_4bit(theirs, state).to(dtype))


def test_bitsandbytes_cpu_library_differs_only_by_its_table_of_65536_steps():
    """It rounds x / absmax to one of 65,536 points before looking for the nearest value: 0.2 % of codes
    move by one."""
    absmax = quantize_nf4(normal(1024, 1024, seed=1), double_quantization=False).absmax
    centred = absmax - absmax.mean()
    theirs, state = bitsandbytes().quantize_blockwise(centred.clone(), blocksize=256)
    scaled = centred.view(-1, 256) * (1 / state.absmax)[:, None]
    snapped = -1 + 2 * ((scaled + 1) * 0.5 * 65535 + 0.5).int().float() / 65535
    values = torch.tensor(DYNAMIC_MAP)
    assert torch.equal(torch.bucketize(snapped, (values[1:] + values[:-1]) / 2).flatten(), theirs.long())
    ours = quantize_nf4(normal(1024, 1024, seed=1)).absmax
    assert 0 < int((ours != theirs).sum()) < 0.005 * theirs.numel()


def near_half_way(count=400):
    """Blocks whose values lie within two fp32 steps of a point half-way between two levels, times
    absmax."""
    generator = torch.Generator().manual_seed(0)
    halfway = torch.tensor([(a + b) / 2 for a, b in zip(NF4_LEVELS, NF4_LEVELS[1:], strict=False)])
    absmax = torch.rand(count, 1, generator=generator) + 0.5
    blocks = absmax * halfway[torch.randint(15, (count, 64), generator=generator)]
    steps = torch.randint(-2, 3, blocks.shape, generator=generator, dtype=torch.int32)
    blocks = (blocks.view(torch.int32) + steps).view(torch.float32)
    blocks[:, 5] = absmax[:, 0]
    return blocks


def test_values_near_the_half_way_points_round_as_bitsandbytes_does():
    blocks = near_half_way()
    theirs, _ = bitsandbytes().quantize_4bit(
        blocks, blocksize=64, compress_statistics=False, quant_type="nf4")
    assert torch.equal(quantize_nf4(blocks).codes, theirs.flatten())


def test_values_near_the_half_way_points_round_as_the_loop_does():
    blocks = near_half_way(20)
    codes, _ = block_codes(blocks.flatten().tolist(), NF4_LEVELS, 64)
    assert quantize_nf4(blocks).codes.tolist() == nibbles(codes, zero_code=7)


def test_a_value_exactly_half_way_takes_the_lower_level():
    halfway = torch.tensor(NF4_LEVELS, dtype=torch.float32)
    halfway = (halfway[:-1] + halfway[1:]) / 2
    stored = quantize_nf4(torch.cat([torch.ones(1), halfway]), double_quantization=False)
    codes = torch.stack([stored.codes >> 4, stored.codes & 15], 1).flatten()
    assert codes.tolist() == [15, *range(15)]


@pytest.mark.parametrize("double", [True, False])
def test_an_all_zero_block_is_code_7_and_stays_zero(double):
    weight = torch.zeros(3, 64)
    weight[1] = normal(64)
    stored = quantize_nf4(weight, double_quantization=double)
    assert set(stored.codes.view(3, 32)[[0, 2]].flatten().tolist()) == {0x77}
    assert not stored.dequantize()[[0, 2]].any()
    assert not quantize_nf4(torch.zeros(130), double_quantization=double).dequantize().any()


def test_weights_that_are_levels_come_back_exactly():
    """One block of absmax 1 and the 16 levels in any order: nothing is lost, nothing moves."""
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor(NF4_LEVELS * 4)[order].view(4, 16)
    assert torch.equal(quantize_nf4(weight, double_quantization=False).dequantize(), weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_is_kept_and_error_bounded_by_half_the_widest_gap(shape):
    weight = normal(*shape)
    stored = quantize_nf4(weight, double_quantization=False)
    back = stored.dequantize()
    widest = max(b - a for a, b in zip(NF4_LEVELS, NF4_LEVELS[1:], strict=False))
    bound = stored.absmax.repeat_interleave(64)[:weight.numel()].view(shape) * (widest / 2 + 1e-6)
    assert back.shape == weight.shape
    assert bool(((back - weight).abs() <= bound).all())


def test_mean_error_on_normal_weights_is_that_of_the_literature():
    """0.072798, spread 7.4e-5 for a million numbers: mean of 16 draws within 7 spreads, as bitsandbytes'
    tests ask."""
    errors = [float((quantize_nf4(w, double_quantization=False).dequantize() - w).abs().mean())
              for w in (normal(1024, 1024, seed=seed) for seed in range(4))]
    assert sum(errors) / len(errors) == pytest.approx(0.072798, abs=7 * 7.4e-5 / math.sqrt(len(errors)))


def rmse(stored, weight):
    return float((stored.dequantize().double() - weight.double()).norm() / weight.double().norm())


def test_nf4_beats_the_other_4_bit_forms_on_normal_weights():
    """Relative RMSE, blocks of 64: e2m1 is the OCP float (0 .5 1 1.5 2 3 4 6), BNB_FP4 bitsandbytes' own
    float."""
    weight = normal(1024, 1024)
    flat = weight.flatten().numpy()
    nf4 = rmse(quantize_nf4(weight, double_quantization=False), weight)
    e2m1, int4, bnb_fp4 = (relative_rmse(flat, levels, 64) for levels in (E2M1, INT4, BNB_FP4))
    assert (nf4, e2m1, int4, bnb_fp4) == pytest.approx((0.0922, 0.1056, 0.1076, 0.1222), abs=5e-4)
    assert nf4 < e2m1 < int4 < bnb_fp4
    assert nf4 == pytest.approx(relative_rmse(flat, PUBLISHED_NF4, 64), rel=1e-6)


def test_bitsandbytes_fp4_is_the_one_called_so_here():
    theirs = bitsandbytes().get_4bit_type("fp4", device="cpu").tolist()
    assert sorted(theirs) == pytest.approx(sorted(BNB_FP4), abs=1e-7)


def test_double_quantization_costs_little_and_saves_0_373_bits():
    weight = normal(1024, 1024)
    single, double = quantize_nf4(weight, double_quantization=False), quantize_nf4(weight)
    assert single.bits_per_weight() == 4.5
    assert double.bits_per_weight() == pytest.approx(4 + 8 / 64 + 32 / (64 * 256) + 32 / 2**20, abs=1e-9)
    assert double.bits_per_weight() == pytest.approx(4.127, abs=5e-4)
    assert rmse(double, weight) == pytest.approx(rmse(single, weight), rel=2e-3)
    # a code of the 8-bit map is off by at most half its widest gap, 0.9 / 64 / 2, of the group's largest
    # |absmax - mean|
    absmax = single.absmax.view(-1, 256)
    error = (double.dequantize() - single.dequantize()).abs().view(-1, 256 * 64).amax(1)
    bound = (absmax - double.absmax_offset).abs().amax(1) * (0.9 / 64 / 2) + 1e-6
    assert bool((error <= bound).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dequantizing_rounds_once(dtype):
    weight = normal(96, 64)
    stored = quantize_nf4(weight, double_quantization=False)
    exact = torch.tensor([NF4_LEVELS[code] for byte in stored.codes.tolist() for code in divmod(byte, 16)])
    exact = exact.double() * stored.absmax.double().repeat_interleave(64)  # 24 + 24 bits: exact in float64
    assert torch.equal(stored.dequantize(dtype).flatten(), exact.float().to(dtype))


def test_what_cannot_be_quantized_is_refused():
    for bad in (math.nan, math.inf, -math.inf):
        weight = normal(4, 64)
        weight[2, 3] = bad
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize_nf4(weight)
    with pytest.raises(ValueError, match="empty"):
        quantize_nf4(torch.zeros(0, 64))
    with pytest.raises(TypeError, match="float64"):
        quantize_nf4(torch.zeros(64, dtype=torch.float64))
    for block_size in (0, -64, 1, 63):
        with pytest.raises(ValueError, match="block_size"):
            quantize_nf4(torch.ones(64), block_size)


NF4 = "minillama.quant.nf4"


def bnb_bytes():
    return test_both_levels_of_codes_equal_bitsandbytes_byte_for_byte((256, 192), torch.float32)


def the_loop():
    test_bytes_equal_the_loop((3, 43), 64)


MUTANTS = [
    Mutant(NF4, "codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]", the_loop),
    Mutant(NF4, "codes[0::2] << 4 | codes[1::2]", "codes[1::2] << 4 | codes[0::2]", bnb_bytes),
    Mutant(NF4, "[levels.repeat_interleave(16), levels.repeat(16)]",
           "[levels.repeat(16), levels.repeat_interleave(16)]",
           test_weights_that_are_levels_come_back_exactly),
    Mutant("minillama.quant.nearest", "scaled > above", "scaled >= above",
           test_a_value_exactly_half_way_takes_the_lower_level),
    Mutant(NF4, "blocks * (1.0 / absmax.clamp(min=SMALLEST_SCALE))[:, None]",
           "blocks / absmax.clamp(min=SMALLEST_SCALE)[:, None]",
           test_values_near_the_half_way_points_round_as_the_loop_does),
    Mutant(NF4, "absmax.clamp(min=SMALLEST_SCALE)", "absmax",
           lambda: test_an_all_zero_block_is_code_7_and_stays_zero(False)),
    Mutant(NF4, "blocks.abs().amax(1)", "blocks.amax(1)", the_loop),
    Mutant(NF4, "absmax + quantized.absmax_offset", "absmax", bnb_bytes),
    Mutant(NF4, "quantize_blocks(absmax - offset,", "quantize_blocks(absmax,", bnb_bytes),
    Mutant(NF4, "DYNAMIC_MAP, GROUP), offset", "DYNAMIC_MAP, block_size), offset",
           lambda: test_both_levels_of_codes_equal_bitsandbytes_byte_for_byte((1024, 1024), torch.float32)),
    Mutant(NF4, "absmax = dequantize_blocks(absmax, quantized.absmax_scale, DYNAMIC_MAP, GROUP)",
           "absmax = dequantize_blocks(absmax, quantized.absmax_scale, DYNAMIC_MAP, GROUP + 1)",
           lambda: test_both_levels_of_codes_equal_bitsandbytes_byte_for_byte((1024, 1024), torch.float32)),
    Mutant(NF4, "value=NF4_LEVELS.index(0.0)", "value=0", the_loop),
    Mutant(NF4, "[:n - begin]", "", lambda: test_shape_is_kept_and_error_bounded_by_half_the_widest_gap((65,))),
    Mutant(NF4, "begin:begin + len(part)] = part", "begin:begin + len(part)] = part.to(torch.bfloat16)",
           lambda: test_dequantizing_rounds_once(torch.float16)),
    Mutant(NF4, "levels = torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device)",
           "levels = torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device).bfloat16().float()",
           lambda: test_dequantizing_rounds_once(torch.bfloat16)),
    Mutant(NF4, 'or not bool(torch.isfinite(flat if backend == "reference" else absmax).all())', "",
           test_what_cannot_be_quantized_is_refused),
]
