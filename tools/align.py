"""A published road from a model to an assistant, stage by stage: `run.py align --recipe instructgpt --model PATH ...`.

The stages of each recipe are commands that exist; tools/recipes.json names them. They are printed, then run one after
another, each into a folder of its name below --out. The same command goes on where a stop left it: with the first stage
that is not finished, from its last checkpoint. --flags ppo "--lr 5e-4" gives a stage flags of your own.
"""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

import ppo_like
import stack_exchange
import two_rewards
from resumable_command import end_well

from minillama.cli.command_line import main as minillama
from minillama.cli.flags import as_flag
from minillama.system.claim import MODEL_FILES
from minillama.system.files import atomic_write

RECIPES = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))["align"]
INPUTS = {"model": "a model folder or file", "answers": "JSONL for `sft`; several files are learned one after another, "
          "the easy one first", "pairs": "JSONL with prompt, chosen and rejected", "posts": "Posts.xml of a dump",
          "safety_pairs": "pairs again, chosen the safe answer"}


def stages_of(recipe, given, more):
    """[(name, words of its command)]. given: {input: paths}; more: {stage: words of the user's own}."""
    stages = RECIPES[recipe]["stages"]
    if unknown := set(more) - set(stages):
        raise ValueError(f"--flags {min(unknown)}: the stages of {recipe} are {', '.join(stages)}")
    wanted = sorted({name for command in stages.values() for name in re.findall(r"{(\w+)}", command)} - {"out"})
    if missing := [name for name in wanted if not given.get(name)]:
        raise ValueError(f"recipe {recipe} needs {as_flag(missing[0])}: {INPUTS[missing[0]]}")
    if unused := [name for name in INPUTS if given.get(name) and name not in wanted]:
        raise ValueError(f"recipe {recipe} has no use for {as_flag(unused[0])}: it reads {', '.join(wanted)}")
    found = []
    for name, command in stages.items():
        words = [part for word in command.split() for part in filled(word, given)]
        found.append((name, [*words, "--out", f"{given['out']}/{name}", *more.get(name, [])]))
    return found


def filled(word, given):
    """A word of a command with its input put in: one word, or one for each of several files."""
    name = re.fullmatch(r"{(\w+)}", word)
    if name and name[1] != "out":
        return list(map(str, given[name[1]]))
    return [word.replace("{out}", str(given["out"]))]


def is_finished(folder):
    """Whether a stage has left all that it writes: what makes its folder a model or data is written last."""
    return any((folder / name).exists() for name in (*MODEL_FILES, "held_out.jsonl", "best.jsonl"))


def run_stage(words, folder):
    """A stage's command, on from its checkpoint if it left one -> its exit code."""
    if any(folder.glob("*_state.pt")):
        words = [*words, "--resume"]
    if words[0] == "stack-exchange":
        return stack_exchange.main(words[1:])
    if words[0] == "llama2-chat":
        return two_rewards.main(words[1:])
    return ppo_like.main(words[1:]) if "--like" in words else minillama(words)


def hold_commands(path, commands):
    """ValueError where stages with other commands have left their work here."""
    text = "".join(commands)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path.parent} holds the stages of other commands, see {path}: choose another --out")
    with atomic_write(path, "w") as file:
        file.write(text)


def run_align(arguments):
    """Print the stages; run those that are left."""
    more = {}
    for name, words in arguments.flags or []:
        try:
            more.setdefault(name, []).extend(shlex.split(words))
        except ValueError as error:
            raise ValueError(f"--flags {name} {words!r} is no list of words: {error}") from None
    given = {name: getattr(arguments, name) for name in (*INPUTS, "out")}
    stages, recipe = stages_of(arguments.recipe, given, more), RECIPES[arguments.recipe]
    print(f"recipe {arguments.recipe} ({recipe['source']})"
          + (f"; left out: {recipe['left out']}" if "left out" in recipe else ""))
    commands = [f"python3 run.py {shlex.join(words)}\n" for _, words in stages]
    print("".join(commands), end="", flush=True)
    if arguments.dry_run:
        return 0
    if absent := [path for name in INPUTS for path in given[name] or [] if not Path(path).exists()]:
        raise ValueError(f"{absent[0]}: there is no such file or folder")
    out = Path(arguments.out)
    hold_commands(out / "align.txt", commands)
    for name, words in stages:
        if is_finished(out / name):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}:", flush=True)
        if code := run_stage(words, out / name):
            return code
    return 0


def parser():
    found = argparse.ArgumentParser(prog="run.py align", description=__doc__.split("\n")[0])
    found.add_argument("--recipe", required=True, choices=list(RECIPES))
    for name, help in INPUTS.items():
        found.add_argument(as_flag(name), nargs="+" if name == "answers" else 1, metavar="PATH", help=help)
    found.add_argument("--out", required=True, metavar="DIR", help="each stage works in a folder of its name there")
    found.add_argument("--flags", nargs=2, action="append", metavar=("STAGE", "WORDS"), help="flags of your own for a "
                       "stage, in quotes; may be given for several")
    found.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return found


def main(words=None):
    return end_well(run_align, parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
