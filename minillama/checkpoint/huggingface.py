"""Hugging Face's form: `config.json` and safetensors (or `pytorch_model*.bin`), in one file or with an index.

wq and wk change their row order on the way (see `names`). Settings are read as transformers 4 writes them
(`rope_theta`, `rope_scaling`) and as transformers 5 does (`rope_parameters`), and written in the older way, which
both read. Source: https://github.com/huggingface/transformers, models/llama/configuration_llama.py.
"""

from pathlib import Path

import torch

from minillama.checkpoint.foreign_quantization import refuse_quantized
from minillama.checkpoint.names import rows_to_hf, rows_to_meta, to_hf, to_meta
from minillama.checkpoint.pth import read_pth
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import Weights, as_stored, expected_shapes, resolve_tied_head
from minillama.config import ModelConfig, RopeScaling
from minillama.system.settings import check_known, flag, number, read_settings, whole, write_settings

MODEL_TYPES = ("llama", "mistral")  # Mistral 7B is the same network where its sliding window is off
SINGLES = (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pth))
MAX_SHARDS = 1000
SHARD_BYTES = 2**31  # what is held in memory while one file is written
DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def read_huggingface(folder):
    """The `Weights` in a folder of Hugging Face's form, mapped and not loaded. ValueError if damaged or no LLaMA."""
    folder = Path(folder)
    settings = read_settings(folder / "config.json")
    refuse_quantized(folder / "config.json", settings, {})
    given, notes = _read_tensors(folder)
    refuse_quantized(folder, {}, given)
    config = config_from_hf(settings, folder / "config.json")
    heads, tensors = (config.n_heads, config.n_kv_heads), {}
    for hf_name, tensor in given.items():
        if hf_name.endswith("rotary_emb.inv_freq"):
            continue  # computed, not learned
        try:
            name = to_meta(hf_name)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        turned = name.endswith((".wq.weight", ".wk.weight"))
        change = (lambda rows, name=name: rows_to_meta(name, rows, *heads)) if turned else None
        tensors[name] = as_stored(tensor, change)
    config, told = resolve_tied_head(config, tensors, folder / "config.json")
    return Weights(config, tensors, folder, notes=notes + told)


def config_from_hf(settings, path="config.json"):
    """`ModelConfig` from the content of a config.json. ValueError where it asks for more than LLaMA does, or has a
    setting that is not known."""
    given = settings.get("model_type", "llama")
    if given not in MODEL_TYPES:
        raise ValueError(f"{path}: model_type {given!r}: only {MODEL_TYPES} are LLaMA")
    heads, rope = whole(settings, "num_attention_heads", path), _rope(settings, path)
    config = ModelConfig(
        whole(settings, "hidden_size", path), whole(settings, "num_hidden_layers", path), heads,
        whole(settings, "vocab_size", path), whole(settings, "num_key_value_heads", path, heads),
        head_dim=None if settings.get("head_dim") is None else whole(settings, "head_dim", path),
        hidden_dim=whole(settings, "intermediate_size", path),
        max_seq_len=whole(settings, "max_position_embeddings", path, 2048),
        norm_eps=number(settings, "rms_norm_eps", path, 1e-6), rope_theta=number(rope, "rope_theta", path, 10000.0),
        rope_scaling=_scaling(rope, path), tie_embeddings=flag(settings, "tie_word_embeddings", path))
    if given == "mistral" and config.max_seq_len > 4096:  # MistralConfig's window where none is given
        settings = {"sliding_window": 4096, **settings}
    if given == "llama" and settings.get("use_sliding_window") is False:
        settings = {**settings, "sliding_window": None}
    check_known(settings, path, "config.json", attention_multiplier=[config.head_dim**-0.5],
                query_pre_attn_scalar=[config.head_dim])
    return config


