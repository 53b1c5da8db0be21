"""What is installed here, what was built, and how large a model this machine could hold."""

import platform

import numpy
import torch

import minillama
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
