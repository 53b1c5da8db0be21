"""What is installed here, what was built, and how large a model this machine could hold."""

import platform

import numpy
import torch

import minillama
from minillama.checkpoint import find_tokenizer, open_weights
from minillama.config import PRESETS
from minillama.kernels import built_backends
from minillama.memory import GIB, available_bytes, weights_bytes
from minillama.tokenizer import default_backend


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


def describe_checkpoint(path):
    """What is at `path`, in few lines: shape, parameters, dtypes, quantization and bits a weight, tokenizer."""
    weights = open_weights(path)
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
    tokenizer = find_tokenizer(weights)
    lines += [f"all together {8 * size:.2f} bits a weight, {(kept_bytes + few_bytes) / 2**20:,.1f} MiB",
              f"tokenizer: {f'{tokenizer.vocab_size} pieces' if tokenizer else 'none'}"]
    return "\n".join(lines)


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
