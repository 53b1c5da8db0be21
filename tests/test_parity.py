"""Parity: right programs pass, and each classic mistake, planted in the weights or the settings, is called by name."""

from dataclasses import replace

import pytest
import torch
from checkpoints import model_of
from mutants import Mutant

from minillama.checkpoint.names import rows_to_hf, rows_to_meta
from minillama.checkpoint.weights import build_model, from_model
from minillama.config import ModelConfig, RopeScaling
from minillama.parity import CAUSES, Parity, Rung, compare, ladder, parity_tokens
from minillama.rope import rope_rotations
from minillama.transformer import Transformer

CONFIG = ModelConfig(dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=211, hidden_dim=128, max_seq_len=128,
                     rope_theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 128))
TOKENS = parity_tokens(CONFIG.vocab_size, CONFIG.max_seq_len)


def right_model(config=CONFIG):
    model = model_of(config)
    model.tok_embeddings.weight.data.mul_(0.1)  # as small as trained ones are: only then does eps matter
    return model


def with_settings(**changes):
    """The same weights under wrong settings."""
    weights = from_model(right_model())
    return build_model(replace(weights, config=replace(CONFIG, **changes)))


def with_rows(change):
    """A model whose state dict `change` has altered in place."""
    model = right_model()
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    change(state)
    model.load_state_dict(state)
    return model


