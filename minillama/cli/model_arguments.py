"""How a command opens the model that it is given: all that can be refused is refused before a weight is loaded."""

import contextlib
import sys
from pathlib import Path

import torch

from minillama.backends import BACKENDS, choose_operators
from minillama.checkpoint import find_tokenizer, load_model, open_weights
from minillama.checkpoint.weights import common_dtype, planned_model
from minillama.kernels import require
from minillama.peft.adapter_file import load_adapter, method_of
from minillama.peft.lora_file import CONFIG_FILE, learned_over
from minillama.peft.methods import merge_method, require_mergeable
from minillama.quant.gguf_linear import bytes_held
from minillama.quant.quantize_linears import KINDS, quantization_of
from minillama.simt.compiler import NotBuilt, require_compiler
from minillama.system.memory import require_memory, weights_bytes
from minillama.system.settings import read_settings
from minillama.tokenizer.token_settings import read_chat_template
from minillama.train.blank_infilling import require_objective
from minillama.train.chat_template import chosen_template
from minillama.train.resume import load_training_state
from minillama.train.templates import TEMPLATES


def open_model(arguments, whole=False):
    """(weights, still to be read, of --model; tokenizer; kind and settings of the quantization to come: of --load-4bit
    or --load-8bit, or as --adapter was learned over, or "gguf"; what `learned_over` says of that).

    whole: the command changes or writes all weights; ValueError where they are quantized. Also where it brings no
    tokenizer, does not fit into memory, or --device, --kernels or --adapter name what is not there.
    """
    choose_kernels(arguments)
    path = take_base(arguments)
    weights = open_weights(path)
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
        load_adapter(arguments.adapter, planned_model(weights.config))
    tokenizer = find_tokenizer(weights, getattr(arguments, "tokenizer", None))
    if tokenizer is None:
        beside = " or give --tokenizer" if hasattr(arguments, "tokenizer") else ""
        raise ValueError(f"{path} brings no tokenizer: put its tokenizer.model or tokenizer.json beside it{beside}")
    require_objective(weights, tokenizer, getattr(arguments, "objectives", ("causal",)))
    for adapter in arguments.merged:
        load_adapter(adapter, planned_model(weights.config))
        tokenizer.chat_template = read_chat_template(adapter) or tokenizer.chat_template
    size = (getattr(torch, arguments.dtype) if arguments.dtype else common_dtype(weights)).itemsize
    generates = getattr(arguments, "kernels", None) == "cpu" and hasattr(arguments, "cache_dtype")
    kind = kind or ("gguf" if generates and not arguments.adapter and not arguments.merged else None)
    needed = weights_bytes(weights.config, kind, size) if kind in KINDS else bytes_held(weights, size, kind == "gguf")
    cut = 1 if arguments.device == "cpu" else getattr(arguments, "tensor_parallel", 1)  # one memory holds all parts
    print(require_memory(needed // cut, f"{path}, weights", arguments.device), file=sys.stderr)
    return weights, tokenizer, None if held else kind, settings, told


def take_base(arguments):
    """The weights under --model, which may be an adapter's folder: then its own config names them. A command with an
    --adapter, not given, gets it there; others read the model with it merged (`arguments.merged`)."""
    path, adapters = arguments.model, []
    while (Path(path) / CONFIG_FILE).is_file():
        adapters.insert(0, str(path))
        base = read_settings(Path(path) / CONFIG_FILE).get("base_model_name_or_path")
        if not isinstance(base, str) or not Path(base).exists() or base in adapters:
            raise ValueError(f"{path} is an adapter, and its base {base!r} is not here: give --model its base, and "
                             f"--adapter {path} where the command has it, or `merge` the two first")
        path = base
    if adapters and getattr(arguments, "adapter", "") is None:
        arguments.adapter = adapters.pop()
    for adapter in adapters:
        require_mergeable(method_of(adapter)[0])
        if (learned_over(adapter) or (None, None))[1]:
            raise ValueError(f"{adapter} was learned over a quantized base: make one model of the two first, by "
                             f"`merge`, and give that")
    arguments.base, arguments.merged = path, adapters
    return path


def choose_kernels(arguments):
    """Check --kernels, and put the name of a backend in the place of auto: of the one that the run which is resumed was
    begun with, else of the fastest that is built here. A line on stderr says which, and why."""
    if getattr(arguments, "kernels", None) == "auto":
        begun = read_backend_of_run(arguments.out) if getattr(arguments, "resume", False) else None
        why = f"the run in {arguments.out} was begun with them" if begun else None
        arguments.kernels, why = (begun, why) if begun else choose_fastest(getattr(arguments, "device", "cpu"))
        print(f"kernels: {arguments.kernels} ({why})", file=sys.stderr)
    choose_operators(getattr(arguments, "kernels", "torch"))


def choose_fastest(device):
    """(name of a backend, why it is taken) for models on that device."""
    if torch.device(device).type != "cpu":
        return "torch", f"PyTorch's own on {device}"
    try:
        require("cpu")
        return "cpu", "compiled for CPUs"
    except NotBuilt as missing:
        told = f"{missing}; without them a text takes about twice as long"  # docs/speed.md
    try:
        require_compiler(linux_only=False)
    except NotBuilt as missing:
        told += f", and {missing}"
    return "torch", told


def read_backend_of_run(folder):
    """The backend with which the run in `folder` was begun; None where its state does not tell, or is damaged: those
    who resume it say so."""
    for path in (Path(folder) / name for name in ("training_state.pt", "ppo_state.pt")):
        if path.exists():
            with contextlib.suppress(ValueError, AttributeError):
                name = load_training_state(path).get("signature").get("kernels")
                return BACKENDS[BACKENDS.index(name)] if name in BACKENDS else None  # one object: the same pickle
    return None


def add_template(command, otherwise):
    """--template NAME"""
    command.add_argument("--template", choices=[*TEMPLATES, "own"], help="own: the chat_template in the model's files "
                         f"(default: the one that the model was tuned in, where its files name it, else {otherwise})")


def take_template(arguments, tokenizer, otherwise):
    """The name of the template to use, told on stderr and noted in `arguments`: --template's, or the adapter's, or the
    model's, or `otherwise`."""
    given = getattr(arguments, "adapter", None)
    tokenizer.chat_template = given and read_chat_template(given) or tokenizer.chat_template
    arguments.template, told = chosen_template(arguments.template, tokenizer, otherwise, given or arguments.model)
    print(told, file=sys.stderr)
    return arguments.template


def load_from_args(arguments, whole=False, found=None):
    """(model, tokenizer) of --model. found: what `open_model` gave, with the same arguments."""
    _, tokenizer, kind, settings, told = found or open_model(arguments, whole)
    if kind == "nf4" and getattr(arguments, "kernels", None) == "cpu":
        settings = {**settings, "backend": "cpu"}  # the same bytes, sooner
    dtype = getattr(torch, arguments.dtype or "", None)
    model = load_model(arguments.base, arguments.device, dtype, kind, **settings)[0]
    for adapter in arguments.merged:
        load_adapter(adapter, model)
        merge_method(model)
        model.requires_grad_()  # which adding the adapter froze: it is a plain model again
    if told and (has := quantization_of(model)) != told[1]:
        print(f"{arguments.adapter} was learned over {told[0]} ({in_words(told[1])}), not over this base "
              f"({in_words(has)}): expect other answers, or give --model {told[0]}", file=sys.stderr)
    return model, tokenizer


def in_words(quantization):
    """What `quantization_of` gives, to be read."""
    return ", ".join(f"{name} {value}" for name, value in quantization.items()) if quantization else "not quantized"
