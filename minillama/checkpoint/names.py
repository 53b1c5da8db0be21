"""Meta's parameter names and Hugging Face's, and the row order of q and k that goes with each.

Meta's RoPE turns neighbouring rows (2i, 2i+1) of a head; Hugging Face's turns rows (i, i + d/2).
Their files hold the same matrices with the rows of wq and wk shuffled to match, head by head:

    Meta  a0 b0 a1 b1 a2 b2 ...        Hugging Face  a0 a1 a2 ... b0 b1 b2 ...

Everything that is a row of q or k follows: weights, biases, and the B of a LoRA. wk has n_kv_heads heads,
not n_heads. A file read without this is right at position 0, where RoPE turns nothing, and wrong after it.
"""

import re

TOP_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}
_HF_TOP = {hf: meta for meta, hf in TOP_NAMES.items()}
_HF_LAYER = {hf: meta for meta, hf in LAYER_NAMES.items()}


def to_hf(name):
    """Hugging Face's name of a module or parameter.

    >>> to_hf("layers.3.attention.wq.weight")
    'model.layers.3.self_attn.q_proj.weight'
    >>> to_hf("output")
    'lm_head'
    """
    return rename(name, r"layers\.(\d+)\.", TOP_NAMES, LAYER_NAMES, "model.layers.", "Meta's LLaMA")


def to_meta(name):
    """Meta's name of a module or parameter.

    >>> to_meta("model.layers.3.mlp.down_proj.weight")
    'layers.3.feed_forward.w2.weight'
    """
    return rename(name, r"model\.layers\.(\d+)\.", _HF_TOP, _HF_LAYER, "layers.", "Hugging Face's LLaMA")


def rows_to_hf(name, rows, n_heads, n_kv_heads):
    """`rows` [out, ...] of the module Meta calls `name`, from Meta's row order to Hugging Face's.

    Only wq (n_heads) and wk (n_kv_heads) change; any other tensor is returned as it is.
    """
    heads = _count_rotated_heads(name, rows, n_heads, n_kv_heads)
    if heads is None:
        return rows
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])  # head, pair, a or b, ...
    return pairs.transpose(1, 2).reshape(rows.shape)


def rows_to_meta(name, rows, n_heads, n_kv_heads):
    """`rows` [out, ...] of the module Meta calls `name`, from Hugging Face's row order to Meta's."""
    heads = _count_rotated_heads(name, rows, n_heads, n_kv_heads)
    if heads is None:
        return rows
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])  # head, a or b, pair, ...
    return halves.transpose(1, 2).reshape(rows.shape)


def state_dict_to_hf(state, n_heads, n_kv_heads):
    """{Meta name: tensor} -> {Hugging Face name: tensor}, q and k rows reordered."""
    return {to_hf(name): rows_to_hf(name, rows, n_heads, n_kv_heads) for name, rows in state.items()}


def rename(name, layer_pattern, top_names, layer_names, layer_prefix, whose):
    """The other name of a module or parameter of `whose` names, by a table for those in a layer and one for the
    others; ValueError for one that is in neither."""
    layer = re.match(layer_pattern, name)
    prefix, rest = (f"{layer_prefix}{layer[1]}.", name[layer.end():]) if layer else ("", name)
    module, dot, parameter = rest, "", ""
    if rest.endswith((".weight", ".bias")):
        module, dot, parameter = rest.rpartition(".")
    known = layer_names if layer else top_names
    if module not in known:
        where = "inside a layer" if layer else "outside the layers"
        raise ValueError(f"{name!r} is no name of {whose}; known {where} are {sorted(known)}")
    return f"{prefix}{known[module]}{dot}{parameter}"


def _count_rotated_heads(name, rows, n_heads, n_kv_heads):
    """How many heads' rows `rows` holds if RoPE turns them, else None."""
    module = re.sub(r"^layers\.\d+\.|\.(weight|bias)$", "", name)
    heads = {"attention.wq": n_heads, "attention.wk": n_kv_heads}.get(module)
    if heads is not None and rows.shape[0] % (2 * heads):
        raise ValueError(f"{name} has {rows.shape[0]} rows, not an even number for each of {heads} heads: "
                         "check n_heads and n_kv_heads")
    return heads
