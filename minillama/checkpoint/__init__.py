"""Checkpoints: LLaMA weights in the forms they are handed around in, recognised by content.

`load_model(path)` and `save_model(folder, model)` are the doors. Every reader gives `weights`: read it first. Forms of
models: `meta`, `huggingface`, `llama2c`, `gguf_llama`, `quantized`; their containers: `pth`, `safetensors`, `gguf`.
"""

import warnings
from dataclasses import replace
from pathlib import Path

from minillama.checkpoint.gguf import MAGIC as GGUF_MAGIC
from minillama.checkpoint.gguf_llama import read_gguf_llama
from minillama.checkpoint.huggingface import read_huggingface
from minillama.checkpoint.llama2c import looks_like_llama2c, read_llama2c
from minillama.checkpoint.meta import read_meta, write_meta
from minillama.checkpoint.quantized import TENSOR_FILE, quantize_weights, read_quantized
from minillama.checkpoint.weights import build_model, check_tensors, from_model
from minillama.quant.gguf_linear import keep_blocks
from minillama.system.claim import require_finished
from minillama.system.files import require_regular
from minillama.tokenizer import load_tokenizer

FLOOR = 3  # imports from its own floor or a lower one
__all__ = ["find_tokenizer", "load_model", "open_weights", "save_model"]


def open_weights(path):
    """The `Weights` at `path`, whatever the form: a folder of Meta's, Hugging Face's or `quantize`'s, a GGUF or
    llama2.c file.

    ValueError if the form is not recognised or the content is damaged; FileNotFoundError if nothing is there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder: give a model folder or a weights file")
    return check_tensors(_reader(path)(path))


def _reader(path):
    if path.is_dir():
        require_finished(path)
        for name, read in ((TENSOR_FILE, read_quantized), ("consolidated.*.pth", read_meta),
                           ("config.json", read_huggingface), ("params.json", read_meta)):  # Mistral has both
            if any(path.glob(name)):
                return read
        if (path / "adapter_config.json").exists():
            raise ValueError(f"{path} is an adapter: `merge` it into its base first, and give the whole model")
        raise ValueError(f"{path}: neither params.json (Meta) nor config.json (Hugging Face) is in this folder: "
                         "give the folder that holds one, or a .bin or .gguf file")
    with open(require_regular(path), "rb") as file:
        if file.read(4) == GGUF_MAGIC:
            return read_gguf_llama
    if looks_like_llama2c(path):
        return read_llama2c
    raise ValueError(f"{path}: no known form of LLaMA weights: give a model folder, a .gguf file, or a llama2.c .bin "
                     "file that is whole")


def load_model(path, device="cpu", dtype=None, quantize=None, **settings):
    """(Transformer, tokenizer or None) from `path`: weights as stored unless `dtype` is given.

    quantize: "nf4" or "int8" quantizes its linear layers, one after another, with the settings of
    `quantized.quantize_weights`; ValueError where they are already. On the CPU they stay memory-mapped. "gguf": those
    in a GGUF file's blocks stay so (`gguf_linear`). The tokenizer is the one inside the file or beside it. Oddities
    that were accepted come as warnings. Errors as `open_weights`.
    """
    weights = open_weights(path)
    tokenizer = find_tokenizer(weights)
    for note in dict.fromkeys([*weights.notes, *getattr(tokenizer, "notes", ())]):
        warnings.warn(note, stacklevel=2)
    if quantize:
        weights = keep_blocks(weights) if quantize == "gguf" else quantize_weights(weights, quantize, **settings)
    return build_model(weights, device, dtype, spend=True), tokenizer


def save_model(folder, model, tokenizer_path=None):
    """Write the model in Meta's form: consolidated.00.pth, a copy of the tokenizer file and, last, params.json."""
    write_meta(folder, from_model(model), tokenizer_path)


def find_tokenizer(weights, given=None):
    """The tokenizer `given` by its path, else the one inside the file, or in the folder, or, if its vocabulary has the
    model's size, beside a single file or one folder up, where Meta's download puts it; None if there is none. It knows
    the model's rows; and by its tokens a model is known whose files do not say that it fills blanks."""
    tokenizer = load_tokenizer(given) if given else weights.tokenizer or _tokenizer_beside(weights)
    if tokenizer is not None:
        tokenizer.n_rows = weights.config.vocab_size
        if "<|startofpiece|>" in tokenizer.special_tokens:
            weights.config = replace(weights.config, objective="blank")
    return tokenizer


def _tokenizer_beside(weights):
    names = ["tokenizer.model", "tokenizer.json", "tokenizer.bin", f"tok{weights.config.vocab_size}.bin"]
    inside = [weights.source / name for name in names if weights.source.is_dir() and (weights.source / name).is_file()]
    if inside:
        return load_tokenizer(inside[0])
    for path in (weights.source.parent / name for name in names):
        if path.is_file() and (tokenizer := load_tokenizer(path)).vocab_size == weights.config.vocab_size:
            return tokenizer
    return None
