"""LoRA adapters on disk, in the form of the peft library: adapter_config.json and adapter_model.safetensors, or the
adapter_model.bin of its releases before 0.7, which is read and not written.

With the adapter may go the tables at both ends, whole, as Chinese-LLaMA's second stage trains them: peft's
modules_to_save. Layers have Hugging Face's names, and the rows of q and k, B's too, its order: adapters load here and
there. A third file, which peft does not read, says what base it was learned over: on other bits it is another model.
"""

import re
import warnings
from pathlib import Path

import regex
import torch

from minillama.checkpoint.names import rows_to_hf, rows_to_meta, to_hf, to_meta
from minillama.checkpoint.pth import read_pth
from minillama.checkpoint.quantized import settings_from_json, settings_to_json
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.peft.dora import DoRALinear
from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora, lora_layers
from minillama.quant.quantize_linears import quantization_of
from minillama.system.claim import require_finished
from minillama.system.settings import check_known, flag, number, read_settings, whole, write_settings

CONFIG_FILE, TENSOR_FILE, BASE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
OLD_TENSOR_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
TABLES = {"embed_tokens": "tok_embeddings", "lm_head": "output"}  # what modules_to_save may name: peft's word, ours


def save_lora(folder, model, base_model=None, empty=False):
    """Write the adapter of a Transformer; base_model: a name of the base for the config file. An embedding table or
    head that requires a gradient is written whole, as modules_to_save.

    ValueError if the adapter does not exist, or was never trained (its B all zero), unless `empty` allows it.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no adapter: add_lora first")
    if not (empty or any(bool(layer.B.any()) for layer in layers.values())):
        raise ValueError(f"the adapter is empty: B is zero in all {len(layers)} layers, so it changes nothing; "
                         "train it before saving it")
    tensors = {}
    for path, layer in layers.items():
        B = rows_to_hf(path, layer.B.detach(), model.config.n_heads, model.config.n_kv_heads)
        tensors[f"{PREFIX}{to_hf(path)}.lora_A.weight"] = layer.A.detach()
        tensors[f"{PREFIX}{to_hf(path)}.lora_B.weight"] = B
        if isinstance(layer, DoRALinear):
            m = rows_to_hf(path, layer.m.detach(), model.config.n_heads, model.config.n_kv_heads)
            tensors[f"{PREFIX}{to_hf(path)}.lora_magnitude_vector"] = m
    learned = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    tables = [word for word, path in TABLES.items() if f"{path}.weight" in learned]
    for word in tables:
        tensors[f"{PREFIX}{to_hf(TABLES[word])}.weight"] = model.get_submodule(TABLES[word]).weight.detach()
    config = next(iter(layers.values())).config
    fields = {"peft_type": "LORA", "bias": "none", "r": config.rank, "lora_alpha": config.alpha,
              "lora_dropout": config.dropout, "init_lora_weights": True, "fan_in_fan_out": False,
              "target_modules": _target_modules(model, layers), "modules_to_save": tables or None}
    kinds = {"use_rslora": config.rank_stabilized, "use_dora": any(name.endswith("_vector") for name in tensors)}
    write_adapter(folder, model, tensors, fields | {name: True for name, used in kinds.items() if used}, base_model)


def write_adapter(folder, model, tensors, fields, base_model):
    """The three files of an adapter: the last of them makes the folder one."""
    shared = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base_model, "inference_mode": True}
    (Path(folder) / CONFIG_FILE).unlink(missing_ok=True)  # written last: with it the folder is an adapter
    base = quantization_of(model)
    write_settings(Path(folder) / BASE_FILE, {"model": base_model, "quantization": base and settings_to_json(base)})
    write_safetensors(Path(folder) / TENSOR_FILE, tensors, {"format": "pt"})
    write_settings(Path(folder) / CONFIG_FILE, shared | fields)


def learned_over(folder):
    """(name of the base, its `quantization_of` or None) that the adapter in `folder` was learned over; None where the
    adapter does not say, such as one of peft's. ValueError if the file is damaged."""
    path = Path(folder) / BASE_FILE
    if not path.exists():
        return None
    given = read_settings(path)
    base = given.get("quantization")
    return given.get("model") or "its base", base and {**settings_from_json(base, path), "crc32": base.get("crc32")}


