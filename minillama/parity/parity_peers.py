"""Whom to compare with: transformers with the same weights, published numbers, another checkpoint, or a recording."""

import importlib
import json
from pathlib import Path

import torch

from minillama.checkpoint import load_model, open_weights
from minillama.checkpoint.huggingface import config_to_hf
from minillama.checkpoint.names import rows_to_hf, to_hf
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import build_model
from minillama.generate import generate_tokens
from minillama.parity.checkpoint_diff import compare_checkpoints
from minillama.parity.compare_models import NEW_TOKENS, Parity, Rung, compare, ladder, parity_tokens

# What others print of published weights. Llama 2: the mean over the vocabulary of the logits at each token of "prompt",
# and the first logits of the first one (transformers, tests/models/llama/test_modeling_llama.py; on GPUs, in half
# precision). stories260K: the first greedy ids after BOS and the first logits after it, by its publisher's own program.
PUBLISHED = json.loads(Path(__file__).with_name("published_logits.json").read_text(encoding="utf-8"))
BAND = 0.05  # of the value (above 1): the printed numbers of different GPUs and half precisions differ by up to 0.03


def parity(path, against="transformers"):
    """The `Parity` of our forward pass, in fp32, with another's on the weights at `path`.

    against: "transformers" (must be installed); "published" (printed numbers, for the models that have some); a
    .safetensors written by `record`; or another checkpoint of the same model, in any form: that is compared tensor by
    tensor first, as `checkpoint_diff` does.
    """
    if against == "published":
        return _compare_published(path)
    if against != "transformers" and (Path(against).suffix != ".safetensors" or Path(against).is_dir()):
        return _with_checkpoint(open_weights(path), open_weights(against))
    model, _ = load_model(path, dtype=torch.float32)
    config, tokens = model.config, parity_tokens(model.config.vocab_size, model.config.max_seq_len)
    if against == "transformers":
        ours = ladder(model, tokens)
        del model
        return compare(ours, transformers_ladder(path, tokens), config)
    theirs = read_safetensors(against)
    tokens = _read_tokens(theirs, against, config)
    return compare(ladder(model, tokens), theirs, config)


def _with_checkpoint(here, there):
    difference, configs = compare_checkpoints(here, there), (here.config, there.config)
    tokens = parity_tokens(*(min(getattr(c, size) for c in configs) for size in ("vocab_size", "max_seq_len")))
    ours, theirs = (ladder(build_model(weights, dtype=torch.float32, spend=True), tokens) for weights in (here, there))
    result = compare(ours, theirs, here.config)
    result.difference = difference
    return result


def record(path, file):
    """Write the ladder of the model at `path` to a .safetensors, to compare with where both models do not fit."""
    model, _ = load_model(path, dtype=torch.float32)
    tokens = parity_tokens(model.config.vocab_size, model.config.max_seq_len)
    write_safetensors(file, {"tokens": tokens, **ladder(model, tokens)})


def _read_tokens(theirs, file, config):
    tokens = theirs.get("tokens")
    if tokens is None or tokens.dtype != torch.int64 or tokens.dim() != 2 or tokens.shape[0] != 1:
        raise ValueError(f"{file}: no (1, T) int64 tensor named tokens: record one with `parity PATH --record FILE`")
    if not 0 < tokens.shape[1] <= config.max_seq_len or tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise ValueError(f"{file}: its tokens do not fit a vocabulary of {config.vocab_size} and a context of "
                         f"{config.max_seq_len}: recorded from another model")
    return tokens


