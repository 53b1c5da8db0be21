"""Laws of what commands are given: nothing given, all that is needed is named; numbers are taken to the ends of their
range."""

import argparse
import re

import pytest
from mutants import Mutant

from minillama.cli import checkpoint_commands as checkpoint_commands
from minillama.cli import command_line as cli
from minillama.cli import data_commands as data_commands
from minillama.cli import feedback_commands as feedback_commands
from minillama.cli import generation_commands as generation_commands
from minillama.cli import lesson_commands as lesson_commands
from minillama.cli import merge_command as merge_command
from minillama.cli import simt_commands as simt_commands
from minillama.cli import tokenizer_commands as tokenizer_commands
from minillama.cli import training_commands as training_commands
from minillama.config_checks import MOST, SEEDS

NEEDED = {
    cli: {"kernels": "ACTION", "kernels verify": "", "info": "", "tour": ""},
    checkpoint_commands: {"convert": "SRC DST --to",
                          "quantize": "SRC DST one of the arguments --nf4 --int8 is required",
                      "parity": "PATH", "weights": ""},
    data_commands: {"filter": "--data --out"},
    tokenizer_commands: {"extend": "--model --out"},
    feedback_commands: {"reward": "--model --pairs --out", "ppo": "--model --reward --prompts --out"},
    lesson_commands: {"lesson": "", "check": "", "notebook": "N", "book": ""},
    merge_command: {"merge": "--model --adapter --out"},
    simt_commands: {"simt": "ACTION", "simt run": "FILE.cu ARGUMENT"},
    generation_commands: {"generate": "--model", "chat": "--model"},
    training_commands: {"pretrain": "--out one of the arguments --text --shares is required",
                      "sft": "--model --data --out"},
}


# flag -> the least and the largest number, and how far beyond them one is wrong
TOKENS, PART, SEED = (0, MOST, 1), (1e-6, 1 - 1e-6, 1e-6), (0, SEEDS, 1)
NUMBERS = {
    generation_commands: {"generate --max-new-tokens": TOKENS, "generate --seed": SEED,
                          "chat --max-new-tokens": TOKENS, "chat --seed": SEED},
    checkpoint_commands: {"quantize --block-size": (2, 2**32, 1)},
    feedback_commands: {"reward --max-new-tokens": (1, MOST, 1), "reward --held-out-fraction": PART},
    simt_commands: {"simt run --limit-seconds": (1e-3, 1e7, 5e-4)},
    training_commands: {"sft --max-length": (2, MOST, 1), "sft --held-out-fraction": PART},
}


def parsed(home, words):
    """(what is read, what argparse has against it) of words that begin with a command."""
    parser, told = argparse.ArgumentParser(), []
    getattr(home, f"add_{words.split()[0]}")(parser.add_subparsers())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "error", lambda self, message: told.append(message))
        return parser.parse_args(words.split()), told


def missing_in(home, words):
    """What argparse says is missing where a command is given its name alone, in words."""
    told = parsed(home, words)[1]
    return [name for message in told for name in re.sub(r".*required: ", "", message).replace(",", "").split()]


@pytest.mark.parametrize(("home", "words", "allowed"), [
    (home, words, allowed) for home, rows in NUMBERS.items() for words, allowed in rows.items()])
def test_the_least_and_the_largest_number_are_taken_and_what_lies_beyond_is_refused_by_name(home, words, allowed):
    least, most, beyond = allowed
    command, flag = words.split(" --")
    for value in (least, most):
        found, told = parsed(home, f"{words} {value}")
        assert vars(found)[flag.replace("-", "_")] == value and not any(flag in message for message in told)
    for value in (least - beyond, most + beyond):
        assert any(flag in message and str(value) in message for message in parsed(home, f"{words} {value}")[1])
    default = vars(parsed(home, command)[0])[flag.replace("-", "_")]
    assert default is None or least <= default <= most


@pytest.mark.parametrize(("home", "words"), [(home, words) for home, commands in NEEDED.items() for words in commands])
def test_a_command_given_nothing_names_all_that_it_needs_and_nothing_else(home, words):
    assert missing_in(home, words) == NEEDED[home][words].split()


def test_every_command_is_among_them_and_a_word_is_needed_to_choose_one(capsys):
    assert set(cli.COMMANDS) - {words for commands in NEEDED.values() for words in commands} == {"tokenizer"}
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


MUTANTS = [
    Mutant("minillama.cli.training_commands", "add_mutually_exclusive_group(required=True)",
           "add_mutually_exclusive_group()",
           lambda: test_a_command_given_nothing_names_all_that_it_needs_and_nothing_else(training_commands,
                                                                                         "pretrain")),
]