def load_lora(folder, model):
    """Add the adapter in `folder` to a Transformer; return the names of its layers. Tables that the file brings take
    the place of the model's own, and learn on like the adapter.

    ValueError for a file that is damaged, empty, of another model's shapes, or neither LoRA, rsLoRA nor DoRA.
    """
    require_finished(folder)
    config = _read_config(Path(folder) / CONFIG_FILE)
    tensors, path = read_tensors(Path(folder))
    tables = _tables(tensors, config, model, path)
    pairs = _pairs(tensors, path, "ABm" if config["use_dora"] else "AB")
    _check_targets(config, pairs, Path(folder) / CONFIG_FILE)
    linears = dict(model.named_modules())
    for layer, pair in pairs.items():
        out_features, in_features = (getattr(linears.get(layer), f"{side}_features", None) for side in ("out", "in"))
        shapes = [tuple(tensor.shape) for _, tensor in sorted(pair.items())]
        if shapes != [(config["r"], in_features), (out_features, config["r"]), (out_features,)][:len(pair)]:
            raise ValueError(f"{path}: A and B of {layer} have shapes {shapes}, this model wants rank {config['r']} "
                             f"between {in_features} and {out_features} features: it was made for another base")
    kind = DoRALinear if config["use_dora"] else LoRALinear
    names = add_lora(model, LoRAConfig(config["r"], config["lora_alpha"], config["lora_dropout"], tuple(pairs),
                                       config["use_rslora"]), kind)
    with torch.no_grad():
        for layer, pair in pairs.items():
            for part, tensor in pair.items():
                heads = (model.config.n_heads, model.config.n_kv_heads)
                tensor = tensor if part == "A" else rows_to_meta(layer, tensor, *heads)
                getattr(model.get_submodule(layer), part).copy_(tensor)
        for table, tensor in tables.items():
            model.get_submodule(table).weight.requires_grad_().copy_(tensor)
    return names


def read_tensors(folder):
    """({peft's name: tensor}, their file); nothing in a .bin runs. Of two the safetensors is read, as peft does."""
    paths = [folder / name for name in (TENSOR_FILE, OLD_TENSOR_FILE) if (folder / name).is_file()]
    if not paths:
        raise ValueError(f"{folder}: neither {TENSOR_FILE} nor {OLD_TENSOR_FILE} is beside {CONFIG_FILE}: fetch it too")
    if len(paths) == 2:
        warnings.warn(f"{folder}: {TENSOR_FILE} is read, not {OLD_TENSOR_FILE} beside it", stacklevel=3)
    tensors = (read_safetensors if paths[0].name == TENSOR_FILE else read_pth)(paths[0])
    if odd := [name for name, t in tensors.items() if not (t.is_floating_point() and t.float().isfinite().all())]:
        raise ValueError(f"{paths[0]}: {odd[0]} holds NaN, an infinite number or whole numbers: its training diverged, "
                         "or the file is damaged; train it, or fetch it, again")
    return tensors, paths[0]