def config_to_hf(config, dtype):
    """The content of config.json for this shape."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": config.dim, "intermediate_size": config.hidden_dim, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim, "vocab_size": config.vocab_size, "attention_bias": False, "mlp_bias": False,
        "max_position_embeddings": config.max_seq_len, "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta, "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": DTYPE_NAMES.get(dtype, "float32"),
        "rope_scaling": scaling and {
            "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len}}


def write_huggingface(folder, weights):
    """Write config.json and model.safetensors (several with an index above 2 GB); transformers loads the folder."""
    folder, config = Path(folder), weights.config
    folder.mkdir(parents=True, exist_ok=True)
    shards, total, where = _shards(weights), 0, {}
    for place, names in enumerate(shards, 1):
        file = f"model-{place:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        tensors = {}
        for name in names:
            rows = weights.tensors[name].read()
            tensors[to_hf(name)] = rows_to_hf(name, rows, config.n_heads, config.n_kv_heads)
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        where.update(dict.fromkeys(tensors, file))
        write_safetensors(folder / file, tensors, {"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_settings(folder / "model.safetensors.index.json", index)
    dtype = weights.tensors["tok_embeddings.weight"].dtype
    write_settings(folder / "config.json", config_to_hf(config, dtype))


def _shards(weights):
    """Lists of names, each of at most SHARD_BYTES unless one tensor alone is larger."""
    shards, room = [[]], SHARD_BYTES
    for name, shape in expected_shapes(weights.config).items():
        size = torch.Size(shape).numel() * weights.tensors[name].dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _read_tensors(folder):
    """({Hugging Face name: mapped tensor} of the whole folder, notes): of several forms, the one transformers takes."""
    forms = [(folder / f"{single}{index}", read) for single, read in SINGLES for index in ("", ".index.json")]
    found = [(path, read) for path, read in forms if path.is_file()]
    if not found:
        raise ValueError(f"{folder}: config.json is there but neither model.safetensors nor pytorch_model.bin, nor an "
                         "index of either: fetch the weights too")
    (path, read), others = found[0], [path.name for path, _ in found[1:]]
    notes = [f"{folder}: {path.name} is read, not {' or '.join(others)} beside it"] if others else []
    return (_read_indexed(path, read) if path.suffix == ".json" else read(path)), notes


def _read_indexed(path, read):
    where = read_settings(path, limit=50_000_000).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f"{path}: weight_map must map tensor names to file names")
    files = sorted(set(where.values()))
    if len(files) > MAX_SHARDS:
        raise ValueError(f"{path}: names {len(files)} files: expected at most {MAX_SHARDS}")
    for file in files:  # a name, not a path: an index must not reach out of its folder
        if Path(file).name != file or "\\" in file or not file.endswith((".safetensors", ".bin")):
            raise ValueError(f"{path}: weight_map names {file[:80]!r}: expected a .safetensors or .bin file beside it")
        if not (path.parent / file).is_file():
            raise ValueError(f"{path}: {file} is missing: fetch the weights again")
    contents = {file: read(path.parent / file) for file in files}
    for name, file in where.items():
        if name not in contents[file]:
            raise ValueError(f"{path}: {name} is not in {file}, where the index says it is")
    return {name: contents[file][name] for name, file in where.items()}


def _rope(settings, path):
    """The RoPE settings with their theta: `rope_parameters` (transformers 5) or `rope_scaling` (4), theta beside it."""
    given = [settings[name] for name in ("rope_parameters", "rope_scaling") if settings.get(name) is not None]
    for rope in given:
        if not isinstance(rope, dict) or rope != given[0]:
            raise ValueError(f"{path}: rope_parameters or rope_scaling is {rope!r}: expected an object or null, in one "
                             "of them, or the same in both")
    rope, theta = given[0] if given else {}, settings.get("rope_theta")
    inside = theta if rope.get("rope_theta") is None else rope["rope_theta"]
    if theta not in (None, inside):
        raise ValueError(f"{path}: rope_theta is {theta!r} and, in the RoPE settings, {inside!r}: remove the one that "
                         "is not the model's")
    return {**rope, "rope_theta": inside}


def _scaling(rope, path):
    kind = rope.get("rope_type", rope.get("type", "default"))
    path = f"{path}: rope_type {kind!r}"
    if rope.get("type", kind) != kind:
        raise ValueError(f"{path} and type {rope['type']!r} differ: remove the one that is not the model's")
    if kind in ("default", "linear", "dynamic"):  # the two scale nothing by 1
        if kind != "default":
            number(rope, "factor", path)
        return check_known(rope, path, "RoPE of config.json, plain")
    if kind != "llama3":
        raise ValueError(f"{path} is not known here: only 'default' and 'llama3' are LLaMA's")
    check_known(rope, path, "RoPE of config.json, llama3")
    factors = (number(rope, name, path) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return RopeScaling(*factors, whole(rope, "original_max_position_embeddings", path))
