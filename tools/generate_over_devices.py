"""A text from a model that no single device holds: `run.py generate --device-map auto --model PATH --prompt TEXT`.

Whole layers are placed by free memory (`checkpoint.placement`): on GPUs first, then the CPU, and what finds no room is
read from disk for each token. `--room cuda:0=20 --room cpu=8` says by hand how many GB of weights each may take.
"""

import argparse
import sys
from itertools import groupby

import torch

from minillama.backends import use_kernels
from minillama.checkpoint import find_tokenizer, open_weights
from minillama.checkpoint.placement import load_placed
from minillama.checkpoint.weights import common_dtype
from minillama.cli import flags
from minillama.config_checks import MOST, SEEDS, Range
from minillama.generate import generate_text
from minillama.sampling import Sampling
from minillama.system.memory import available_bytes, require_device
from minillama.train.blank_infilling import require_objective

SPARE = 0.2  # of what is free: for activations, keys and values
GB = 10**9


def find_room():
    """[(device, bytes that weights may take)] of this machine: GPUs, then the CPU."""
    devices = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]
    return [(device, int((1 - SPARE) * (available_bytes(device) or 0))) for device in devices]


def parse_room(text):
    """"cuda:0=20" -> ("cuda:0", 20 GB)."""
    device, _, size = text.rpartition("=")
    try:
        require_device(device)
        room = float(size) * GB
    except (RuntimeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write DEVICE=GB, as in cpu=8 ({str(error).splitlines()[0]})"
                                         ) from None
    if not 0 <= room < MOST * GB:
        raise argparse.ArgumentTypeError(f"{text!r}: the room must be 0 or more GB")
    return device, int(room)


def describe(placed):
    """{layer: device} as one line: runs of layers on one device."""
    runs = [(device, [layer for layer, _ in run]) for device, run in groupby(placed.items(), key=lambda pair: pair[1])]
    return ", ".join(f"{layers[0]} to {layers[-1]} on {device}" if len(layers) > 1 else f"{layers[0]} on {device}"
                     for device, layers in runs)


def parse(argv):
    """The flags of `generate` that go with placement."""
    parser = argparse.ArgumentParser(prog="run.py generate", description=__doc__.split("\n")[0])
    parser.add_argument("--device-map", choices=("auto",), required=True, help="by free memory, or by --room")
    parser.add_argument("--room", type=parse_room, action="append", metavar="DEVICE=GB", help="in the order of use")
    parser.add_argument("--model", required=True, metavar="PATH", help="a model folder or file, not quantized")
    parser.add_argument("--tokenizer", metavar="T", help="needed where the model brings none")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="the text to continue; it is printed first")
    flags.add_number(parser, "--max-new-tokens", Range(0, MOST), 256)
    flags.add_number(parser, "--seed", Range(0, SEEDS), 0)
    flags.add_fields(parser, Sampling)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    return parser, parser.parse_args(argv)


def main(argv=None):
    parser, chosen = parse(argv)
    try:
        weights = open_weights(chosen.model)
        tokenizer = find_tokenizer(weights, chosen.tokenizer)
        if tokenizer is None:
            raise ValueError(f"{chosen.model} brings no tokenizer: give --tokenizer")
        require_objective(weights, tokenizer, ("causal",))
        dtype = getattr(torch, chosen.dtype) if chosen.dtype else common_dtype(weights)
        model, placed = load_placed(weights, chosen.room or find_room(), dtype)
        print(describe(placed), file=sys.stderr)
        text = generate_text(use_kernels(model, "torch"), tokenizer, chosen.prompt, chosen.max_new_tokens,
                             flags.from_flags(Sampling, chosen), seed=chosen.seed)
        first = next(text, "")  # a prompt that is too long is refused before it is printed
    except (ValueError, OSError) as error:
        parser.exit(2, f"minillama: error: {error}\n")
    print(chosen.prompt + first, end="", flush=True)
    for piece in text:
        print(piece, end="", flush=True)


if __name__ == "__main__":
    main()
