"""Flags of the command line: made from the fields of frozen dataclasses, and turned back into them."""

import argparse
import dataclasses
import re
import shlex
import types
import typing

from minillama.config_checks import check


def command(commands, name, run, help, **more):
    """A sub-command whose arguments, and `more` that no flag sets, `run` will be called with."""
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run, **more)
    return parser


def actions(commands, name, help):
    """A command of several actions, as `kernels verify`: what `command` then takes for each of them."""
    parser = commands.add_parser(name, help=help, description=help)
    return parser.add_subparsers(required=True, metavar="ACTION")


def add_fields(parser, config, **helps):
    """One flag for each field of a frozen dataclass: its name, its type, its default; or for those named alone, each
    with the words that explain it."""
    kinds = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if helps and field.name not in helps:
            continue
        kind, flag = kinds[field.name], as_flag(field.name)
        if isinstance(kind, types.UnionType):  # `int | None`
            kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        else:
            options = {"type": parser_of(flag, kind, field.metadata.get("allowed"))}
        words = [helps[field.name]] if helps else []
        words += [] if kind is bool else ["default: %(default)s"]
        parser.add_argument(flag, default=field.default, **options, help="; ".join(words) or None)


def add_number(parser, flag, allowed, default=None, kind=int, help="", **options):
    """A flag for a number that is no field of a config, of type `kind` and within an `allowed` Range."""
    beside = "" if default is None else " (default: %(default)s)"
    parser.add_argument(flag, type=parser_of(flag, kind, allowed), default=default, metavar="N", help=help + beside,
                        **options)


def parser_of(flag, kind, allowed):
    """A function from the text of a flag to its value, held against what is `allowed` (`config_checks.check`)."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = text
        try:
            check(flag, value, kind, allowed)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return parse


def from_flags(config, arguments):
    """The dataclass back from the flags of `add_fields`."""
    return config(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(config)})


def spelled_as_flags(message, arguments):
    """A message with the names of settings as the command line spells them: batch_size -> --batch-size."""
    return re.sub(r"(?<![\w/.'\"-])\w+_\w+(?![\w/.'\"-])",
                  lambda found: as_flag(found[0]) if found[0] in arguments else found[0], message)


def as_flag(name):
    """The flag of a field: warmup_steps -> --warmup-steps."""
    return "--" + name.replace("_", "-")


def typed(*words):
    """A command as it would be typed, in backquotes."""
    return f"`{shlex.join(map(str, words))}`"


def add_kernels_flag(parser):
    """--kernels, where the reader may choose what computes attention, RoPE, NF4 and decoding: a name that
    `backends.use_kernels` takes, or auto (`model_arguments.choose_kernels`)."""
    parser.add_argument("--kernels", default="auto", metavar="NAME", help="reference, torch, cpu, simt, cuda, or auto: "
                        "the fastest that is built here (default: %(default)s)")


def add_bits(parser):
    """--load-8bit and --load-4bit, for commands that can run a quantized model."""
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument("--load-8bit", action="store_true", help="linear layers in int8 (LLM.int8)")
    bits.add_argument("--load-4bit", action="store_true", help="linear layers in NF4 with double quantization")


def add_device(parser):
    """--device and --dtype, for every command that runs a model."""
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="mps is untested")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")


def add_resume(parser):
    """--resume, for every command whose run can be gone on with."""
    parser.add_argument("--resume", action="store_true", help="go on where a stopped run in --out left off, or make a "
                        "finished one longer")


def facts(arguments, *names):
    """{name: value} of flags that a resumed run must share."""
    return {name: getattr(arguments, name) for name in names}
