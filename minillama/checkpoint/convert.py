"""From any form that is read to any that is written, a tensor at a time, with the tokenizer."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from minillama.checkpoint import find_tokenizer, open_weights, save_model
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.llama2c import write_llama2c
from minillama.checkpoint.meta import write_meta
from minillama.checkpoint.quantized import quantize_weights, write_quantized
from minillama.system.files import atomic_folder, atomic_write, follow_link, require_absent, require_regular
from minillama.system.settings import write_settings
from minillama.system.terminal import tqdm
from minillama.tokenizer import SentencePieceTokenizer
from minillama.tokenizer.llama2c_vocab import llama2c_vocab
from minillama.tokenizer.token_settings import added_tokens_json
from minillama.tokenizer.tokenizer_json import sentencepiece_json, tokenizer_json
from minillama.tokenizer.wordpiece import WordPieceTokenizer, wordpiece_json

FORMS = ("meta", "hf", "llama2c", "gguf")
HEAD_FILE = "reward_head.pth"  # beside the body of a reward model (`rlhf.reward_file`)
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}


def convert(source, target, to, dtype=None, progress=False):
    """Write the model at `source`, in any form, as `target`.

    to: "meta" or "hf" (a folder), "llama2c" (a .bin, with its tok<V>.bin beside it) or "gguf" (a file, the tokenizer
    inside). dtype: "float32", "float16", "bfloat16"; for gguf also "q8_0", for llama2c "int8"; None keeps each tensor
    as it is stored (llama2c has fp32 only), so that a conversion and its reverse give the same bits. The target appears
    whole, by one step at the end. Returns whether there was a tokenizer. FileExistsError if the target is there,
    ValueError if its form cannot say what the model needs.
    """
    target = Path(target)
    if to not in FORMS:
        raise ValueError(f"form {to!r} is not written here: choose one of {', '.join(FORMS)}")
    require_absent(target)
    quantized = {"gguf": "q8_0", "llama2c": "int8"}.get(to)
    if dtype not in (None, quantized, *DTYPES):
        allowed = [*DTYPES, *([quantized] if quantized else [])]
        raise ValueError(f"dtype {dtype!r} cannot be written as {to}: choose one of {', '.join(allowed)}")
    weights = open_weights(source)
    tokenizer = find_tokenizer(weights)
    if to != "meta" and weights.config.objective == "blank":
        raise ValueError(f"{source} fills blanks, which {to} cannot say: whoever reads it would take it for causal")
    weights = _in_dtype(weights, DTYPES.get(dtype), progress)
    if to in ("meta", "hf"):
        with atomic_folder(target) as folder:
            write_tokenizer(folder, tokenizer, as_json=to == "hf")
            (write_meta if to == "meta" else write_huggingface)(folder, weights)
    elif to == "gguf":
        write_gguf_llama(target, weights, tokenizer, "Q8_0" if dtype == quantized else None)
    else:
        if tokenizer is not None and tokenizer.vocab_size != weights.config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
                             f"{weights.config.vocab_size} rows for them: llama2.c reads one for each row")
        if tokenizer is not None:
            _write_vocab(follow_link(target).with_name(f"tok{tokenizer.vocab_size}.bin"), tokenizer)
        write_llama2c(target, weights, 2 if dtype == quantized else 0)  # last: with it the work is done
    return tokenizer is not None


def _write_vocab(path, tokenizer):
    """tok<V>.bin beside a llama2.c model, which several of the same tokenizer may share."""
    content = llama2c_vocab(tokenizer)
    if not path.exists():
        with atomic_write(path) as file:
            file.write(content)
    elif require_regular(path).read_bytes() != content:
        raise ValueError(f"{str(path)!r} is there and holds another vocabulary, which would have to give way: choose "
                         "another folder")


def quantize(source, target, kind, dtype=None, progress=False, **settings):
    """Write the model at `source`, in any form, as a quantized folder `target` (`checkpoint.quantized`).

    kind: "nf4" (settings block_size, double_quantization, fit_scales) or "int8" (threshold); head and backend as
    `quantize_weights` takes them; dtype: "float32", "float16" or "bfloat16" for what is not quantized, None as stored.
    In memory is one layer at a time. The folder appears whole or not at all; FileExistsError if it is there, ValueError
    if the source is quantized.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype {dtype!r} is not known: choose one of {', '.join(DTYPES)}")
    weights = open_weights(source)
    tokenizer = find_tokenizer(weights)
    quantize_weights(weights, kind, **settings)  # refuses before there is a bar
    with atomic_folder(target) as folder:
        quantized = quantize_weights(_in_dtype(weights, None, progress), kind, **settings)
        kept = _in_dtype(weights, DTYPES.get(dtype), False).tensors
        quantized.tensors.update((name, kept[name]) for name, tensor in quantized.tensors.items() if not tensor.layer)
        write_tokenizer(folder, tokenizer, as_json=False)
        if (head := Path(source) / HEAD_FILE).is_file():
            shutil.copyfile(head, folder / HEAD_FILE)
        write_quantized(folder, quantized)


