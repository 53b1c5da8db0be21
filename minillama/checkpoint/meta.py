"""Meta's own form: `params.json`, `consolidated.00.pth` ... and `tokenizer.model` in one folder.

Large models are cut into shards, one per GPU that ran them. A matrix that was split by output rows (wq, wk,
wv, w1, w3, output) is joined along axis 0, one split by input columns (wo, w2) along axis 1, and norms were
copied. The embedding was split by columns in Llama 1 and 2 and by rows in Llama 3: the shapes tell which.

Source: meta-llama/llama, llama/model.py; meta-llama/llama-models, models/llama3/model.py.
"""

import math
import mmap
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from minillama.checkpoint.foreign_quantization import refuse_quantized
from minillama.checkpoint.pth import read_pth
from minillama.checkpoint.safetensors import read_safetensors
from minillama.checkpoint.weights import Stored, Weights, as_stored, resolve_tied_head
from minillama.config import ModelConfig, RopeScaling, hidden_dim_rule
from minillama.system.files import atomic_write, name_errors, reserve
from minillama.system.settings import check_known, flag, number, read_settings, whole, write_settings

MAX_SHARDS = 16
ROWS, COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output"), ("wo", "w2")  # axis 0, axis 1
LLAMA_3_2 = {(2048, 16), (3072, 28)}  # dim, n_layers of 1B and 3B: scaling factor 32 in their config.json


def read_meta(folder):
    """The `Weights` in a folder of Meta's form, 1 to 16 shards, mapped, not loaded. ValueError if damaged."""
    folder = Path(folder)
    paths = sorted(folder.glob("consolidated.*.pth")) or sorted(folder.glob("consolidated.safetensors"))  # Mistral's
    if not 1 <= len(paths) <= MAX_SHARDS:
        raise ValueError(f"{folder}: {len(paths)} files consolidated.NN.pth: expected 1 to {MAX_SHARDS}, or one "
                         "consolidated.safetensors")
    params_path = folder / "params.json"
    params = read_settings(params_path)
    shards = [(read_safetensors if path.suffix == ".safetensors" else read_pth)(path) for path in paths]
    refuse_quantized(folder, {"quantization_args": params.get("quantization_args")}, shards[0])
    for path, shard in zip(paths, shards, strict=True):
        shard.pop("rope.freqs", None)  # a table that old files carry; it is computed here
        if shard.keys() != shards[0].keys():
            odd = sorted(shard.keys() ^ shards[0].keys())
            raise ValueError(f"{path}: {odd[0]} is not in every shard: the shards belong to different models")
        for name in ("tok_embeddings.weight", "norm.weight"):
            if name not in shard:
                raise ValueError(f"{path}: {name} is missing: not a LLaMA in Meta's form")
    dim = whole(params, "dim", params_path)
    tensors = {name: _join(name, [shard[name] for shard in shards], dim, folder) for name in shards[0]}
    config = config_from_params(params, params_path, tensors)
    if len(shards) > 1:
        _drop_copied_heads(config, tensors, shards)
    config, notes = resolve_tied_head(config, tensors, params_path)
    notes = notes if params.get("tie_embeddings") else []  # Meta's own do not say: Llama 3.2's small ones store a copy
    if params.get("use_scaled_rope") and "rope_scaling" not in params and config.rope_scaling.factor != 8.0:
        notes.append(f"{params_path}: RoPE scaling factor 32, as published for this size of Llama 3.2")
    return Weights(config, tensors, folder, notes=notes)


def _join(name, parts, dim, source):
    """One tensor from its shards, joined when it is read."""
    axis, first = _axis(name, parts, dim), parts[0]
    if len(parts) == 1 or axis is None:
        return as_stored(first)
    if not all(part.dim() == 2 and part.shape == first.shape and part.dtype == first.dtype for part in parts):
        forms = [f"{list(part.shape)} {part.dtype}" for part in parts]
        raise ValueError(f"{source}: {name} differs between shards: {', '.join(forms)}")
    shape = list(first.shape)
    shape[axis] *= len(parts)
    return Stored(tuple(shape), first.dtype, lambda: torch.cat(parts, axis), parts=(axis, parts, None))


