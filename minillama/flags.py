"""Flags of the command line: made from the fields of frozen dataclasses, and turned back into them."""

import argparse
import dataclasses
import types
import typing


def command(commands, name, run, help):
    """A sub-command whose arguments `run` will be called with."""
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run)
    return parser


def add_fields(parser, config):
    """One flag for each field of a frozen dataclass: its name, its type, its default."""
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind, flag = kinds[field.name], "--" + field.name.replace("_", "-")
        if isinstance(kind, types.UnionType):  # `int | None`
            kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default)
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=f"default: {field.default}")


def from_flags(config, arguments):
    """The dataclass back from the flags of `add_fields`."""
    return config(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(config)})


def add_kernels_flag(parser, default="torch"):
    """--kernels, where the reader may choose what computes attention, RoPE and NF4 (`backends.use_kernels`)."""
    parser.add_argument("--kernels", default=default, metavar="NAME",
                        help="reference, torch, cpu, simt or cuda (default: %(default)s)")


def add_bits(parser):
    """--load-8bit and --load-4bit, for commands that can run a model in few bits."""
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--load-8bit", action="store_true", help="linear layers in int8 (LLM.int8)")
    bits.add_argument("--load-4bit", action="store_true", help="linear layers in NF4 with double quantization")


def add_device(parser):
    """--device and --dtype, for every command that runs a model."""
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")


def add_resume(parser):
    """--resume, for every command whose run can be gone on with."""
    parser.add_argument("--resume", action="store_true", help="go on where a stopped run in --out left off, or make a "
                        "finished one longer")


def facts(arguments, *names):
    """{name: value} of flags that a resumed run must share."""
    return {name: getattr(arguments, name) for name in names}
