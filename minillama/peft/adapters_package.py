"""Adapters in the files of the `adapters` package (AdapterHub, arXiv 2311.11077), both ways.

What it calls DoubleSeqBnConfig is our adapter in series, number for number: adapter_config.json says the kind, and
pytorch_adapter.bin holds the tensors under Hugging Face's names. Its parallel adapter reads the stream before the norm
and ours behind it, as the layer beside it does: the same numbers are another model there, so that one is refused.
"""

import re
from pathlib import Path

import torch

from minillama.checkpoint.pth import read_pth
from minillama.peft.lora_file import CONFIG_FILE
from minillama.system.files import atomic_write
from minillama.system.settings import number, whole

TENSOR_FILE = "pytorch_adapter.bin"
PLACES = {"attention.wo": "attention_adapters", "feed_forward.w2": "output_adapters"}
PARTS = {"down": "adapter_down.0", "up": "adapter_up"}
SERIES = {"mh_adapter": True, "output_adapter": True, "is_parallel": False, "non_linearity": "relu", "scaling": 1.0,
          "original_ln_before": False, "ln_before": False, "ln_after": False, "residual_before_ln": True,
          "adapter_residual_before_ln": False, "use_gating": False, "phm_layer": False, "inv_adapter": None,
          "leave_out": [], "cross_adapter": False}  # a bottleneck of two matrices behind both parts of every block
NAME = re.compile(r"(?:model\.)?layers\.(\d+)\.(\w+)\.adapters\.[^.]+\.(adapter_down\.0|adapter_up)\.(weight|bias)")


def write_tensors(folder, tensors, m, D, name="minillama"):
    """Write {our name: tensor} of an adapter in series, of inner width m in a model of width D, as the package
    saves one of that name; return what its adapter_config.json is to say besides our fields, which it does not read.

    layers.0.attention.wo.down.weight becomes model.layers.0.attention_adapters.adapters.NAME.adapter_down.0.weight.
    """
    renamed = {}
    for key, tensor in tensors.items():
        layer, place, part, kind = re.fullmatch(r"layers\.(\d+)\.(.+)\.(down|up)\.(weight|bias)", key).groups()
        renamed[f"model.layers.{layer}.{PLACES[place]}.adapters.{name}.{PARTS[part]}.{kind}"] = tensor.contiguous()
    with atomic_write(Path(folder) / TENSOR_FILE) as file:
        torch.save(renamed, file)
    factor = D // m if D % m == 0 else D / (m + 0.5)  # its m is the whole part of D / factor
    return {"config": {**SERIES, "original_ln_after": True, "reduction_factor": factor}, "hidden_size": D, "name": name,
            "model_class": "LlamaForCausalLM", "model_name": "", "model_type": "llama", "version": "adapters.1.3.0"}


def kind_of(config):
    """"ADAPTER" where the settings of an adapter_config.json are those of a bottleneck of the package's, else None."""
    fields = config.get("config")
    return "ADAPTER" if isinstance(fields, dict) and "reduction_factor" in fields else None


def read_adapter(folder, config):
    """({"size": inner width m}, {our name: tensor}, their file) of an adapter in series that the package saved.

    config: what its adapter_config.json holds. ValueError for another kind, with the field that makes it one; for names
    that no such adapter has; for numbers that are no weights.
    """
    config_path, path, fields = Path(folder) / CONFIG_FILE, Path(folder) / TENSOR_FILE, config["config"]
    for field, wanted in SERIES.items():
        if fields.get(field, wanted) != wanted:
            raise ValueError(f"{config_path}: {field} is {fields[field]!r}, and only {wanted!r} is read: adapters in "
                             "series with relu (the package's DoubleSeqBnConfig)")
    if not path.is_file():
        raise ValueError(f"{folder}: no {TENSOR_FILE} is beside {CONFIG_FILE}: fetch it too")
    places, parts = ({word: ours for ours, word in table.items()} for table in (PLACES, PARTS))
    tensors = {}
    for key, tensor in read_pth(path).items():
        found = NAME.fullmatch(key)
        if found is None or found[2] not in places:
            raise ValueError(f"{path}: {key[:80]!r} is no tensor of an adapter behind attention or feed-forward layers")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise ValueError(f"{path}: {key[:80]} holds NaN, an infinite number or whole numbers: train it again")
        layer, place, part, kind = found.groups()
        tensors[f"layers.{layer}.{places[place]}.{parts[part]}.{kind}"] = tensor
    factor = max(1.0, number(fields, "reduction_factor", config_path))
    return {"size": max(1, int(whole(config, "hidden_size", config_path) // factor))}, tensors, path
