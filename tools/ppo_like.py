"""PPO with the settings of a published program: `run.py ppo --like NAME` and the flags of `ppo`.

The settings of each are in tools/recipes.json, in the words of `minillama ppo`'s flags. They are printed before the
run, with those of ours that the program leaves open; a flag that you give beats them. The rates are those of models of
a billion parameters and more, and hardly move a small one: there, give --lr.
"""

import json
import sys
from dataclasses import fields
from pathlib import Path

from minillama.cli.command_line import build_parser
from minillama.cli.command_line import main as minillama
from minillama.cli.flags import as_flag, from_flags
from minillama.rlhf.train_ppo import PPOConfig

PROGRAMS = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))["ppo"]


def take_name(words):
    """(the name after --like, the other words)."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--like=") else [word])]
    at = words.index("--like")
    name = "".join(words[at + 1:at + 2])
    if name not in PROGRAMS:
        raise ValueError(f"--like {name}: it must be one of {', '.join(PROGRAMS)}")
    return name, words[:at] + words[at + 2:]


def settings_of(name):
    """{setting: value} of a program."""
    return {setting: value for setting, value in PROGRAMS[name].items() if setting != "source"}


def flags_of(settings):
    """The settings as words of a command line."""
    for setting, value in settings.items():
        if isinstance(value, bool):
            yield as_flag(setting) if value else "--no-" + as_flag(setting)[2:]
        else:
            yield from (as_flag(setting), str(value))


def describe(name, published, config):
    """What the run will use, a line for each setting, and whose choice it is."""
    yield f"ppo like {name} ({PROGRAMS[name]['source']}):"
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "max_new_tokens":
            continue
        whose = "ours" if value == field.default else "yours"
        if field.name in published:
            same = value == published[field.name]
            whose = name if same else f"yours; {name} has {published[field.name]}"
        yield f"  {as_flag(field.name)} {'by the model' if value is None else value}  ({whose})"


def main(words):
    """Print the settings, then run `minillama ppo` with them; the exit code is its own."""
    try:
        name, words = take_name(words)
    except ValueError as error:
        print(f"minillama: error: {error}", file=sys.stderr)
        return 2
    published = settings_of(name)
    given = build_parser("ppo").parse_args(["ppo", *words])
    if given.pretraining_text is None and published.pop("pretraining_weight", None):
        print(f"{name} mixes pretraining text in: left out, as no --pretraining-text is given", file=sys.stderr)
    words = ["ppo", *flags_of(published), *words]
    arguments = build_parser("ppo").parse_args(words)
    arguments.max_new_tokens = arguments.max_new_tokens or 1  # by the prompts, later
    print("\n".join(describe(name, published, from_flags(PPOConfig, arguments))), file=sys.stderr)
    return minillama(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
