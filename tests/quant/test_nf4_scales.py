"""NF4 with fitted scales: never a larger error than with absmax, in the same format, which bitsandbytes reads."""

import pytest
import torch
from mutants import Mutant
from test_nf4 import SHAPES, bitsandbytes, normal, rmse

from minillama.quant import nf4
from minillama.quant.nf4 import SCALE_FACTORS, NF4Linear, quantize_nf4

FIELDS = ("codes", "absmax", "absmax_scale", "absmax_offset")


def errors(stored, weight):
    """Squared error of each block, in float64."""
    error = (stored.dequantize().double() - weight.double()).flatten().square()
    return torch.nn.functional.pad(error, (0, -len(error) % stored.block_size)).view(-1, stored.block_size).sum(1)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("shape", "block_size"), [*((shape, 64) for shape in SHAPES), ((3, 43), 32), ((389,), 6)],
                         ids=str)
def test_no_block_has_a_larger_error_than_with_absmax(shape, block_size, double):
    """1e-6: which of two levels is nearer is decided on fp32 numbers, as is what they stand for."""
    weight = normal(*shape) ** 3  # heavy tails
    plain, fit = (quantize_nf4(weight, block_size, double, fit_scales) for fit_scales in (False, True))
    assert bool((errors(fit, weight) <= errors(plain, weight) * (1 + 1e-6)).all())
    assert (fit.shape, fit.block_size, fit.bits_per_weight()) == (plain.shape, block_size, plain.bits_per_weight())
    if weight.numel() > 1000:
        assert errors(fit, weight).sum() < 0.99 * errors(plain, weight).sum()


@pytest.mark.parametrize("double", [True, False])
def test_every_choice_is_the_best_of_those_that_can_be_stored(double):
    """Against trying each factor for all blocks at once, in float64."""
    weight = normal(100, 65)
    plain, fit = quantize_nf4(weight, 64, double), quantize_nf4(weight, 64, double, True)
    least = errors(plain, weight)
    for factor in (1, *SCALE_FACTORS):
        _, scales = nf4.scale_absmax(plain, factor)
        levels = torch.tensor(nf4.NF4_LEVELS).double() * scales.double()[:, None]
        blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64).double()
        least = torch.minimum(least, (blocks[:, :, None] - levels[:, None]).abs().amin(2).square().sum(1))
    torch.testing.assert_close(errors(fit, weight), least, rtol=1e-5, atol=0)


def test_groups_and_offset_stay_those_of_absmax_and_no_scale_is_below_it():
    weight = normal(300, 65)
    plain, fit = quantize_nf4(weight), quantize_nf4(weight, fit_scales=True)
    assert torch.equal(plain.absmax_scale, fit.absmax_scale) and torch.equal(plain.absmax_offset, fit.absmax_offset)
    assert bool((fit.absmax >= plain.absmax).all()) and bool((fit.absmax > plain.absmax).any())
    absmax = quantize_nf4(weight, 64, False).absmax
    ratio = quantize_nf4(weight, 64, False, True).absmax / absmax
    assert set(ratio.mul(100).round().int().tolist()) <= {100, *(round(100 * factor) for factor in SCALE_FACTORS)}


@pytest.mark.parametrize("double", [True, False])
def test_blocks_of_zeros_are_stored_as_with_absmax(double):
    weight = torch.zeros(5, 64)
    assert all(torch.equal(getattr(quantize_nf4(weight, 64, double), name),
                           getattr(quantize_nf4(weight, 64, double, True), name))
               for name in FIELDS[:4 if double else 2])
    weight[1] = normal(64)
    stored = quantize_nf4(weight, 64, double, True)
    assert not stored.dequantize()[[0, 2, 3, 4]].any() and set(stored.codes.view(5, 32)[2].tolist()) == {0x77}
    assert bool(quantize_nf4(torch.full((64,), 3e38), 64, double, True).dequantize().isfinite().all())


@pytest.mark.parametrize("n", [1, 129, 389, 1000])
def test_the_size_of_the_chunks_worked_on_does_not_show(n):
    weight, whole = normal(n), nf4.DECODE_CHUNK
    once = quantize_nf4(weight, 6, fit_scales=True)
    try:
        nf4.DECODE_CHUNK = 128
        again = quantize_nf4(weight, 6, fit_scales=True)
    finally:
        nf4.DECODE_CHUNK = whole
    assert all(torch.equal(getattr(once, name), getattr(again, name)) for name in FIELDS)


