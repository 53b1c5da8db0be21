"""RoPE: a rotation by position, in two layouts, equal to the published codes far beyond the first tokens."""

import ast
import importlib.util
import math
from pathlib import Path

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.config import RopeScaling
from minillama.rope import (
    apply_rope,
    apply_rope_half_split,
    half_split_order,
    rope_frequencies,
    rope_rotations,
    scale_frequencies,
)


def rotations_at(positions, width, theta=10000.0):
    return rope_rotations(torch.as_tensor(positions), rope_frequencies(width, theta))


def angle_error(positions):
    """Most that fp32 angles may be off: frequency, power and product round a few times (2^-24 each)."""
    return 8 * 2.0**-24 * (1 + float(torch.as_tensor(positions).max()))


@pytest.mark.parametrize("width", [2, 4, 6, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_it_is_the_papers_formula(width, theta):
    torch.manual_seed(width)
    positions = [0, 1, 2, 63, 64, 65, 97, 2047]
    x = torch.randn(len(positions), 3, width)
    wanted = torch.tensor([[oracles.rope(head, p, theta) for head in token]
                           for token, p in zip(x.tolist(), positions, strict=True)], dtype=torch.float64)
    error = (apply_rope(x, rotations_at(positions, width, theta)) - wanted).abs().amax((1, 2))
    allowed = torch.tensor([x.abs().max().item() * 2 * angle_error(p) for p in positions])
    assert (error <= allowed).all(), (error, allowed)


@pytest.mark.parametrize("width", [2, 6, 64])
def test_it_keeps_the_length_of_every_pair(width):
    torch.manual_seed(1)
    x = torch.randn(2, 11, 3, width, dtype=torch.float64)
    turned = apply_rope(x, rotations_at(range(1000, 1011), width))
    lengths = [v.unflatten(-1, (-1, 2)).norm(dim=-1) for v in (x, turned)]
    # cos and sin are fp32 numbers: their squares miss 1 by up to 2 units of 2^-24
    assert ((lengths[0] - lengths[1]).abs() <= 2 * 2.0**-24 * lengths[0]).all()


def test_position_zero_turns_nothing():
    x = torch.randn(1, 2, 16)
    assert torch.equal(apply_rope(x, rotations_at([0], 16)), x)


@pytest.mark.parametrize("distance", [0, 1, 7, 64, 1000])
def test_query_and_key_meet_at_their_distance_wherever_they_are(distance):
    torch.manual_seed(2)
    q, k = torch.randn(2, 1, 1, 64, dtype=torch.float64)
    scores = []
    for start in (0, 1, 63, 64, 1021, 4096 - distance):
        q_turned = apply_rope(q, rotations_at([start + distance], 64))
        k_turned = apply_rope(k, rotations_at([start], 64))
        scores.append((q_turned * k_turned).sum().item())
    q_lengths, k_lengths = (v.unflatten(-1, (-1, 2)).norm(dim=-1).flatten() for v in (q, k))
    # each of two angles (at most 4096 f) rounds once, its cosine and sine once more; and two scores are compared
    bound = 2 * 2 * 2.0**-24 * (q_lengths * k_lengths * (4096 * rope_frequencies(64) + 2)).sum().item()
    assert max(scores) - min(scores) < bound < 5e-3 * q.norm() * k.norm()


def test_keys_further_away_are_turned_further():
    """The relative angle has a sign: the key's is minus the query's."""
    x, one = torch.tensor([[[1.0, 0.0]]]), rotations_at([1], 2)
    assert apply_rope(x, one).flatten().tolist() == pytest.approx([math.cos(1), math.sin(1)], abs=1e-7)


@pytest.mark.parametrize("width", [2, 6, 64, 128])
def test_interleaved_equals_half_split_after_the_permutation(width):
    torch.manual_seed(3)
    x, rotations = torch.randn(2, 97, 3, width), rotations_at(range(97), width)
    order = half_split_order(width)
    difference = apply_rope_half_split(x[..., order], rotations) - apply_rope(x, rotations)[..., order]
    assert difference.abs().max() < 4 * 2.0**-24 * x.abs().max()  # the same two products, perhaps fused


def test_half_split_without_the_permutation_is_right_at_position_zero_only():
    torch.manual_seed(4)
    x, rotations = torch.randn(65, 1, 64), rotations_at(range(65), 64)
    difference = (apply_rope_half_split(x, rotations) - apply_rope(x, rotations)).abs().amax((1, 2))
    assert difference[0] == 0 and (difference[1:] > 0.1).all()


def test_half_split_equals_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="oracle: transformers")
    from transformers import LlamaConfig

    torch.manual_seed(5)
    config = LlamaConfig(hidden_size=96, num_attention_heads=4,
                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    positions, q = torch.arange(97)[None], torch.randn(1, 97, 4, 24)
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions)
    theirs = llama.apply_rotary_pos_emb(q.transpose(1, 2), q.transpose(1, 2), cos, sin)[0].transpose(1, 2)
    ours = apply_rope_half_split(q, rope_rotations(positions, rope_frequencies(24)))
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("width", [64, 128])
def test_stretched_frequencies_are_bit_equal_to_transformers(factor, width):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason="the oracle is transformers")
    from transformers import LlamaConfig

    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=4 * width, num_attention_heads=4, max_position_embeddings=131072,
                         rope_parameters=scaling)
    theirs = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    assert torch.equal(rope_frequencies(width, 500000.0, RopeScaling(factor=factor)), theirs)