def short_table(model, length):
    """Positions beyond the table stay at its end, as in programs that clamp."""
    def clamped(positions, frequencies):
        return rope_rotations(positions.clamp(max=length - 1), frequencies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillama.parity.rope_rotations", clamped)
        patch.setattr("minillama.transformer.rope_rotations", clamped)
        return ladder(model, TOKENS)


def cause_of(wrong, right=None):
    """(first rung that fails, its usual cause); `wrong` is a model or the ladder of one of shape CONFIG."""
    values, config = (wrong, CONFIG) if isinstance(wrong, dict) else (ladder(wrong, TOKENS), wrong.config)
    result = compare(values, ladder(right or right_model(), TOKENS), config)
    assert not result.passed
    return next(rung.name for rung in result.rungs if not rung.passed), result.cause


def unpermuted(state, letters="qk", k_heads=2):
    for name in state:
        if name.endswith(tuple(f"w{letter}.weight" for letter in letters)):
            state[name] = rows_to_hf(name, state[name], CONFIG.n_heads, k_heads)


def k_with_n_heads(state):
    """Read from Hugging Face's order with the wrong number of heads."""
    for name in state:
        if name.endswith("wk.weight"):
            theirs = rows_to_hf(name, state[name], CONFIG.n_heads, CONFIG.n_kv_heads)
            state[name] = rows_to_meta(name, theirs, CONFIG.n_heads, CONFIG.n_heads)


def wrong_axis(state):
    """Two shards of the embedding, cut by columns and joined as rows."""
    table = state["tok_embeddings.weight"]
    state["tok_embeddings.weight"] = torch.cat(table.chunk(2, 1), 0).reshape(table.shape)


def swapped(state):
    for name in [name for name in state if name.endswith("w1.weight")]:
        other = name.replace("w1", "w3")
        state[name], state[other] = state[other], state[name]


def test_a_model_agrees_with_itself_on_every_rung():
    result = compare(ladder(right_model(), TOKENS), ladder(right_model(), TOKENS), CONFIG)
    assert result.passed and not result.cause and [rung.name for rung in result.rungs] == list(CAUSES)
    assert "100% of 64 positions" in str(result) and "FAILS" not in str(result)


def test_rows_that_were_not_permuted_are_named():
    rung, cause = cause_of(with_rows(unpermuted))
    assert rung == "q after RoPE" and "rows of wq are in the other order" in cause
    rung, cause = cause_of(with_rows(lambda state: unpermuted(state, "k")))
    assert rung == "k after RoPE" and "rows of wk are in the other order" in cause


def test_k_permuted_with_n_heads_is_named():
    rung, cause = cause_of(with_rows(k_with_n_heads))
    assert rung == "k after RoPE" and "permuted with n_heads 4 where there are 2" in cause


def test_a_wrong_eps_is_named():
    rung, cause = cause_of(with_settings(norm_eps=1e-6))
    assert rung == "first norm" and cause.startswith("norm_eps")


def test_a_wrong_theta_is_named_with_the_right_one():
    for right, wrong in ((5e5, 1e4), (1e4, 5e5), (1e6, 1e4)):
        config = replace(CONFIG, rope_scaling=None, rope_theta=right)
        weights = from_model(right_model(config))
        model = build_model(replace(weights, config=replace(config, rope_theta=wrong)))
        rung, cause = cause_of(model, right_model(config))
        assert rung == "q after RoPE" and cause.startswith(f"rope_theta: ours is {wrong:g}, the other side")
        assert abs(float(cause.split()[-1]) / right - 1) < 0.02  # the estimate is printed with 3 digits


def test_missing_scaling_is_named():
    for scaling in (None, replace(CONFIG.rope_scaling, factor=32.0)):
        rung, cause = cause_of(with_settings(rope_scaling=scaling))
        assert rung == "q after RoPE" and cause.startswith("RoPE scaling: only the slow pairs differ")


def test_a_rope_table_that_is_too_short_is_named_with_its_length():
    rung, cause = cause_of(short_table(right_model(), 20))
    assert rung == "q after RoPE" and "too short: right up to position 19, wrong from 20" in cause


def test_an_embedding_joined_along_the_wrong_axis_is_named():
    rung, cause = cause_of(with_rows(wrong_axis))
    assert rung == "embeddings" and "wrong axis" in cause


def test_rounded_weights_are_told_from_wrong_ones():
    rounded = build_model(from_model(right_model().bfloat16()), dtype=torch.float32)
    rung, cause = cause_of(rounded)
    assert rung == "embeddings" and cause.startswith("rounding")


def test_a_swapped_feed_forward_and_a_wrong_head_are_found_at_their_rungs():
    assert cause_of(with_rows(swapped)) == ("first block", CAUSES["first block"])
    assert cause_of(with_rows(lambda s: s.update({"output.weight": s["tok_embeddings.weight"]})))[0] == "logits"
    assert cause_of(with_rows(lambda s: s["layers.1.attention.wv.weight"].mul_(2)))[0] == "last block"


def test_other_weights_are_told_from_other_orders():
    rung, cause = cause_of(with_rows(lambda state: state["layers.0.attention.wq.weight"].mul_(1.01)))
    assert rung == "q after RoPE" and "the numbers of wq themselves" in cause


def test_nothing_passes_by_not_being_a_number():
    assert not Rung("logits", float("nan"), 1.0).passed
    assert not Parity([Rung("logits", float("nan"), 1.0)]).passed


def test_models_of_other_shapes_fail_with_their_shapes():
    other = Transformer(replace(CONFIG, dim=48, head_dim=16))
    rung, cause = cause_of(other)
    assert rung == "embeddings" and "same shapes" in cause


PARITY = "minillama.parity"
MUTANTS = [
    Mutant(PARITY, "< 0.1 * theirs[name].norm()", "< 9 * theirs[name].norm()",
           test_an_embedding_joined_along_the_wrong_axis_is_named),
    Mutant(PARITY, "return self.error <= self.allowed", "return not self.error > self.allowed",
           test_nothing_passes_by_not_being_a_number),
    Mutant(PARITY, "if _same_numbers(first, wanted, near):", "if False:", test_rows_that_were_not_permuted_are_named),
    Mutant(PARITY, "(ratio[1] - 1).abs() < 0.01", "True", test_a_wrong_theta_is_named_with_the_right_one),
    Mutant(PARITY, 'grouped = letter == "k" and', 'grouped = letter == "q" and', test_k_permuted_with_n_heads_is_named),
    Mutant(PARITY, "if place > 1:", "if place > 99:", test_a_rope_table_that_is_too_short_is_named_with_its_length),
]
