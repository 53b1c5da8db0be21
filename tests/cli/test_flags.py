"""Laws of the flags: what a dataclass says, the command line accepts, and gives back."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest
from mutants import Mutant

from minillama.cli.command_line import build_parser
from minillama.cli.flags import add_device, add_fields, command, from_flags


@dataclass(frozen=True)
class Settings:
    """One field of each kind."""

    steps: int = 3
    max_rate: float = 0.5
    name: str = "a"
    loud: bool = True
    limit: int | None = None


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_fields(parser, Settings)
    return from_flags(Settings, parser.parse_args(words))


def test_no_flags_give_the_defaults():
    assert parsed() == Settings()


def test_every_kind_of_field_has_its_flag():
    words = ("--steps", "7", "--max-rate", "1e-3", "--name", "b", "--no-loud", "--limit", "9")
    assert parsed(*words) == Settings(7, 1e-3, "b", False, 9)


def flags_of(parser, command=()):
    """A line for each flag of each command that has a default: what stands where nothing is given."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from flags_of(below, (*command, name))
        elif action.option_strings and action.default not in (None, argparse.SUPPRESS):
            yield f"{' '.join(command)} {action.option_strings[0]} = {action.default!r}"


def test_the_defaults_of_all_flags_are_those_that_are_written_down():
    """A default is a promise to whoever gives no flag. One that is changed is changed there too."""
    written = (Path(__file__).parent / "flag_defaults.txt").read_text(encoding="utf-8").splitlines()
    assert written == list(flags_of(build_parser()))


@pytest.mark.parametrize("words", [("--steps", "1.5"), ("--max-rate", "fast"), ("--limit", "x"), ("--unknown", "1")])
def test_a_value_of_another_kind_is_refused(words):
    with pytest.raises(SystemExit):
        parsed(*words)


def test_a_command_runs_what_it_was_given_and_devices_are_the_three():
    parser = argparse.ArgumentParser()
    add_device(command(parser.add_subparsers(), "go", lambda arguments: arguments.device, "help"))
    arguments = parser.parse_args(["go", "--device", "mps"])
    assert arguments.run(arguments) == "mps"
    with pytest.raises(SystemExit):
        parser.parse_args(["go", "--device", "tpu"])


MUTANTS = [
    Mutant("minillama.cli.flags", "if kind is bool:", "if False:", test_every_kind_of_field_has_its_flag),
    Mutant("minillama.cli.flags", "isinstance(kind, types.UnionType)", "False", test_every_kind_of_field_has_its_flag),
    Mutant("minillama.cli.flags", "default=field.default, **options", "default=None, **options",
           test_no_flags_give_the_defaults),
]
