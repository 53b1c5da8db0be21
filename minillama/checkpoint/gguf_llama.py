"""A LLaMA in a GGUF file: llama.cpp's names and settings. Rows of wq and wk are in Meta's order, as in `names`."""

import re
from pathlib import Path

import numpy as np
import torch

from minillama.checkpoint.gguf import write_gguf
from minillama.checkpoint.gguf_blocks import BLOCKS, F32, PLAIN, Q8_0
from minillama.checkpoint.gguf_split import read_gguf_parts
from minillama.checkpoint.names import rename
from minillama.checkpoint.weights import Stored, Weights, expected_shapes
from minillama.config import ModelConfig, RopeScaling
from minillama.rope import rope_frequencies
from minillama.system.settings import check_known, number, whole
from minillama.tokenizer.gguf_vocab import gguf_vocab, read_gguf_vocab

TOP = {"token_embd": "tok_embeddings", "output_norm": "norm", "output": "output"}
LAYER = {"attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
         "attn_output": "attention.wo", "ffn_norm": "ffn_norm", "ffn_gate": "feed_forward.w1",
         "ffn_down": "feed_forward.w2", "ffn_up": "feed_forward.w3"}
TOP_BACK, LAYER_BACK = ({meta: gguf for gguf, meta in names.items()} for names in (TOP, LAYER))
FREQUENCIES = "rope_freqs.weight"  # what each RoPE frequency is divided by; present where Llama 3.1's scaling is
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}


def read_gguf_llama(path):
    """The `Weights` of a GGUF file, or of all parts of a split one, and its tokenizer. ValueError if it is
    damaged or no LLaMA."""
    settings, stored = read_gguf_parts(path)
    if settings.get("general.architecture") != "llama":
        raise ValueError(f"{path}: general.architecture is {settings.get('general.architecture')!r}: expected 'llama'")
    factors = stored.pop(FREQUENCIES, None)
    tensors = {_to_meta(name, path): tensor for name, tensor in stored.items()}
    if "tok_embeddings.weight" not in tensors:
        raise ValueError(f"{path}: token_embd.weight is missing: not a whole model")
    config = _config(settings, tensors, factors, path)
    tokenizer = read_gguf_vocab(settings, path)
    return Weights(config, _norms_as_stored(tensors), Path(path), tokenizer, list(tokenizer.notes) if tokenizer else [])


