"""What is installed here, what was built, and how large a model this machine could hold."""

import platform

import numpy
import torch

import minillama
from minillama.checkpoint import find_tokenizer, open_weights
from minillama.checkpoint.llama2c import check_llama2c
from minillama.config import PRESETS
from minillama.kernels import built_backends
from minillama.system.memory import GIB, available_bytes, weights_bytes
from minillama.system.settings import collect_verdicts
from minillama.system.terminal import one_line
from minillama.tokenizer import default_backend
from minillama.tokenizer.gguf_vocab import gguf_vocab
from minillama.tokenizer.llama2c_vocab import llama2c_vocab
from minillama.train.chat_template import OWN, template_for


def describe():
    """The text of `python -m minillama info`."""
    free = available_bytes()
    lines = [
        f"minillama {minillama.__version__}",
        f"python {platform.python_version()}, torch {torch.__version__}, numpy {numpy.__version__}, "
        f"{platform.system()} {platform.machine()}",
        f"kernel backends built: {', '.join(built_backends())}",
        f"tokenizer backend: {default_backend()}",
        f"threads: {torch.get_num_threads()}",
        f"devices: {', '.join(devices())}",
        "memory free: " + (f"{free / GIB:.1f} GiB" if free is not None else "unknown"),
        "",
        "weights of the published sizes in GiB, * where they fit into the free memory:",
        f"{'':14}{'fp16':>10}{'int8':>10}{'nf4':>10}",
    ]
    return "\n".join(lines + [_row(name, config, free) for name, config in PRESETS.items() if "b" in name])


def examine_checkpoint(path):
    """(what is at `path`, in few lines: shape, parameters, dtypes, quantization and bits a weight, settings, tokens,
    template, and which commands take it; whether something that the files say is refused). ValueError where nothing
    can be read of it."""
    with collect_verdicts() as verdicts:
        weights, tokenizer, refused = open_weights(path), None, []
        try:
            tokenizer = find_tokenizer(weights)
        except ValueError as error:
            refused = [one_line(str(error))]
    config, few = weights.config, weights.quantization
    kept = [tensor for tensor in weights.tensors.values() if not tensor.layer]
    layers = [tensor.layer() for tensor in weights.tensors.values() if tensor.layer]
    dtypes = sorted({tensor.block.name if tensor.block and tensor.block.numbers > 1 else
                     str(tensor.dtype).removeprefix("torch.") for tensor in kept})
    kept_bytes = sum(tensor.nbytes for tensor in kept)
    few_bytes = sum(buffer.nbytes for layer in layers for name, buffer in layer.named_buffers() if name != "layout")
    size = (kept_bytes + few_bytes) / config.n_parameters()
    shape = ", ".join(f"{name} {getattr(config, name)}" for name in (
        "dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "max_seq_len"))
    lines = [f"{path}: {config.n_parameters():,} parameters in {', '.join(dtypes)}", shape]
    if few:
        count = sum(layer.in_features * layer.out_features for layer in layers)
        settings = "".join(f", {name} {value}" for name, value in few.items() if name != "kind")
        bits = f"{8 * few_bytes / count:.3f} bits a weight"
        lines += [f"quantized: {few['kind']}{settings}: {len(layers)} linear layers, {bits}"]
    lines += [f"all together {8 * size:.2f} bits a weight, {(kept_bytes + few_bytes) / 2**20:,.1f} MiB"]
    for kind in ("obeyed", "ignored"):
        names = sorted(one_line(name) for name, verdict in verdicts if verdict == kind)
        lines += [f"settings {kind}: {', '.join(dict.fromkeys(names))}"] if names else []
    against = [f"{one_line(name)[:80]} {verdict}" for name, verdict in verdicts if verdict not in ("obeyed", "ignored")]
    lines += [f"refused: {what}" for what in against + refused]
    lines += dict.fromkeys([*weights.notes, *getattr(tokenizer, "notes", ())])
    uses = describe_uses(weights, tokenizer, bool(against + refused))
    return "\n".join(lines + describe_tokens(tokenizer) + uses), bool(against + refused)


def describe_tokens(tokenizer):
    """What the files say of the tokens, and which template they bring, in lines."""
    if tokenizer is None:
        return ["tokenizer: none"]

    def named(ids):
        known = [i for i in sorted(ids) if i < tokenizer.vocab_size]
        return ", ".join(f"{tokenizer.id_to_piece(i)!r} ({i})" for i in known) or "none"

    words = [token for token in tokenizer.added.values() if not token.special]
    begin = named([tokenizer.bos_id]) if tokenizer.begins else "no token in front"
    template = {OWN: "the model's own chat_template", None: "none: `chat` asks in question_answer"}
    name = template_for(tokenizer)
    return [f"tokenizer: {tokenizer.vocab_size} pieces",
            f"a text begins with: {begin}; it ends at: {named(tokenizer.end_ids)}",
            f"special tokens: {len(tokenizer.added) - len(words)}, added words of the text: {len(words)}, "
            f"rows without a token: {max(tokenizer.n_rows - tokenizer.vocab_size, 0)}",
            f"template: {template.get(name, name)}"]


def describe_uses(weights, tokenizer, refused):
    """Which commands take these weights, and why not the others, in lines."""
    if refused:
        return ["taken by no command: of the settings above, those refused change what the model reads or computes"]
    no_tokenizer = "" if tokenizer else "no tokenizer: put its tokenizer.model or tokenizer.json beside it"
    few = weights.quantization and f"quantized already, in {weights.quantization['kind']}"
    config = weights.config
    llama2c = tokenizer and _why_not(llama2c_vocab, tokenizer) or _why_not(check_llama2c, config)
    gguf, blank = _why_not(gguf_vocab, tokenizer, config.vocab_size), config.objective == "blank" and "it fills blanks"
    reasons = {"generate": no_tokenizer, "chat, sft": no_tokenizer or blank, "pretrain": few or no_tokenizer,
               "reward": few or no_tokenizer or blank, "quantize": few, "convert --to meta": None,
               "convert --to hf": blank, "convert --to gguf": blank or gguf, "convert --to llama2c": blank or llama2c}
    return [f"{names}: {f'no, {one_line(reason)}' if reason else 'yes'}" for names, reason in reasons.items()]


def _why_not(action, *arguments):
    try:
        return action(*arguments) and None
    except ValueError as error:
        return str(error)


def devices():
    """The devices that torch can use here."""
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda ({torch.cuda.get_device_name()})"]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _row(name, config, free):
    cells = ""
    for kind in ("fp16", "int8", "nf4"):
        needed = weights_bytes(config, kind)
        cells += f"{needed / GIB:8.1f}{' *' if free is not None and needed < free else '  '}"
    return f"{name:14}{cells}"
