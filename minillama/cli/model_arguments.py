"""How a command opens the model that it is given: all that can be refused is refused before a weight is loaded."""

import sys

import torch

from minillama.backends import functions
from minillama.checkpoint import find_tokenizer, load_model, open_weights
from minillama.checkpoint.weights import common_dtype
from minillama.peft.lora_file import learned_over, load_lora
from minillama.quant.quantize_linears import quantization_of
from minillama.system.memory import require_memory, weights_bytes
from minillama.tokenizer import load_tokenizer
from minillama.transformer import Transformer


def opened(arguments, whole=False):
    """(weights, still to be read, of --model; tokenizer; kind and settings of the quantization to come: of --load-4bit
    or --load-8bit, or as --adapter was learned over; what `learned_over` says of that).

    whole: the command changes or writes all weights; ValueError where they are quantized. Also where it brings no
    tokenizer, does not fit into memory, or --device, --kernels or --adapter name what is not there.
    """
    functions(getattr(arguments, "kernels", "torch"))
    weights, path = open_weights(arguments.model), arguments.model
    held = weights.quantization["kind"] if weights.quantization else None
    asked = [kind for flag, kind in (("load_4bit", "nf4"), ("load_8bit", "int8")) if getattr(arguments, flag, False)]
    kind, settings = asked[0] if asked else held, {}
    told = learned_over(arguments.adapter) if getattr(arguments, "adapter", None) and not whole else None
    if told and told[1] and not held and kind in (None, told[1]["kind"]):
        kind = told[1]["kind"]
        settings = {name: value for name, value in told[1].items() if name not in ("kind", "crc32")}
        print(f"{arguments.adapter} was learned over {told[0]} in {kind}: {path} is loaded so", file=sys.stderr)
    if held and held != kind:
        raise ValueError(f"{path} is quantized already, in {held}: leave the flag out, or give its original")
    if kind and whole:
        raise ValueError(f"{path} in {kind} cannot change as a whole, its steps swallow small changes: attach an "
                         "adapter to it (--method lora), or give its original, or `convert` it back to meta first")
    if getattr(arguments, "adapter", None):
        load_lora(arguments.adapter, shape_of(weights))
    given = getattr(arguments, "tokenizer", None)
    tokenizer = load_tokenizer(given) if given else find_tokenizer(weights)
    if tokenizer is None:
        beside = " or give --tokenizer" if hasattr(arguments, "tokenizer") else ""
        raise ValueError(f"{path} brings no tokenizer: put its tokenizer.model or tokenizer.json beside it{beside}")
    size = (getattr(torch, arguments.dtype) if arguments.dtype else common_dtype(weights)).itemsize
    needed = weights_bytes(weights.config, kind, size) if kind else weights.config.n_parameters() * size
    print(require_memory(needed, f"{path}, weights", arguments.device), file=sys.stderr)
    return weights, tokenizer, None if held else kind, settings, told


def add_template(command, otherwise):
    """--template NAME"""
    from minillama.train.templates import TEMPLATES

    command.add_argument("--template", choices=[*TEMPLATES, "own"], help="own: the chat_template in the model's files "
                         f"(default: the one that the model was tuned in, where its files name it, else {otherwise})")


def take_template(arguments, tokenizer, otherwise):
    """The name of the template to use, told on stderr and noted in `arguments`: --template's, or the adapter's, or the
    model's, or `otherwise`."""
    from minillama.tokenizer.token_settings import read_chat_template
    from minillama.train.chat_template import chosen_template

    given = getattr(arguments, "adapter", None)
    tokenizer.chat_template = given and read_chat_template(given) or tokenizer.chat_template
    arguments.template, told = chosen_template(arguments.template, tokenizer, otherwise, given or arguments.model)
    print(told, file=sys.stderr)
    return arguments.template


def shape_of(weights):
    """A model of that shape without numbers, to try on it what the real one is to get."""
    with torch.device("meta"):
        return Transformer(weights.config)


def load_from_args(arguments, whole=False, found=None):
    """(model, tokenizer) of --model. found: what `opened` gave, with the same arguments."""
    _, tokenizer, kind, settings, told = found or opened(arguments, whole)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    model = load_model(arguments.model, arguments.device, dtype, kind, **settings)[0]
    if told and (has := quantization_of(model)) != told[1]:
        print(f"{arguments.adapter} was learned over {told[0]} ({in_words(told[1])}), not over this base "
              f"({in_words(has)}): expect other answers, or give --model {told[0]}", file=sys.stderr)
    return model, tokenizer


def in_words(quantization):
    """What `quantization_of` gives, to be read."""
    return ", ".join(f"{name} {value}" for name, value in quantization.items()) if quantization else "not quantized"
