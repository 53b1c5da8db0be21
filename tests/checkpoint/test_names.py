"""Meta's names against Hugging Face's own model, and the row order against RoPE itself, in float64 loops."""

import math

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint.names import (
    rows_to_hf,
    rows_to_meta,
    state_dict_to_hf,
    to_hf,
    to_meta,
)

META_NAMES = ["tok_embeddings.weight", "norm.weight", "output.weight"] + [
    f"layers.{layer}.{part}.weight" for layer in (0, 1, 10)
    for part in ("attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1",
                 "feed_forward.w2", "feed_forward.w3", "attention_norm", "ffn_norm")]


def turned(vector, position, pairs):
    """RoPE by loop: rotate the given pairs of coordinates of a plain list by position * 10000^(-2i/d)."""
    result = list(vector)
    for i, (a, b) in enumerate(pairs):
        angle = position * 10000.0 ** (-2 * i / len(vector))
        result[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        result[b] = vector[a] * math.sin(angle) + vector[b] * math.cos(angle)
    return result


def score(q, k, q_position, k_position, pairs):
    return sum(a * b for a, b in zip(turned(q, q_position, pairs), turned(k, k_position, pairs), strict=True))


def test_every_name_goes_to_hf_and_back():
    for name in META_NAMES:
        assert to_meta(to_hf(name)) == name
        assert to_meta(to_hf(name.removesuffix(".weight"))) == name.removesuffix(".weight")
    assert len({to_hf(name) for name in META_NAMES}) == len(META_NAMES)


def test_names_are_those_of_the_transformers_model():
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle of the HF names")
    config = transformers.LlamaConfig(hidden_size=8, num_hidden_layers=11, num_attention_heads=2,
                                      vocab_size=16, intermediate_size=12)
    theirs = set(transformers.LlamaForCausalLM(config).state_dict())
    assert {to_hf(name) for name in META_NAMES} <= theirs
    assert {to_hf(to_meta(name)) for name in theirs} == theirs


def test_unknown_names_are_refused():
    for name in ("layers.0.attention.w9.weight", "model.norm.weight", "layers.attention.wq", "rope.freqs"):
        with pytest.raises(ValueError, match="known"):
            to_hf(name)
    with pytest.raises(ValueError, match="known"):
        to_meta("layers.0.attention.wq.weight")


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "d"), [(1, 1, 2), (4, 2, 6), (6, 1, 8), (3, 3, 10)])
def test_scores_of_either_rope_agree_after_reordering(n_heads, n_kv_heads, d):
    """<R_m q, R_n k> does not depend on the layout, at positions beyond 20. 1e-10: float64 sums."""
    torch.manual_seed(0)
    q = torch.randn(n_heads * d, dtype=torch.float64)
    k = torch.randn(n_kv_heads * d, dtype=torch.float64)
    q_hf = rows_to_hf("layers.0.attention.wq", q, n_heads, n_kv_heads)
    k_hf = rows_to_hf("layers.0.attention.wk", k, n_heads, n_kv_heads)
    neighbours = [(2 * i, 2 * i + 1) for i in range(d // 2)]
    halves = [(i, i + d // 2) for i in range(d // 2)]
    for head in range(n_heads):
        kv_head = head // (n_heads // n_kv_heads)
        meta = [x[i * d:(i + 1) * d].tolist() for x, i in ((q, head), (k, kv_head))]
        hf = [x[i * d:(i + 1) * d].tolist() for x, i in ((q_hf, head), (k_hf, kv_head))]
        assert score(*meta, 37, 5, neighbours) == pytest.approx(score(*hf, 37, 5, halves), abs=1e-10)


def test_reordering_there_and_back_is_the_identity_and_touches_only_q_and_k():
    torch.manual_seed(0)
    for name in META_NAMES:
        rows = torch.randn(24, 5)
        there = rows_to_hf(name, rows, n_heads=4, n_kv_heads=2)
        assert torch.equal(rows_to_meta(name, there, n_heads=4, n_kv_heads=2), rows)
        assert torch.equal(there, rows) == (not name.endswith(("wq.weight", "wk.weight")))


def test_a_whole_state_dict_goes_there_and_back():
    torch.manual_seed(0)
    state = {name: torch.randn(8, 3) for name in META_NAMES}
    theirs = state_dict_to_hf(state, n_heads=2, n_kv_heads=1)
    back = {to_meta(name): rows_to_meta(to_meta(name), rows, 2, 1) for name, rows in theirs.items()}
    assert list(back) == META_NAMES
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_rows_that_do_not_divide_into_heads_are_refused():
    for rows, heads in ((9, 3), (8, 3)):
        with pytest.raises(ValueError, match="check n_heads"):
            rows_to_hf("layers.0.attention.wq.weight", torch.zeros(rows, 2), heads, heads)


MUTANTS = [
    Mutant("minillama.checkpoint.names", '"attention.wk": n_kv_heads', '"attention.wk": n_heads',
           lambda: test_scores_of_either_rope_agree_after_reordering(4, 2, 6)),
    Mutant("minillama.checkpoint.names", '"attention.wk": n_kv_heads}', "}",
           lambda: test_scores_of_either_rope_agree_after_reordering(4, 2, 6)),
    Mutant("minillama.checkpoint.names", "return pairs.transpose(1, 2)", "return pairs",
           lambda: test_scores_of_either_rope_agree_after_reordering(4, 2, 6)),
    Mutant("minillama.checkpoint.names", "rows.reshape(heads, rows.shape[0] // heads // 2, 2,",
           "rows.reshape(heads, 2, rows.shape[0] // heads // 2,",
           lambda: test_scores_of_either_rope_agree_after_reordering(4, 2, 6)),
    Mutant("minillama.checkpoint.names", "halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2,",
           "halves = rows.reshape(heads, rows.shape[0] // heads // 2, 2,",
           test_reordering_there_and_back_is_the_identity_and_touches_only_q_and_k),
    Mutant("minillama.checkpoint.names", '"feed_forward.w3": "mlp.up_proj"',
           '"feed_forward.w3": "mlp.upp_proj"',
           test_names_are_those_of_the_transformers_model),
]
