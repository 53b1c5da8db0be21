"""Parity: right programs pass, and each classic mistake, planted in the weights or the settings, is called by name."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from checkpoints import model_of
from mutants import Mutant

from minillama.checkpoint.names import rows_to_hf, rows_to_meta
from minillama.checkpoint.weights import build_model, from_model
from minillama.config import ModelConfig, RopeScaling
from minillama.parity.compare_models import CAUSES, Parity, Rung, compare, ladder, parity_tokens
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
        patch.setattr("minillama.parity.compare_models.rope_rotations", clamped)
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


def test_the_tokens_are_the_same_ones_for_ever():
    """Recordings hold a ladder of them: the i-th is (7919 i + 1) mod V, and 32 more are to fit behind them."""
    assert parity_tokens(211, 128).tolist() == [[(7919 * i + 1) % 211 for i in range(64)]]
    lengths = {context: parity_tokens(5, context).shape for context in (1, 32, 33, 34, 95, 96, 97)}
    assert lengths == {1: (1, 1), 32: (1, 1), 33: (1, 1), 34: (1, 2), 95: (1, 63), 96: (1, 64), 97: (1, 64)}


@pytest.mark.parametrize(("largest", "error", "passed"), [(0.5, 9.9e-5, True), (0.5, 1.01e-4, False),
                                                          (8.0, 7.9e-4, True), (8.0, 8.1e-4, False)])
def test_a_rung_may_be_off_by_a_ten_thousandth_of_its_largest_value_or_of_1(largest, error, passed):
    theirs = torch.full((1, 3, 5), -largest, dtype=torch.float64)
    ours = theirs.clone()
    ours[0, 1, 2] += error
    rung, = compare({"logits": ours}, {"logits": theirs}, CONFIG).rungs
    assert rung.passed is passed and rung.error == pytest.approx(error, rel=1e-2)
    assert rung.detail == "same best token at 67% of 3 positions", "of equal ones the first is the best"


def test_greedy_tokens_are_counted_one_by_one():
    ours, theirs = ({"greedy tokens": torch.tensor(ids)} for ids in ([4, 5, 6, 7, 8], [4, 5, 9, 7, 1]))
    rung, = compare(ours, theirs, CONFIG).rungs
    assert (rung.error, rung.allowed, rung.passed, rung.detail) == (2.0, 0.0, False, "3 of 5 equal")
    assert compare(ours, ours, CONFIG).passed


def test_the_first_rung_that_fails_gives_the_cause_and_the_table_tells_all():
    zeros = {name: torch.zeros(1, 2, 3) for name in ("last block", "logits", "first norm")}
    result = compare({**zeros, "logits": zeros["logits"] + 1, "last block": zeros["last block"] + 1}, zeros, CONFIG)
    assert [rung.name for rung in result.rungs] == ["first norm", "last block", "logits"]
    assert str(result).splitlines() == [
        "rung              largest error    allowed", "first norm             0.00e+00    1.0e-04  ok",
        "last block             1.00e+00    1.0e-04  FAILS",
        "logits                 1.00e+00    1.0e-04  FAILS  same best token at 100% of 2 positions",
        f"usual cause: {CAUSES['last block']}"]


@pytest.mark.parametrize(("harmless", "found", "fails", "passed", "words"), [
    (True, ["a"], True, True, "rounding"), (True, ["a"], False, True, "ok"), (True, [], True, False, "FAILS"),
    (False, ["a"], False, False, "ok"), (False, ["a"], True, False, "FAILS"), (True, [], False, True, "ok")])
def test_where_one_side_is_rounded_the_rungs_decide_nothing(harmless, found, fails, passed, words):
    difference = Namespace(harmless=harmless, found=found)
    result = Parity([Rung("logits", 2.0 * fails, 1.0)], "a cause" if fails else "", difference)
    assert result.passed is passed and str(result).splitlines()[2].split()[3] == words
    assert ("usual cause: a cause" in str(result)) is (fails and words != "rounding")
    assert str(result).splitlines()[0] == str(difference)


@pytest.mark.parametrize(("share", "cause"), [(0.099, "rounding"), (0.101, "the embedding's rows")])
def test_embeddings_that_are_a_tenth_off_are_not_rounded(share, cause):
    theirs = torch.ones(1, 4, 8)
    result = compare({"embeddings": theirs * (1 + share)}, {"embeddings": theirs}, CONFIG)
    assert result.cause.startswith(cause)


def test_the_last_block_is_the_last_of_three():
    config = replace(CONFIG, n_layers=3)
    right, wrong = right_model(config), right_model(config)
    wrong.layers[2].attention.wv.weight.data.mul_(2)
    assert cause_of(wrong, right)[0] == "last block"


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


@pytest.mark.parametrize("length", [2, 3, 63])
def test_a_rope_table_may_end_anywhere(length):
    cause = cause_of(short_table(right_model(), length))[1]
    assert f"right up to position {length - 1}, wrong from {length} on" in cause


def test_a_norm_that_is_not_scaled_as_a_whole_is_not_the_fault_of_eps():
    right = torch.linspace(0.5, 2, 24).view(1, 3, 8)
    whole, uneven = torch.tensor([1.1, 1.2, 0.9])[:, None], torch.linspace(1, 1.01, 8)
    for factors, cause in ((whole, "norm_eps"), (uneven, "norm_eps,")):
        said = compare({"first norm": right * factors}, {"first norm": right}, CONFIG).cause
        assert said.startswith(cause) and ("scaled as a whole" in said) is (cause == "norm_eps")


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


PARITY = "minillama.parity.compare_models"
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