def test_stretched_frequencies_are_bit_equal_to_metas():
    spec = importlib.util.find_spec("llama_models")
    if spec is None:
        pytest.skip("the oracle is llama-models: pip install llama-models")
    source = (Path(spec.origin).parent / "llama3" / "model.py").read_text(encoding="utf-8")
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    meta = {"torch": torch}  # the module itself needs fairscale; the function torch alone
    exec(next(ast.unparse(node) for node in functions if node.name == "apply_scaling"), meta)
    plain = rope_frequencies(128, 500000.0)
    assert torch.equal(scale_frequencies(plain, RopeScaling(factor=8.0)), meta["apply_scaling"](plain))


@pytest.mark.parametrize(("width", "slow", "between", "fast"), [(128, 29, 6, 29), (64, 14, 3, 15)])
def test_slow_pairs_are_stretched_and_fast_ones_left_alone(width, slow, between, fast):
    plain = rope_frequencies(width, 500000.0)
    ratio = plain / rope_frequencies(width, 500000.0, RopeScaling(factor=8.0))
    counts = [kind.sum().item() for kind in (ratio == 8, (ratio > 1) & (ratio < 8), ratio == 1)]
    assert counts == [slow, between, fast]
    assert (ratio.diff() >= 0).all(), "the slower the pair, the more it is stretched"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_turned_by_fp32_angles_and_rounded_once(dtype):
    torch.manual_seed(6)
    x, rotations = torch.randn(9, 2, 32).to(dtype), rotations_at(range(250, 259), 32)
    assert rotations.dtype == torch.complex64
    for turn in (apply_rope, apply_rope_half_split):
        ours = turn(x, rotations)
        assert ours.dtype == dtype and torch.equal(ours, turn(x.float(), rotations).to(dtype))


def test_each_row_may_have_its_own_positions():
    torch.manual_seed(7)
    x, positions = torch.randn(2, 3, 4, 8), torch.tensor([[0, 1, 2], [5, 0, 1]])
    together = apply_rope(x, rope_rotations(positions, rope_frequencies(8)))
    for row in range(2):
        assert torch.equal(together[row], apply_rope(x[row], rotations_at(positions[row], 8)))


def test_its_gradient_is_the_derivative():
    torch.manual_seed(8)
    x, rotations = torch.randn(3, 2, 4, dtype=torch.float64).requires_grad_(), rotations_at([0, 5, 70], 4)
    assert torch.autograd.gradcheck(lambda v: apply_rope(v, rotations), x)
    assert torch.autograd.gradcheck(lambda v: apply_rope_half_split(v, rotations), x)


@pytest.mark.parametrize("width", [1, 63])
def test_an_odd_width_is_refused(width):
    with pytest.raises(ValueError, match=f"head_dim {width} is odd"):
        rope_frequencies(width)


MUTANTS = [
    Mutant("minillama.rope", "torch.arange(0, head_dim, 2, device=\"cpu\").float() / head_dim",
           "torch.arange(0, head_dim // 2, device=\"cpu\").float() / head_dim",
           lambda: test_it_is_the_papers_formula(64, 10000.0)),
    Mutant("minillama.rope", "wide.unflatten(-1, (-1, 2))",
           "torch.stack(wide.chunk(2, -1), -1)", lambda: test_it_is_the_papers_formula(6, 10000.0)),
    Mutant("minillama.rope", "pairs * rotations", "pairs * rotations.conj()",
           test_keys_further_away_are_turned_further),
    Mutant("minillama.rope", "first * cos - second * sin, second * cos + first * sin",
           "first * cos + second * sin, second * cos - first * sin",
           lambda: test_interleaved_equals_half_split_after_the_permutation(6)),
    Mutant("minillama.rope", "view(-1, 2).T.flatten()", "view(2, -1).T.flatten()",
           lambda: test_interleaved_equals_half_split_after_the_permutation(6)),
    Mutant("minillama.rope", "rotations.unsqueeze(-2)  # one", "rotations.unsqueeze(-3)  # one",
           test_each_row_may_have_its_own_positions),
    Mutant("minillama.rope", "positions.float()[..., None]", "positions.bfloat16()[..., None]",
           lambda: test_it_is_the_papers_formula(64, 10000.0)),
    Mutant("minillama.rope", "torch.polar(torch.ones_like(angles), angles)",
           "torch.polar(torch.full_like(angles, 1.00001), angles)",
           lambda: test_it_keeps_the_length_of_every_pair(6)),
    Mutant("minillama.rope", "wavelengths > length / low,", "wavelengths < length / low,",
           lambda: test_slow_pairs_are_stretched_and_fast_ones_left_alone(128, 29, 6, 29)),
    Mutant("minillama.rope", "(1 - share) * frequencies / scaling.factor + share * frequencies",
           "share * frequencies / scaling.factor + (1 - share) * frequencies",
           lambda: test_stretched_frequencies_are_bit_equal_to_transformers(8.0, 128)),
    Mutant("minillama.rope", "frequencies / scaling.factor, frequencies", "frequencies / 8, frequencies",
           lambda: test_stretched_frequencies_are_bit_equal_to_transformers(32.0, 64)),
]
