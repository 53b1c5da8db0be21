"""What a command must keep, whatever stops it: a trial is a fault, a look at what it left, and the command once more.

`Workshop` holds what the commands work on (texts, tokenizers, a model, an adapter, a reward model), all made by the
commands themselves.
"""

import io
import json
import shutil
from pathlib import Path

import torch
from checkpoints import model_of

from minillama.checkpoint import load_model, open_weights, save_model
from minillama.config import ModelConfig
from minillama.peft.lora_file import load_lora
from minillama.rlhf.reward_file import load_reward
from minillama.tokenizer import load_tokenizer

CONFIG = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=320, hidden_dim=24, max_seq_len=64)
FOX = "The quick brown fox jumps over the lazy dog in 2023. " * 40 + "\nA second line, with a llama.\n" * 20
OWL = "\u732b\u5934\u9e70\u548c\u6bcd\u9e21\u57281999\u5e74\u76f8\u9047\u3002" * 20
SFT = ("sft --model {model} --data {data} --out {out} --steps 3 --warmup-steps 1 --batch-size 2 --checkpoint-every 1 "
       "--held-out-fraction 0.3 --max-length 64 --template question_answer --method ")
PPO = ("ppo --model {model} --reward {judge} --prompts {pairs} --out {out} --iterations 2 --batch-size 4 "
       "--max-new-tokens 6 --epochs 2 --checkpoint-every 1 --method ")
REWARD = "reward --model {model} --pairs {pairs} --out {out} --batch-size 16 --max-new-tokens 6"
TRAIN = "tokenizer train --text {fox} --vocab-size 320 --out {out}"
COMMANDS = {
    "pretrain": "pretrain --text {texts} --tokenizer {tokenizer} --out {out} --steps 3 --warmup-steps 1 --seq-len 16 "
                "--checkpoint-every 1",
    "pretrain, from a model": "pretrain --text {texts} --model {model} --out {out} --steps 2 --warmup-steps 1 "
                              "--seq-len 16",
    "sft full": SFT + "full", "sft lora": SFT + "lora", "reward": REWARD,
    "ppo full": PPO + "full", "ppo lora": PPO + "lora",
    "merge": "merge --model {model} --adapter {adapter} --out {out}",
    "convert to meta": "convert {model} {out} --to meta",
    "convert to meta, float16": "convert {model} {out} --to meta --dtype float16",
    "convert to hf": "convert {model} {out} --to hf",
    "convert to llama2c": "convert {model} {out} --to llama2c",
    "convert to gguf": "convert {model} {out} --to gguf",
    "quantize nf4": "quantize {model} {out} --nf4", "quantize int8": "quantize {model} {out} --int8",
    "tokenizer train": TRAIN,
    "tokenizer extend": "tokenizer extend --model {tokenizer} --add {owl} --out {out}",
    "tokenizer extend, a model": "tokenizer extend --model {model} --add {owl} --out {out}",
    "filter": "filter --data {data} --out {out}",
}


class Workshop:
    """What the commands work on, and `place`, an empty folder in which each is to make {out}."""

    def __init__(self, folder, runs):
        self.runs, self.place = runs, folder / "place"
        self.paths = {name: folder / name for name in ("texts", "model", "adapter", "judge")}
        self.paths |= {"fox": folder / "fox.txt", "tokenizer": folder / "fox.model", "owl": folder / "owl.model",
                       "data": folder / "data.jsonl", "pairs": folder / "pairs.jsonl", "out": self.place / "out"}
        self.whole = {}  # name of a command -> what it makes undisturbed, and in how many calls
        write_inputs(self.paths)
        self.make(TRAIN, "tokenizer")
        (folder / "owl.txt").write_text(OWL, encoding="utf-8")
        self.make(f"tokenizer train --text {folder}/owl.txt --vocab-size 290 --out {{out}}", "owl")
        save_model(self.paths["model"], model_of(CONFIG))
        shutil.copy(self.paths["tokenizer"], self.paths["model"] / "tokenizer.model")
        self.base = load_model(self.paths["model"])[0]

    def words(self, command):
        return [word.format(**self.paths) for word in command.split()]

    def make(self, command, name):
        """Run a command whose result others need."""
        self.clear()
        ended = self.runs.run(self.words(command), self.place)
        assert ended.code == 0, ended.said
        shutil.move(self.paths["out"], self.paths[name])

    def clear(self):
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def undisturbed(self, name):
        """(what the command makes, the number of its calls); made once."""
        if name not in self.whole:
            for needed, command in (("adapter", SFT + "lora"), ("judge", REWARD)):
                if f"{{{needed}}}" in COMMANDS[name] and not self.paths[needed].exists():
                    self.make(command, needed)
            self.clear()
            ended = self.runs.run(self.words(COMMANDS[name]), self.place)
            assert ended.code == 0, ended.said
            self.whole[name] = contents(self.place), ended.calls
        return self.whole[name]


def write_inputs(paths):
    paths["fox"].write_text(FOX, encoding="utf-8")
    paths["texts"].mkdir()
    for i in range(60):
        (paths["texts"] / f"{i:02}.txt").write_text(f"Llama number {i} eats grass. " * 5, encoding="utf-8")
    rows = [{"instruction": f"Count aloud to {n}, please.", "output": " ".join(map(str, range(n)))}
            for n in range(1, 20)]
    pairs = [{"prompt": f"Count to {n}.", "chosen": f"1 to {n}", "rejected": "no"} for n in range(60)]
    for name, values in (("data", rows), ("pairs", pairs)):
        paths[name].write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def contents(place):
    """{path below `place`: bytes, or None for a folder}."""
    return {str(path.relative_to(place)): None if path.is_dir() else path.read_bytes()
            for path in sorted(Path(place).rglob("*"))}