def transformers_ladder(path, tokens):
    """The ladder of transformers' LlamaForCausalLM. It loads a folder of its own form itself; other forms it gets
    from our reader."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise ValueError("transformers is not installed: pip install transformers, or compare with another checkpoint "
                         "(--against PATH)") from None
    if (Path(path) / "config.json").is_file():
        theirs = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    else:
        theirs = _through_our_reader(transformers, open_weights(path))
    return _their_ladder(theirs.eval(), tokens)


def _through_our_reader(transformers, weights):
    config = weights.config
    settings = config_to_hf(config, torch.float32)
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    state = {to_hf(name): rows_to_hf(name, tensor.read().float(), config.n_heads, config.n_kv_heads)
             for name, tensor in weights.tensors.items()}
    theirs.load_state_dict(state, strict=False, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)  # its table was made without memory
    return theirs


@torch.no_grad()
def _their_ladder(theirs, tokens):
    rotate = importlib.import_module("transformers.models.llama.modeling_llama").apply_rotary_pos_emb
    out = theirs(tokens, output_hidden_states=True, use_cache=False)
    block, embeddings = theirs.model.layers[0], out.hidden_states[0]
    norm, d = block.input_layernorm(embeddings), theirs.config.head_dim
    cos, sin = theirs.model.rotary_emb(norm, torch.arange(tokens.shape[1])[None])
    q, k = (w(norm).unflatten(-1, (-1, d)).transpose(1, 2) for w in (block.self_attn.q_proj, block.self_attn.k_proj))
    q, k = (x.transpose(1, 2) for x in rotate(q, k, cos, sin))
    values = {"embeddings": embeddings, "first norm": norm, "q after RoPE": q, "k after RoPE": k,
              "first block": out.hidden_states[1], "logits": out.logits.float()}
    if len(theirs.model.layers) == 1:
        values.pop("first block")  # its last hidden state comes after the final norm
    return {**values, "greedy tokens": _greedy(theirs, tokens)}


def _greedy(theirs, tokens):
    """Each step from the beginning, without a cache."""
    text = tokens
    for _ in range(min(NEW_TOKENS, theirs.config.max_position_embeddings - tokens.shape[1])):
        best = theirs(text, use_cache=False).logits[:, -1].argmax(-1)
        text = torch.cat([text, best[:, None]], dim=1)
    return text[0, tokens.shape[1]:]


@torch.no_grad()
def _compare_published(path):
    weights = open_weights(path)
    config, shape = weights.config, (weights.config.dim, weights.config.n_layers, weights.config.vocab_size)
    if shape == (64, 5, 512):
        return _story_parity(build_model(weights, dtype=torch.float32))
    known = {(4096, 32, 32000): PUBLISHED["Llama 2 7B"], (5120, 40, 32000): PUBLISHED["Llama 2 13B"]}
    if shape not in known or config.norm_eps != 1e-5 or config.n_kv_heads != config.n_heads:
        raise ValueError(f"{path}: no published logits are known here for dim {config.dim}, {config.n_layers} layers, "
                         f"vocabulary {config.vocab_size}; known: Llama 2 7B and 13B (base), stories260K")
    logits = build_model(weights)(torch.tensor([PUBLISHED["prompt"]]))[0]
    found = {"mean of logits": logits.mean(-1), "first logits": logits[0]}
    result = Parity()
    for name, numbers in known[shape].items():
        wanted = torch.tensor(numbers)
        error = ((found[name][:len(wanted)] - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
        result.rungs.append(Rung(name, error, BAND, "share of the printed value"))
    if not result.passed:
        result.cause = "other weights (a chat model has the same shape), or a mistake: `parity --against transformers`"
    return result


def _story_parity(model):
    wanted_ids, wanted = (torch.tensor(PUBLISHED["stories260K"][name]) for name in ("greedy tokens", "first logits"))
    ids = torch.tensor([row[0] for row in generate_tokens(model, [[1]], len(wanted_ids))])
    logits = model(torch.tensor([[1]]))[0, 0, :4]
    differ = (ids != wanted_ids).sum().item()
    error = (logits - wanted).abs().max().item()
    return Parity([Rung("first logits", error, 1e-4), Rung("greedy tokens", float(differ), 0.0)])
