"""The command line: `python -m minillama COMMAND`. Each command is one function below, and says what it calls.

Bad input ends in one line on stderr that names the next step, and exit code 2; Ctrl-C ends in 130, SIGTERM in 143 and
SIGHUP in 129, with what was done saved where a run can go on.
"""

import argparse
import importlib
import os
import re
import signal
import sys
from pathlib import Path

from minillama.cli import flags
from minillama.system.claim import claims
from minillama.system.interrupts import Terminated, raise_on_signals
from minillama.system.memory import explain_shortage, require_room_for_torch
from minillama.system.terminal import explain, guard_streams, one_line, tell, visible

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads starve a busy laptop
GROUPS = {  # heading of the help -> {name: the module of this room that holds its add_NAME; "": this one}
    "learn": {"tour": "", "lesson": "lesson_commands", "check": "lesson_commands", "notebook": "lesson_commands",
              "book": "lesson_commands"},
    "use a model": {"generate": "generation_commands", "chat": "generation_commands", "info": ""},
    "train": {"tokenizer": "tokenizer_commands", "pretrain": "training_commands", "filter": "data_commands",
              "sft": "training_commands", "reward": "feedback_commands", "ppo": "feedback_commands"},
    "convert": {"merge": "merge_command", "convert": "checkpoint_commands", "quantize": "checkpoint_commands"},
    "verify": {"parity": "checkpoint_commands", "weights": "checkpoint_commands", "kernels": "",
               "simt": "simt_commands"}}
COMMANDS = {name: home for group in GROUPS.values() for name, home in group.items()}
STATES = "*_state.pt"  # what runs save in --out to go on from


def main(argv=None):
    """Parse, run, and turn every expected failure into one line and an exit code."""
    with guard_streams():
        arguments = argparse.Namespace(run=None)
        try:
            with raise_on_signals():
                words = sys.argv[1:] if argv is None else argv
                require_room_for_torch()
                arguments = build_parser(words[0] if words else None).parse_args(words)
                code = arguments.run(arguments) or 0
                sys.stdout.flush()  # what cannot be written is told here
                return code
        except (KeyboardInterrupt, Terminated) as stopped:
            tell(": ".join(["interrupted", *what_is_kept(stopped, arguments)]))
            return 128 + getattr(stopped, "signal", signal.SIGINT)
        except BrokenPipeError:  # the reader of our output went away, as `| head` does
            return 0
        except (ValueError, TypeError, OSError, MemoryError, RuntimeError, ArithmeticError, ImportError) as error:
            if os.environ.get("MINILLAMA_TRACEBACK"):
                raise
            tell(f"error: {explain_shortage(error, arguments) or flags.spelled_as_flags(explain(error), arguments)}")
            return 2


def what_is_kept(stopped, arguments):
    """What an interrupted command has saved and how it goes on, as parts of a line; [] for one that saves nothing."""
    done, out = getattr(stopped, "done", ""), getattr(arguments, "out", None)
    if arguments.run is run_tour:
        return [*[done][:bool(done)], f"what is finished is kept in {out}", "the same command goes on"]
    if not hasattr(arguments, "resume"):
        return [done] if done else ["nothing saved"] if out else []
    if done and stopped.folder:
        return [f"{done}, saved in {out}", "--resume goes on"]
    saved = any(Path(out).glob(STATES))
    return [f"the last checkpoint in {out} stays", "--resume goes on"] if saved else ["nothing saved"]


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        ours = re.fullmatch(r"argument (\S+): (\1 .*)", message, re.DOTALL)  # as `flags.parser_of` says it
        self.exit(2, f"minillama: error: {one_line(ours[2] if ours else f'{message}: see `{self.prog} --help`')}\n")