def _config(settings, tensors, factors, path):
    def of(reader, key, *default):
        return reader(settings, f"llama.{key}", path, *default)

    dim, heads = of(whole, "embedding_length"), of(whole, "attention.head_count")
    head_dim = of(whole, "attention.key_length", max(dim // heads, 1))
    widths = dict.fromkeys(("llama.rope.dimension_count", "llama.attention.value_length"), [head_dim])
    check_known(settings, path, "GGUF", **widths, **{"llama.attention.scale": [0, head_dim**-0.5]})
    theta = _shortest(of(number, "rope.freq_base", 10000.0))
    return ModelConfig(
        dim, of(whole, "block_count"), heads, tensors["tok_embeddings.weight"].shape[0],
        of(whole, "attention.head_count_kv", heads), head_dim=head_dim,
        hidden_dim=of(whole, "feed_forward_length"), max_seq_len=of(whole, "context_length"),
        norm_eps=_shortest(of(number, "attention.layer_norm_rms_epsilon")), rope_theta=theta,
        rope_scaling=_scaling(settings, factors, head_dim, theta, path), tie_embeddings="output.weight" not in tensors)


def _shortest(value):
    """A float32 as the decimal a person wrote: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _scaling(settings, factors, head_dim, theta, path):
    """llama.cpp stores what Llama 3.1's rule gives, not the rule: find the rule, and check that it gives the table."""
    keys = {name: f"minillama.rope_scaling.{name}" for name in SCALING}
    named = [key for key in keys.values() if key in settings]
    if factors is None and named:
        raise ValueError(f"{path}: {named[0]} is there, but {FREQUENCIES} is missing: convert the model again")
    if factors is None or head_dim % 2:
        return None
    if factors.shape != (head_dim // 2,):
        raise ValueError(f"{path}: {FREQUENCIES} has shape {list(factors.shape)}: expected [{head_dim // 2}]")
    table = factors.read().float()
    if bool((table == 1).all()) and not named:
        return None
    factor, low, high = (number(settings, keys[name], path, guess) for name, guess in
                         zip(SCALING, (float(table.max()), 1.0, 4.0), strict=False))
    scaling = RopeScaling(factor, low, high, whole(settings, keys["original_max_seq_len"], path, 8192))
    if not torch.allclose(_factors(head_dim, theta, scaling), table, rtol=1e-4):
        raise ValueError(f"{path}: {FREQUENCIES} is not what Llama 3.1's scaling gives: another rule, not known here")
    return scaling


def _factors(head_dim, theta, scaling):
    return rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)


def _to_meta(name, path):
    """Meta's name of a tensor."""
    layer = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.weight", name)
    if layer and layer[2] in LAYER:
        return f"layers.{int(layer[1])}.{LAYER[layer[2]]}.weight"
    if name.removesuffix(".weight") in TOP and name.endswith(".weight"):
        return f"{TOP[name.removesuffix('.weight')]}.weight"
    raise ValueError(f"{path}: {name[:80]} is no tensor of a LLaMA")


def _norms_as_stored(tensors):
    """llama.cpp keeps norms in fp32 beside matrices in half precision: give them the matrices' dtype back where that
    loses nothing, so that a half-precision model stays one."""
    dtypes = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 2}
    norms = {name: tensor for name, tensor in tensors.items() if len(tensor.shape) == 1}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if any(not torch.equal(norm.read().to(dtype).float(), norm.read().float()) for norm in norms.values()):
        return tensors
    narrow = {name: Stored(norm.shape, dtype, lambda norm=norm: norm.read().to(dtype)) for name, norm in norms.items()}
    return {**tensors, **narrow}


def write_gguf_llama(path, weights, tokenizer=None, kind=None):
    """Write a GGUF that llama.cpp runs. kind: "F32", "F16", "BF16" or "Q8_0" for matrices (None: as they are); norms
    are fp32, and so is a matrix whose rows are no multiple of a block of 32, in Q8_0."""
    by_name = {block.name: number for number, block in BLOCKS.items() if block.encode is not None}
    if kind is not None and kind not in by_name:
        raise ValueError(f"type {kind!r} is not written here: choose one of {', '.join(by_name)}")
    config, entries = weights.config, []
    for name, shape in expected_shapes(config).items():
        stored = weights.tensors[name]
        wanted = PLAIN.get(stored.dtype, F32) if kind is None else by_name[kind]
        if len(shape) == 1 or (wanted == Q8_0 and shape[1] % 32):
            wanted = F32
        gguf_name = rename(name, r"layers\.(\d+)\.", TOP_BACK, LAYER_BACK, "blk.", "Meta's LLaMA")
        entries.append((gguf_name, shape, wanted, lambda stored=stored: stored.read().cpu()))
    if config.rope_scaling is not None:
        table = _factors(config.head_dim, config.rope_theta, config.rope_scaling)
        entries.append((FREQUENCIES, tuple(table.shape), F32, lambda: table))
    file_kind = kind or BLOCKS[PLAIN.get(weights.tensors["tok_embeddings.weight"].dtype, F32)].name
    write_gguf(path, {**_settings(config, file_kind), **gguf_vocab(tokenizer, config.vocab_size)}, entries)


def _settings(config, file_kind):
    llama = {
        "context_length": config.max_seq_len, "embedding_length": config.dim, "block_count": config.n_layers,
        "feed_forward_length": config.hidden_dim, "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim, "rope.freq_base": float(config.rope_theta),
        "attention.head_count": config.n_heads, "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps)}
    scaling = {f"minillama.rope_scaling.{name}": getattr(config.rope_scaling, name)
               for name in SCALING if config.rope_scaling is not None}
    return {"general.architecture": "llama", "general.name": "minillama", "general.file_type": FILE_TYPES[file_kind],
            "general.quantization_version": 2, **{f"llama.{key}": value for key, value in llama.items()}, **scaling}
