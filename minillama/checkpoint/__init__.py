"""Checkpoints: LLaMA weights in the forms they are handed around in, recognised by content.

`load_model(path)` and `save_model(folder, model)` are the doors; `names` holds Hugging Face's naming, and
each other module one file form: `meta`, `pth`, `huggingface`, `safetensors`, `llama2c`, `gguf`.
"""

import warnings
from pathlib import Path

from minillama.checkpoint.meta import read_meta, write_meta
from minillama.checkpoint.weights import build_model, check_tensors, from_model

__all__ = ["load_model", "save_model", "open_weights"]


def open_weights(path):
    """The `Weights` at `path`, whatever the form: a folder of Meta's. Checked, mapped, not loaded.

    ValueError if the form is not recognised or the content is damaged; FileNotFoundError if nothing is there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder: give a model folder or a weights file")
    folder = path if path.is_dir() else path.parent
    if (folder / "params.json").is_file():
        return check_tensors(read_meta(folder))
    raise ValueError(f"{path}: no known form of LLaMA weights: expected a folder with params.json (Meta)")


def load_model(path, device="cpu", dtype=None):
    """(Transformer, tokenizer or None) from `path`: weights as stored unless `dtype` is given.

    On the CPU they stay memory-mapped. The tokenizer is the one inside the file or beside it. Oddities that
    were accepted come as warnings. Errors as `open_weights`.
    """
    weights = open_weights(path)
    for note in weights.notes:
        warnings.warn(note, stacklevel=2)
    return build_model(weights, device, dtype), _tokenizer(weights)


def save_model(folder, model, tokenizer_path=None):
    """Write the model in Meta's form: params.json, consolidated.00.pth and a copy of the tokenizer file."""
    write_meta(folder, from_model(model), tokenizer_path)


def _tokenizer(weights):
    if weights.tokenizer is not None:
        return weights.tokenizer
    folder = weights.source if weights.source.is_dir() else weights.source.parent
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    from minillama.tokenizer import load_tokenizer

    return load_tokenizer(path)