def test_on_normal_weights_the_relative_error_falls_from_0_092_to_0_088():
    weight = normal(1024, 1024)
    assert rmse(quantize_nf4(weight), weight) == pytest.approx(0.0922, abs=5e-4)
    assert rmse(quantize_nf4(weight, fit_scales=True), weight) == pytest.approx(0.0885, abs=5e-4)


@pytest.mark.parametrize("double", [True, False])
def test_bitsandbytes_loads_it_as_transformers_loads_a_file_and_reads_the_same_weights(double):
    """Params4bit.from_prequantized is where transformers hands over the tensors of a 4-bit safetensors file."""
    functional = bitsandbytes()
    from bitsandbytes.nn import Params4bit

    weight = normal(48, 192)
    stored = quantize_nf4(weight, 64, double, True)
    _, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    state.absmax = stored.absmax
    if double:
        state.offset, state.state2.absmax = stored.absmax_offset, stored.absmax_scale
        state.state2.code = torch.tensor(nf4.DYNAMIC_MAP)  # as in our files; PyTorch may round theirs twice
    parts = {name: value for name, value in state.as_dict(packed=True).items()}
    loaded = Params4bit.from_prequantized(data=stored.codes[:, None], quantized_stats=parts, device="cpu")
    theirs = functional.dequantize_4bit(loaded.data, loaded.quant_state)
    assert torch.equal(theirs, stored.dequantize())
    assert not torch.equal(theirs, quantize_nf4(weight, 64, double).dequantize())


def test_a_layer_takes_it_and_its_settings_stay_those_of_the_format():
    weight = normal(24, 65)
    layer = NF4Linear.from_weight(weight, fit_scales=True)
    assert torch.equal(layer.dequantize(), quantize_nf4(weight, fit_scales=True).dequantize())
    assert layer.settings() == NF4Linear.from_weight(weight).settings()
    assert layer.settings() == NF4Linear.planned(24, 65, fit_scales=True).settings()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("shape", "block_size"), [((1, 1), 64), ((3, 5), 64), ((65, 257), 64), ((31, 33), 32)])
def test_a_layer_planned_without_its_numbers_has_the_buffers_of_one_that_has_them(shape, block_size, double):
    made = NF4Linear.from_weight(normal(*shape), block_size, double)
    plan = NF4Linear.planned(*shape, block_size, double)
    sizes = [{name: (buffer.shape, buffer.dtype) for name, buffer in layer.named_buffers()} for layer in (made, plan)]
    assert sizes[0] == sizes[1] and plan.codes.is_meta and torch.equal(plan.layout, made.layout)


def many_blocks(double):
    return lambda: test_no_block_has_a_larger_error_than_with_absmax((64 * 256 + 64,), 64, double)


NF4 = "minillama.quant.nf4"
MUTANTS = [
    Mutant(NF4, "for factor in (1, *SCALE_FACTORS)]", "for factor in SCALE_FACTORS]",
           many_blocks(False)),
    Mutant(NF4, "absmax=stored.gather(0, best[None])[0])", "absmax=stored[0])",
           many_blocks(True)),
    Mutant(NF4, "replace(plain, codes=pack(codes), ", "replace(plain, ",
           many_blocks(True)),
    Mutant(NF4, "nearest((scales * factor - offset) / group, DYNAMIC_MAP)",
           "nearest(scales * factor / group, DYNAMIC_MAP)",
           many_blocks(True)),
    Mutant(NF4, "SCALE_FACTORS = (1.05, 1.1,", "SCALE_FACTORS = (0.9, 1.1,",
           test_groups_and_offset_stay_those_of_absmax_and_no_scale_is_below_it),
    Mutant(NF4, "scales.split(blocks, 1)", "[scales[:, :n] for n in blocks]",
           lambda: test_the_size_of_the_chunks_worked_on_does_not_show(389)),
    Mutant(NF4, "return fit_block_scales(plain, flat.split(size)) if fit_scales else plain", "return plain",
           test_on_normal_weights_the_relative_error_falls_from_0_092_to_0_088),
    Mutant(NF4, "double_quantization, fit_scales, backend))", "double_quantization, False, backend))",
           test_a_layer_takes_it_and_its_settings_stay_those_of_the_format),
]