def _tables(tensors, config, model, path):
    """{Meta's name: tensor} of the tables that the configuration says are there, taken out of `tensors`; checked."""
    given = config.get("modules_to_save") or []
    words = [str(word).rpartition(".")[2] for word in given] if isinstance(given, list) else [""]  # model.lm_head
    if not set(words) <= set(TABLES):
        raise ValueError(f"{path}: modules_to_save is {given!r}: only {list(TABLES)} can be loaded")
    found = {TABLES[word]: tensors.pop(f"{PREFIX}{to_hf(TABLES[word])}.weight", None) for word in words}
    for table, tensor in found.items():
        wanted = getattr(model.get_submodule(table), "weight", torch.empty(0)).shape
        if tensor is None or tensor.shape != wanted:
            raise ValueError(f"{path}: {table} is {None if tensor is None else tuple(tensor.shape)}, this model wants "
                             f"{tuple(wanted)}: it was made for another base")
    ends = list(found.values())
    if ends and model.config.tie_embeddings and not (len(ends) == 2 and torch.equal(*ends)):
        raise ValueError(f"{path}: this model's two tables are one, {words} of the file are not: it cannot hold both")
    return found


def _read_config(path):
    config = read_settings(path)
    if not {"r", "lora_alpha"} <= set(config) or config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {config.get('peft_type')!r:.40} is not a LoRA, with r and lora_alpha")
    check_known(config, path, "adapter_config.json")
    return {**config, "r": whole(config, "r", path), "lora_alpha": number(config, "lora_alpha", path),
            "lora_dropout": number(config, "lora_dropout", path) if config.get("lora_dropout") else 0.0,
            "use_dora": flag(config, "use_dora", path), "use_rslora": flag(config, "use_rslora", path)}


def _pairs(tensors, path, wanted):
    """{Meta layer name: {"A": ..., "B": ...}} from the tensors of a peft file, with DoRA's lengths "m" where wanted."""
    pairs = {}
    for key, tensor in tensors.items():
        parts = re.fullmatch(re.escape(PREFIX) + r"(.+)\.lora_([AB]\.weight|magnitude_vector)", key)
        part = parts and parts[2][0]
        if not part or part not in wanted or tensor.dim() != 1 + (part != "m"):
            raise ValueError(f"{path}: {key} {tuple(tensor.shape)} is no matrix of a LoRA: expected "
                             f"{PREFIX}<layer>.lora_A.weight or lora_B.weight")
        pairs.setdefault(to_meta(parts[1]), {})[part] = tensor
    lonely = [layer for layer, pair in pairs.items() if len(pair) != len(wanted)]
    if lonely or not pairs:
        said = f"{lonely} lack {' or '.join(wanted)}" if lonely else "holds no adapter"
        raise ValueError(f"{path}: {said}: the file is incomplete")
    return pairs


def _check_targets(config, layers, path):
    """ValueError if a layer of the file is one that peft would leave out by target_modules or layers_to_transform."""
    targets, numbers = config.get("target_modules"), config.get("layers_to_transform")
    numbers = numbers if isinstance(numbers, list) or numbers is None else [numbers]
    for name in map(to_hf, layers):
        layer = re.search(r"layers\.(\d+)\.", name)
        if not _is_target(name, targets) or (numbers and not (layer and int(layer[1]) in numbers)):
            raise ValueError(f"{path}: target_modules or layers_to_transform leave out {name}, which the file beside "
                             "it adapts: take both files from one training")


def _is_target(name, targets):
    """Whether peft adapts the layer: it ends in one of the names, or matches the pattern."""
    if isinstance(targets, str) and targets != "all-linear":
        try:
            return regex.fullmatch(targets, name, timeout=2)  # a pattern from a file must not take for ever
        except (regex.error, TimeoutError):
            return False
    return targets in (None, "all-linear") or (isinstance(targets, list) and any(
        f".{name}".endswith(f".{target}") for target in targets))


def _target_modules(model, layers):
    """Short names (q_proj) where the adapter has every layer of that kind, else whole names."""
    kinds = {path.rpartition(".")[2] for path in layers}
    linears = [path for path, module in model.named_modules() if hasattr(module, "in_features")]
    if any(path.rpartition(".")[2] in kinds and path not in layers for path in linears):
        return [to_hf(path) for path in layers]
    return sorted({to_hf(path).rpartition(".")[2] for path in layers})
