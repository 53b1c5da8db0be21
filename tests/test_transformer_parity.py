"""The whole model against an independent one: transformers' LLaMA with the same weights, to 1e-5 in fp32.

The order of the rows of wq and wk is the classic mistake: it shows nowhere at position 0 and hardly before 20.
"""

from dataclasses import replace

import pytest
import torch
from mutants import Mutant
from test_transformer import CONFIG, random_model, random_tokens, worst

from minillama.config import RopeScaling


def permuted(weight, n_heads):
    """Meta's rows (pairs side by side) in Hugging Face's order (halves), head by head."""
    return weight.view(n_heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def as_hugging_face(model):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    c, scaling = model.config, model.config.rope_scaling
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if scaling:
        rope |= {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
                 "high_freq_factor": scaling.high_freq_factor,
                 "original_max_position_embeddings": scaling.original_max_seq_len}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.hidden_dim, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim,
        max_position_embeddings=c.max_seq_len, rms_norm_eps=c.norm_eps, rope_parameters=rope,
        tie_word_embeddings=c.tie_embeddings, attn_implementation="eager")).eval()
    ours, state = model.state_dict(), {}
    state["model.embed_tokens.weight"], state["model.norm.weight"] = ours["tok_embeddings.weight"], ours["norm.weight"]
    state["lm_head.weight"] = ours["output.weight"]
    for n in range(c.n_layers):
        for name, other in [("attention.wq", "self_attn.q_proj"), ("attention.wk", "self_attn.k_proj"),
                            ("attention.wv", "self_attn.v_proj"), ("attention.wo", "self_attn.o_proj"),
                            ("feed_forward.w1", "mlp.gate_proj"), ("feed_forward.w2", "mlp.down_proj"),
                            ("feed_forward.w3", "mlp.up_proj"), ("attention_norm", "input_layernorm"),
                            ("ffn_norm", "post_attention_layernorm")]:
            weight = ours[f"layers.{n}.{name}.weight"]
            heads = {"attention.wq": c.n_heads, "attention.wk": c.n_kv_heads}.get(name)
            state[f"model.layers.{n}.{other}.weight"] = permuted(weight, heads) if heads else weight
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("changes", [
    {}, {"n_kv_heads": 4}, {"n_kv_heads": 1, "head_dim": 16}, {"tie_embeddings": True, "norm_eps": 1e-2},
    {"rope_theta": 500000.0, "rope_scaling": RopeScaling(factor=32.0, original_max_seq_len=16)}],
    ids=["grouped", "multi-head", "one kv head, wide", "tied", "stretched"])
def test_its_logits_are_those_of_transformers_beyond_position_64(changes):
    model, tokens = random_model(replace(CONFIG, **changes)), random_tokens(2, 97)
    with torch.no_grad():
        assert worst(model(tokens), as_hugging_face(model)(tokens).logits) < 1e-5


def test_unpermuted_rows_agree_at_the_first_position_only():
    """So a comparison at position 0 proves nothing."""
    model, tokens = random_model(), random_tokens(1, 65)
    theirs = as_hugging_face(model)
    for name in ("q_proj", "k_proj"):
        for n, layer in enumerate(theirs.model.layers):
            ours = getattr(model.layers[n].attention, {"q_proj": "wq", "k_proj": "wk"}[name])
            getattr(layer.self_attn, name).weight.data = ours.weight.data
    with torch.no_grad():
        difference = (model(tokens) - theirs(tokens).logits).abs().amax(-1)[0]
    assert difference[0] < 1e-5 and difference[1] > 1e-3 and difference[64] > 1e-2


MUTANTS = [
    Mutant("minillama.transformer", "config.rope_theta, config.rope_scaling", "config.rope_theta",
           lambda: test_its_logits_are_those_of_transformers_beyond_position_64(
               {"rope_scaling": RopeScaling(factor=32.0, original_max_seq_len=16)})),
    Mutant("minillama.rope", "theta**exponents", "(theta + 1)**exponents",
           lambda: test_its_logits_are_those_of_transformers_beyond_position_64({})),
    Mutant("minillama.rope", "positions.float()[..., None]", "positions.float().clamp(max=64)[..., None]",
           lambda: test_its_logits_are_those_of_transformers_beyond_position_64({})),
]
