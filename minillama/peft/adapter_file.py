"""The folder of an adapter of any method: in the peft library's form where it has the method (LoRA and its kin, IA3,
prefix, prompt and P-tuning), else in files of the same names with a peft_type that peft refuses (`adapters_package`).

Virtual tokens are saved as they come out of their encoder, which is left behind: what is loaded learns on without it.
"""

from pathlib import Path

import torch

from minillama.checkpoint.names import rows_to_hf, rows_to_meta, to_hf
from minillama.checkpoint.weights import planned_model
from minillama.peft import adapters_package
from minillama.peft.ia3 import WithScale
from minillama.peft.lora_file import CONFIG_FILE, PREFIX, load_lora, read_tensors, save_lora, write_adapter
from minillama.peft.methods import METHODS, add_method
from minillama.peft.p_tuning_v2 import PrefixClassifier
from minillama.system.claim import require_finished
from minillama.system.settings import check_known, read_settings, whole

VIRTUAL = {"prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING", "p-tuning": "P_TUNING"}
READ_AS = {VIRTUAL.get(name, name.upper()): name for name in METHODS} | {"P_TUNING": "prompt"}  # without its encoder
SCORE = "base_model.score.weight"  # peft's name for the head of classes beside a prefix
SCALED = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


def save_adapter(folder, model, base_model=None, empty=False):
    """Write what was added to a Transformer, or a `PrefixClassifier` whole; base_model: a name of the base for the
    config file; empty: as for `save_lora`."""
    model, head = (model.model, model.head) if isinstance(model, PrefixClassifier) else (model, None)
    if not hasattr(model, "method"):
        save_lora(folder, model, base_model, empty)
        return
    name, size = model.method
    fields = SCALED if name == "ia3" else {"num_virtual_tokens" if name in VIRTUAL else "size": size}
    fields = {"peft_type": VIRTUAL.get(name, name.upper()), **fields}
    tensors = {key: _in_order(key, tensor.detach(), model, rows_to_hf) for key, tensor in saved_tensors(model).items()}
    if head is not None:
        fields["task_type"], tensors[SCORE] = "SEQ_CLS", head.weight.detach()
    if name == "adapter":
        fields |= adapters_package.write_tensors(folder, tensors, size, model.config.dim)
    write_adapter(folder, model, tensors, fields, base_model)


def load_adapter(folder, model):
    """Add the adapter in `folder`, of whatever method, to a Transformer. ValueError, before anything is added, for a
    file that is damaged, of another model's shapes, or of a kind that is not known."""
    require_finished(folder)
    name, config = method_of(folder)
    if name is None:
        load_lora(folder, model)
    elif "peft_type" not in config:
        _load(folder, model, name, *adapters_package.read_adapter(folder, config))
    else:
        _load(folder, model, name, config, *read_tensors(Path(folder)))


def load_classifier(folder, model):
    """The `PrefixClassifier` in `folder`, over a Transformer. ValueError where none is, and as `load_adapter`."""
    require_finished(folder)
    (name, config), (tensors, path) = method_of(folder), read_tensors(Path(folder))
    W = tensors.pop(SCORE, torch.empty(0))
    if name != "prefix" or W.dim() != 2 or W.shape[1] != model.config.dim:
        raise ValueError(f"{path}: no prefix with a head of classes over {model.config.dim} numbers ({SCORE} is "
                         f"{tuple(W.shape)}): give the folder of a PrefixClassifier of this base")
    _load(folder, model, name, {**config, "modules_to_save": None}, tensors, path)
    classifier = PrefixClassifier(model, 0, len(W))
    with torch.no_grad():
        classifier.head.weight.copy_(W)
    return classifier


def _load(folder, model, name, config, tensors, path):
    config_path = Path(folder) / CONFIG_FILE
    form = "virtual tokens" if name in VIRTUAL else "IA3" if name == "ia3" else "minillama"
    check_known(config, config_path, f"adapter_config.json of {form}")
    base = model.config
    for field, fitting in (("num_layers", [base.n_layers]), ("token_dim", [base.dim, base.n_kv_heads * base.head_dim])):
        if config.get(field) not in (None, *fitting):
            raise ValueError(f"{config_path}: {field} is {config[field]!r}, this model has {fitting[0]}: it was made "
                             "for another base")
    size = min(whole(config, "num_virtual_tokens" if name in VIRTUAL else "size", config_path, 1), 2**16)  # flags' most
    with torch.device("meta"):
        add_method(planned := planned_model(model.config), name, size)
    wanted, found = ({key: tuple(tensor.shape) for key, tensor in each.items()}
                     for each in (saved_tensors(planned), tensors))
    if found != wanted:
        odd = sorted(dict(found.items() ^ wanted.items()))[0]
        raise ValueError(f"{path}: {odd} is {found.get(odd)}, this model wants {wanted.get(odd)}: the file is damaged, "
                         "or was made for another base")
    add_method(model, name, size)
    with torch.no_grad():
        for key, tensor in saved_tensors(model).items():
            tensor.copy_(_in_order(key, tensors[key], model, rows_to_meta))


def method_of(folder):
    """(name in METHODS, or None for LoRA and its kin and what is not known; settings) of the adapter in `folder`."""
    config = read_settings(Path(folder) / CONFIG_FILE)
    return READ_AS.get(str(config.get("peft_type", adapters_package.kind_of(config)))), config


def saved_tensors(model):
    """{name in the file: tensor} of what was added: views of the parameters, where no encoder stands between."""
    if model.virtual_tokens is not None:
        return {"prompt_embeddings": model.virtual_tokens.flat()}
    if model.method[0] == "ia3":
        return {f"{PREFIX}{to_hf(path)}.ia3_l": layer.scale[None] if layer.of_input else layer.scale[:, None]
                for path, layer in model.named_modules() if isinstance(layer, WithScale)}
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _in_order(key, tensor, model, rows):
    """The tensor with what RoPE turns in Hugging Face's order or in Meta's, as `rows` brings it."""
    name, heads = "layers.0.attention.wk", (model.config.n_heads, model.config.n_kv_heads)
    if key.endswith("k_proj.ia3_l"):
        return rows(name, tensor, *heads)
    if key != "prompt_embeddings" or model.method[0] in ("prompt", "p-tuning"):
        return tensor
    keys_nLW, values_nLW = tensor.view(len(tensor), model.config.n_layers, 2, -1).unbind(2)
    keys_nLW = rows(name, keys_nLW.permute(2, 0, 1), *heads).permute(1, 2, 0)
    return torch.stack([keys_nLW, values_nLW], 2).flatten(1)
