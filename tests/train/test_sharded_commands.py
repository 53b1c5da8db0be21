"""Laws of `pretrain --shard` and `sft --shard`: what torchrun's processes write is what one would have written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillama.checkpoint import load_model
from minillama.cli.command_line import main
from minillama.peft.lora_file import load_lora

ROOT = Path(__file__).parents[2]
ALONE, TORCHRUN = ["-m", "minillama"], "-m torch.distributed.run --standalone --nproc-per-node {} -m minillama"
COMMON = "--steps 5 --warmup-steps 1 --grad-accumulation 4 --batch-size 2 --checkpoint-every 2 --eps 1e-5"


def command(launcher, *words, code=0):
    """Run it -> what it said; its exit code is checked."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *map(str, words)], env=environment, capture_output=True,
                          text=True, cwd=ROOT, timeout=600)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def torchrun(size):
    return TORCHRUN.format(size).split()


@pytest.mark.parametrize(("words", "told"), [
    ("", "--shard shares a model out to the processes that torchrun starts, and it started none"),
    ("--grad-accumulation 3", "--grad-accumulation 3 cannot be shared by 2 processes: give a multiple of 2"),
    ("--method qlora --grad-accumulation 2", "--shard does not take --method qlora: choose --method full, lora,"),
    ("--load-4bit --grad-accumulation 2", "--shard does not take a quantized model"),
    ("--paged-optimizer 8 --grad-accumulation 2", "--paged-optimizer 8 does not go with --shard"),
])
def test_what_cannot_be_shared_out_is_told_in_one_line_before_any_work(words, told, tmp_path, monkeypatch, capsys):
    if words:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["sft", "--model", "nowhere", "--data", "nothing", "--out", str(tmp_path / "out"), "--shard"]
    assert main([*arguments, *words.split()]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tokenizer, and the text and records that are learned."""
    folder = tmp_path_factory.mktemp("base")
    assert main(["tokenizer", "train", "--text", str(ROOT / "README.md"), "--vocab-size", "400", "--out",
                 str(folder / "t.model")]) == 0
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(1, 20)]
    (folder / "count.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pretrain(ALONE, folder / "alone", folder)
    return folder


def pretrain(launcher, out, base, *more):
    return command(launcher, "pretrain", "--text", ROOT / "README.md", "--tokenizer", base / "t.model", "--out", out,
                   *COMMON.split(), "--max-lr", "1e-3", "--seq-len", "32", "--eval-windows", "4", *more)


def sft(launcher, out, base, *more):
    return command(launcher, "sft", "--model", base / "alone", "--data", base / "count.jsonl", "--out", out,
                   *COMMON.split(), "--held-out-fraction", "0.3", "--template", "question_answer", *more)


def weights(folder):
    return dict(load_model(folder)[0].named_parameters())


def assert_equal(ours, theirs):
    for name, weight in theirs.items():
        assert (weight - ours[name]).abs().max() <= 1e-6, name


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_pretrain_in_shards_writes_the_model_that_one_process_would(size, base, tmp_path):
    said = pretrain(torchrun(size), tmp_path / "out", base, "--shard")
    assert said.count(": trained; try") == 1, "one of all processes says so"
    assert_equal(weights(tmp_path / "out"), weights(base / "alone"))
    shards = [path.name for path in (tmp_path / "out").glob("shards-*")]
    assert shards == ["shards-5"] and torch.load(tmp_path / "out" / "training_state.pt")["shards"] == "shards-5"


@pytest.mark.long
@pytest.mark.parametrize("method", ["full", "lora"])
def test_sft_in_shards_writes_what_one_process_would(method, base, tmp_path):
    more = ("--method", method, "--gradient-checkpointing", "--max-lr", "1e-3")
    sft(ALONE, tmp_path / "one", base, *more)
    sft(torchrun(2), tmp_path / "two", base, *more, "--shard")
    if method == "full":
        return assert_equal(weights(tmp_path / "two"), weights(tmp_path / "one"))
    models = [load_model(base / "alone")[0] for _ in range(2)]
    for model, name in zip(models, ("one", "two"), strict=True):
        load_lora(tmp_path / name, model)
    assert_equal(*[dict(model.named_parameters()) for model in models])