def _axis(name, parts, dim):
    """The axis along which the shards of a tensor are joined; None for what every shard holds whole."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module == "tok_embeddings":
        return 0 if parts[0].dim() == 2 and parts[0].shape[1] == dim else 1
    return 0 if module in ROWS else 1 if module in COLUMNS else None


def _drop_copied_heads(config, tensors, shards):
    """With more shards than key/value heads, neighbours hold the same head: keep each once."""
    rows = config.n_kv_heads * config.head_dim
    for name, tensor in tensors.items():
        if re.search(r"\.w[kv]\.weight$", name) and tensor.shape[0] > rows and tensor.shape[0] % rows == 0:
            copies = tensor.shape[0] // rows
            if len(shards) % copies == 0:
                kept = [shard[name] for shard in shards[::copies]]
                tensors[name] = Stored((rows, config.dim), tensor.dtype, lambda kept=kept: torch.cat(kept))


def config_from_params(params, path, tensors):
    """`ModelConfig` from params.json; what Meta leaves out is read off the tensors or taken as published."""
    check_known(params, path, "params.json")
    dim, n_layers = whole(params, "dim", path), whole(params, "n_layers", path)
    multiplier = None if params.get("ffn_dim_multiplier") is None else number(params, "ffn_dim_multiplier", path)
    n_heads, rows = whole(params, "n_heads", path), tensors["tok_embeddings.weight"].shape[0]
    vocab_size = rows if params.get("vocab_size") in (-1, None) else whole(params, "vocab_size", path)
    theta = number(params, "rope_theta", path, 10000.0)
    scaling, eps = _scaling(params, path), number(params, "norm_eps", path)
    return ModelConfig(
        dim, n_layers, n_heads, vocab_size, whole(params, "n_kv_heads", path, n_heads),
        head_dim=None if params.get("head_dim") is None else whole(params, "head_dim", path),
        hidden_dim=whole(params, "hidden_dim", path,
                         hidden_dim_rule(dim, whole(params, "multiple_of", path, 256), multiplier)),
        max_seq_len=whole(params, "max_seq_len", path, _length_of_release(theta, scaling, eps)),
        norm_eps=eps, rope_theta=theta, rope_scaling=scaling,
        tie_embeddings=flag(params, "tie_embeddings", path, True), objective=str(params.get("objective") or "causal"))


def _length_of_release(theta, scaling, eps):
    """Tokens of context of the release these settings belong to: params.json does not say."""
    if scaling is not None:
        return 131072  # Llama 3.1 and 3.2
    by_theta = {500000.0: 8192, 1000000.0: 16384}  # Llama 3; Code Llama
    return by_theta.get(theta, 2048 if eps == 1e-6 else 4096)  # LLaMA; Llama 2


def _scaling(params, path):
    ours = params.get("rope_scaling")
    if not flag(params, "use_scaled_rope", path):
        if ours is not None:
            raise ValueError(f"{path}: rope_scaling is there, but use_scaled_rope is not true: remove one")
        return None
    if ours is None:
        return RopeScaling(factor=32.0 if (params.get("dim"), params.get("n_layers")) in LLAMA_3_2 else 8.0)
    if not isinstance(ours, dict):
        raise ValueError(f"{path}: rope_scaling is {ours!r}: expected an object with its factor")
    check_known(ours, f"{path}: rope_scaling", "RoPE of params.json")
    factors = (number(ours, name, path) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return RopeScaling(*factors, whole(ours, "original_max_seq_len", path))


def write_meta(folder, weights, tokenizer_path=None):
    """Write `params.json` and one `consolidated.00.pth` (and a copy of the tokenizer file) into `folder`.

    Each file appears whole or not at all, and params.json last: it makes the folder a model. What else belongs to it
    is to be there before. A tied output head is stored as a second name of the embedding's bytes, so that Meta's own
    code can load it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").unlink(missing_ok=True)  # no mixture of an old model and this one is taken for either
    room = _room_for(weights.tensors, folder)
    state = {name: _for_saving(tensor, room.get(name)) for name, tensor in weights.tensors.items()}
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    with atomic_write(folder / "consolidated.00.pth") as file:
        torch.save(state, file)
    if tokenizer_path is not None:
        with open(tokenizer_path, "rb") as source, atomic_write(folder / "tokenizer.model") as file:
            shutil.copyfileobj(source, file)
    write_settings(folder / "params.json", params_of(weights.config))


def _room_for(tensors, folder):
    """{name: tensor to be filled} for those that have to be made, in one nameless file that is mapped into memory."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        if tensor.made:
            places[name] = size
            size += -(-math.prod(tensor.shape) * tensor.dtype.itemsize // 64) * 64  # the next one begins aligned
    if not size:
        return {}
    with name_errors(folder / "consolidated.00.pth"), \
            tempfile.TemporaryFile(dir=folder, prefix=".spill.", suffix=".partial") as file:
        reserve(file, size)
        block = mmap.mmap(file.fileno(), size)
    return {name: torch.frombuffer(block, dtype=tensors[name].dtype, count=math.prod(tensors[name].shape),
                                   offset=place).view(tensors[name].shape) for name, place in places.items()}


def _for_saving(tensor, room):
    """torch.save wants all tensors at once, each with storage of its own, which it writes out whole: one that has
    to be made is made in `room`, any other lends the part of its storage that it uses. Neither takes memory.
    """
    if room is not None:
        return room.copy_(tensor.read())
    value = tensor.read().cpu().contiguous()
    begin = value.storage_offset() * value.element_size()
    used = value.untyped_storage()[begin:begin + value.numel() * value.element_size()]
    return torch.empty(0, dtype=value.dtype).set_(used, 0, value.shape)


def params_of(config):
    """The content of `params.json`: Meta's keys, then ours, which Meta's code ignores."""
    multiple_of, multiplier = _hidden_dim_words(config.dim, config.hidden_dim)
    same = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "rope_theta", "max_seq_len",
            "tie_embeddings", "objective")
    params = {name: getattr(config, name) for name in same}
    params.update(multiple_of=multiple_of, use_scaled_rope=config.rope_scaling is not None)
    if multiplier is not None:
        params["ffn_dim_multiplier"] = multiplier
    if config.head_dim * config.n_heads != config.dim:
        params["head_dim"] = config.head_dim
    if config.rope_scaling is not None:
        params["rope_scaling"] = asdict(config.rope_scaling)
    return params


def _hidden_dim_words(dim, hidden):
    """(multiple_of, ffn_dim_multiplier) that `hidden_dim_rule` turns back into exactly `hidden`."""
    for multiplier in (None, 1.3, 1.5, 1.2):  # as published, where that fits
        for multiple in (4096, 1024, 256, 128, 64, 32, 16, 8, 4):
            if hidden_dim_rule(dim, multiple, multiplier) == hidden:
                return multiple, multiplier
    return 1, (hidden + 0.5) / hidden_dim_rule(dim, 1)  # the rule cuts the half off again