def build_parser(first=None):
    """All commands with their flags; a config's flags are made from its fields.

    Where `first` is a command, only its module is imported: the others' would import PyTorch for nothing.
    """
    parser = _Parser(prog="minillama", usage="minillama COMMAND ...", description="LLaMA from scratch: text to a "
                     "talking model.", formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(prog="minillama", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    for name, home in COMMANDS.items():
        if first not in COMMANDS or first == name:
            names = vars(importlib.import_module(f"minillama.cli.{home}")) if home else globals()
            names[f"add_{name}"](commands)
    parser.epilog = list_by_group(commands.choices)
    return parser


def list_by_group(parsers):
    """The commands {name: parser} under the headings of GROUPS, a line for each with what it does."""
    width, lines = max(map(len, COMMANDS)), []
    for heading, names in GROUPS.items():
        built = [name for name in names if name in parsers]
        lines += [f"{heading}:", *(f"  {name:{width}}  {parsers[name].description}" for name in built)]
    return "\n".join([*lines, "", "`minillama COMMAND --help` shows the flags of one."])


def add_kernels(commands):
    """kernels verify [--backend NAME] [--op NAME]"""
    kernels = flags.actions(commands, "kernels", "the compiled kernels")
    verify = flags.command(kernels, "verify", run_kernels_verify, "compare every kernel that is built with float64")
    verify.add_argument("--backend", metavar="NAME", help="only this one: reference, cpu, simt or simt+fma")
    verify.add_argument("--op", metavar="NAME", help="only this one: rope, nf4_matmul or flash_attention")
    verify.add_argument("--thorough", action="store_true", help="edges too: odd sizes, any memory, NaN, repeats")


def add_info(commands):
    """info [PATH]"""
    info = flags.command(commands, "info", run_info, "versions, backends, threads, what fits here; or what a model is")
    info.add_argument("model", nargs="?", metavar="PATH", help="a model folder or file; exit code 1 where one of its "
                      "settings is refused, 2 where it cannot be read, else 0")


def add_tour(commands):
    """tour [--text PATH ...] [--sft FILE] [--preferences FILE] [--out DIR] and the fields of TourConfig."""
    from minillama.tour.tour import TourConfig

    tour = flags.command(commands, "tour", run_tour, "from text to a talking model, with a report")
    tour.add_argument("--text", nargs="+", metavar="PATH", help="your own files and folders instead of Python's docs")
    tour.add_argument("--sft", metavar="FILE", help="your own answers to tune on, JSON or JSONL as for `sft`")
    tour.add_argument("--preferences", metavar="FILE", help="your own pairs, JSONL with prompt, chosen and rejected")
    tour.add_argument("--out", default="out/tour", metavar="DIR", help="where the report goes (default: %(default)s)")
    flags.add_fields(tour, TourConfig)
    tour.set_defaults(kernels="auto")


@claims("tour", "text", "sft", "preferences", run=True)
def run_tour(arguments):
    """The whole tour (`tour.tour`); exit code 1 where a number missed its band."""
    from minillama.cli.model_arguments import choose_kernels
    from minillama.tour.tour import TourConfig, tour

    choose_kernels(arguments)
    return 0 if tour(arguments.out, arguments.text, flags.from_flags(TourConfig, arguments), arguments.sft,
                     arguments.preferences) else 1


def run_kernels_verify(arguments):
    """Exit code 1 where a kernel is beyond its bound (`kernels_verify.print_table`)."""
    from minillama.parity.kernels_verify import print_table

    return 0 if print_table([arguments.backend] if arguments.backend else None,
                            [arguments.op] if arguments.op else None, arguments.thorough) else 1


def run_info(arguments):
    """What is here and what would fit (`info.describe`), or what a checkpoint holds (`info.examine_checkpoint`): exit
    code 1 where something that its files say is refused."""
    from minillama.cli.info import describe, examine_checkpoint

    text, refused = examine_checkpoint(arguments.model) if arguments.model else (describe(), False)
    print(visible(text) if arguments.model else text)
    return int(refused)


if __name__ == "__main__":
    sys.exit(main())