def same(name, ours, theirs):
    """The same bytes; where a file tells how long something took, the same but for that."""
    if ours == theirs:
        return True
    if None in (ours, theirs):
        return False
    read = {".pt": lambda data: torch.load(io.BytesIO(data), weights_only=True),
            ".jsonl": lambda data: list(map(json.loads, data.splitlines()))}.get(Path(name).suffix)
    try:
        return read is not None and timeless(read(ours)) == timeless(read(theirs))
    except (ValueError, RuntimeError):  # half a line, half a file
        return False


def timeless(value):
    """Nested values without their "seconds", tensors as lists."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if key != "seconds"}
    if isinstance(value, (list, tuple)):
        return [timeless(part) for part in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def differences(ours, whole):
    """What tells what a command left from what it makes undisturbed, as words."""
    return [*(f"{name} is missing" for name in whole if name not in ours),
            *(f"{name} is left" for name in ours if name not in whole),
            *(f"{name} differs" for name in ours if name in whole and not same(name, ours[name], whole[name]))]


def what_opens(workshop):
    """Which of the doors to models open what stands in --out."""
    out, base = workshop.paths["out"], workshop.paths["model"]
    doors = {"open_weights": open_weights, "load_model": load_model, "load_reward": load_reward,
             "load_tokenizer": load_tokenizer, "load_lora": lambda path: load_lora(path, load_model(base)[0])}
    return [name for name, door in doors.items() if opens(door, out)]


def opens(door, path):
    try:
        door(path)
    except (ValueError, OSError):
        return False
    return True


def trial(workshop, name, fault, at):
    """Disturb a command at its call number `at`, look at what is left, give it again -> what is wrong, as words."""
    whole, words = workshop.undisturbed(name)[0], workshop.words(COMMANDS[name])
    workshop.clear()
    first = workshop.runs.run(words, workshop.place, at, fault)
    differing = differences(contents(workshop.place), whole)
    doors = what_opens(workshop)
    wrong = wrong_end(first, fault, workshop.place, differing, whole)
    if doors and any(word.endswith(("is missing", "differs")) for word in differing):
        wrong.append(f"{doors} open a half: {differing}")
    second = workshop.runs.run(words, workshop.place)
    if second.code and "--resume" in second.said:
        second = workshop.runs.run([*words, "--resume"], workshop.place)
    end = differences(contents(workshop.place), whole)
    if second.code == 0:
        wrong += end
    elif end or second.code != 2:  # what is whole and alone may be refused
        wrong.append(f"does not go on, {end}: exit code {second.code}, {errors_of(second)}")
    return [f"{name}, {fault} at call {at}: {word}" for word in wrong]


def wrong_end(ended, fault, place, differing, whole):
    """What is wrong with the end of a disturbed run. A full disk is told in one line that names what was to be made;
    where only calls are left that need no room, the run ends well."""
    if fault == "killed":
        return [] if ended.code == -9 else [f"not killed: exit code {ended.code}"]
    errors = errors_of(ended)
    named = len(errors) == 1 and errors[0].startswith("minillama: error") and "No space left" in errors[0] and any(
        str(place / name) in errors[0] for name in whole if "/" not in name)
    clean = not [word for word in differing if ".partial" in word or "/tmp" in word]  # it lives, and can clear up
    if named and clean and ended.code == 2 or ended.code == 0 and not differing:
        return []
    return [f"exit code {ended.code}, {differing}: {errors or ended.said[-200:]}"]


def errors_of(ended):
    """What is said on stderr from the first word of an error on: of a well-behaved run one line, the last."""
    lines = ended.said.replace("\r", "\n").splitlines()
    begin = next((number for number, line in enumerate(lines) if "rror" in line or "Traceback" in line), len(lines))
    return lines[begin:]


def two_at_once(workshop, name, at):
    """Stop a command before its call number `at`, give it again beside it, let the first go on -> what is wrong.

    One of the two is refused and changes nothing; where a command makes a single file both may write it."""
    whole, words = workshop.undisturbed(name)[0], workshop.words(COMMANDS[name])
    workshop.clear()
    first = workshop.runs.run(words, workshop.place, at, "stopped")
    before = contents(workshop.place)
    second = workshop.runs.run(words, workshop.place)
    wrong = []
    if second.code == 2 and contents(workshop.place) != before:
        wrong.append("the refused one changed something")
    first = workshop.runs.go_on(first)
    codes = (first.code, second.code)
    if sorted(codes) != [0, 2] and not (codes == (0, 0) and whole.get("out") is not None):
        wrong.append(f"exit codes {codes}, {errors_of(first)}, {errors_of(second)}")
    wrong += differences(contents(workshop.place), whole)
    return [f"{name}, two at once, the first stopped at call {at}: {word}" for word in wrong]


def chosen_calls(total, count=50):
    """Numbers of calls: half of them the last ones, the others spread over the rest."""
    if total <= count:
        return list(range(1, total + 1))
    early, rest = count // 2, total - (count - count // 2)
    return sorted({1 + i * rest // early for i in range(early)} | set(range(rest + 1, total + 1)))