def _in_dtype(weights, dtype, progress):
    """The same weights in another dtype, and with a bar that moves when a tensor is read."""
    bar = tqdm(total=len(weights.tensors), unit="tensor", disable=not progress)

    def changed(stored):
        def read():
            bar.update()
            return stored.read() if dtype is None else stored.read().to(dtype)

        return replace(stored, dtype=dtype or stored.dtype, read=read, made=stored.made or dtype is not None,
                       parts=None)

    return replace(weights, tensors={name: changed(stored) for name, stored in weights.tensors.items()})


def save_with_tokenizer(folder, model, tokenizer):
    """Write a model in Meta's form with its tokenizer; the folder is a model from the moment when both are whole."""
    (Path(folder) / "params.json").unlink(missing_ok=True)
    write_tokenizer(Path(folder), tokenizer, as_json=False)
    save_model(folder, model)


def write_tokenizer(folder, tokenizer, as_json):
    """tokenizer.model, and tokenizer.json where there is no .model or Hugging Face's form is wanted; beside it what is
    to be known of its tokens, as `token_settings` reads it and transformers does."""
    if tokenizer is None:
        return
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    has_model = is_sentencepiece or tokenizer.ids_are_ranks and not as_json
    if has_model:
        tokenizer.save(folder / "tokenizer.model")
    if as_json or not has_model:
        writers = {SentencePieceTokenizer: sentencepiece_json, WordPieceTokenizer: wordpiece_json}
        content = writers.get(type(tokenizer), tokenizer_json)(tokenizer)
        if content is not None:
            with atomic_write(folder / "tokenizer.json") as file:
                file.write(content)
    write_settings(folder / "tokenizer_config.json", tokenizer_config(tokenizer))
    ends = sorted(tokenizer.further_ends | {tokenizer.eos_id} - {None})
    if as_json or tokenizer.further_ends:
        write_settings(folder / "generation_config.json", {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends})


def tokenizer_config(tokenizer):
    """The content of tokenizer_config.json."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id,
           "pad_token": tokenizer.pad_id}
    settings = {name: tokenizer.id_to_piece(index) for name, index in ids.items() if index is not None}
    prefix = {"first": {"legacy": False}, "always": {"legacy": True}, "never": {"add_prefix_space": False}}
    own = prefix.get(tokenizer.prefix)
    settings |= {"tokenizer_class": "LlamaTokenizer", **own} if own else {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {"add_bos_token": tokenizer.begins, "add_eos_token": tokenizer.add_eos,
                 "clean_up_tokenization_spaces": False}
    settings["added_tokens_decoder"] = {str(entry.pop("id")): entry for entry in added_tokens_json(tokenizer)}
    return settings | ({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})


def write_chat_template(folder, program):
    """Keep the template that an adapter is tuned in beside it, as peft's users do."""
    if program:
        with atomic_write(Path(folder) / "chat_template.jinja", "w") as file:
            file.write(program)
