"""Laws of `pretrain --shard` and `sft --shard`: what torchrun's processes write is what one would have written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minillama.checkpoint import load_model
from minillama.cli.command_line import main
from minillama.peft.lora_file import load_lora
from minillama.rlhf.reward_file import load_reward

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
    ("--method dora --grad-accumulation 2", "--shard does not take --method dora: choose --method full, lora,"),
    ("--load-8bit --grad-accumulation 2", "--shard does not take --load-8bit"),
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
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "t.model"
    assert main(["tokenizer", "train", "--text", str(ROOT / "README.md"), "--vocab-size", "400", "--out",
                 str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def base(tokenizer):
    """A folder with the tokenizer, records to learn, and what one process made."""
    folder = tokenizer.parent
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


@pytest.mark.parametrize(("words", "told"), [
    ("--tensor-parallel 2", "--tensor-parallel 2 goes with --shard"),
    ("--shard --tensor-parallel 3", "--tensor-parallel 3 does not divide the 4 processes"),
    ("--shard --tensor-parallel 2 --grad-accumulation 3", "cannot be shared by 2 groups of processes: give a multiple"),
    ("--shard --objective blank", "blank does not go with a ShardedPretrain: leave --shard out"),
    ("--shard --tensor-parallel 4 --preset tiny", "cannot cut a model whose head is its embedding"),
    ("--shard --tensor-parallel 2 --preset llama_7b --kernels cpu", "--kernels cpu cannot multiply matrices")])
def test_a_mesh_that_cannot_be_is_told_before_the_text_is_read(words, told, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    arguments = ["pretrain", "--text", str(ROOT / "README.md"), "--tokenizer", str(tokenizer), "--out",
                 str(tmp_path / "out"), "--grad-accumulation", "4"]
    assert main([*arguments, *words.split()]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.long
def test_pretrain_with_cut_matrices_writes_the_model_that_one_process_would(base, tmp_path):
    """Two groups of two; a model whose head is no embedding, begun from a folder."""
    from minillama.checkpoint import save_model
    from minillama.config import ModelConfig
    from minillama.transformer import Transformer

    torch.manual_seed(1)
    save_model(tmp_path / "begin", Transformer(ModelConfig(32, 2, 4, 400, 2, max_seq_len=64)), base / "t.model")
    for name, launcher, more in (("one", ALONE, ()), ("four", torchrun(4), ("--shard", "--tensor-parallel", "2"))):
        command(launcher, "pretrain", "--text", ROOT / "README.md", "--model", tmp_path / "begin", "--out",
                tmp_path / name, *COMMON.split(), "--max-lr", "1e-3", "--seq-len", "32", *more)
    assert_equal(weights(tmp_path / "four"), weights(tmp_path / "one"))
    words = ("generate", "--model", tmp_path / "one", "--prompt", "python3", "--max-new-tokens", "20", "--seed", "3")
    alone, *cut = (subprocess.run([sys.executable, *launcher, *map(str, words), *more], capture_output=True, text=True,
                                  cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
                   for launcher, more in ((ALONE, ["--kernels", "torch"]), (torchrun(2), ["--tensor-parallel", "2"])))
    assert cut == [alone] and alone.startswith("python3"), "one of all processes prints"


@pytest.fixture(scope="module")
def unkilled(base):
    """What two processes make in so many steps that there is time to kill one."""
    pretrain(torchrun(2), base / "unkilled", base, "--shard", "--steps", "80")
    return weights(base / "unkilled")


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_ends_the_others_and_the_run_goes_on_to_the_same_end(victim, base, unkilled,
                                                                                         tmp_path):
    out, state = tmp_path / "out", tmp_path / "out" / "training_state.pt"
    words = ["pretrain", "--text", ROOT / "README.md", "--tokenizer", base / "t.model", "--out", out, *COMMON.split(),
             "--max-lr", "1e-3", "--seq-len", "32", "--eval-windows", "4", "--shard", "--steps", "80"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    group = subprocess.Popen([sys.executable, *torchrun(2), *map(str, words)], env=environment, cwd=ROOT, text=True,
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 500
    while not state.exists() or torch.load(state)["step"] < 4:
        assert time.monotonic() < until and group.poll() is None
        time.sleep(0.1)
    child = Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()[victim]
    os.kill(int(child), signal.SIGKILL)
    said = group.communicate(timeout=60)[1]  # a minute at most
    assert group.returncode and f"pid: {child}" in said and "SIGKILL" in said
    assert torch.load(state)["step"] < 80 and not (out / "params.json").exists()
    command(torchrun(2), *words, "--resume")
    assert_equal(weights(out), unkilled)


@pytest.mark.long
def test_reward_in_shards_writes_a_reward_model_that_is_whole_and_says_so_once(base, tmp_path):
    rows = [{"prompt": f"Count to {n}.", "chosen": " ".join(map(str, range(n + 1))), "rejected": "no"}
            for n in range(25)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["reward", "--model", base / "alone", "--pairs", tmp_path / "pairs.jsonl", "--batch-size", "4", "--max-lr",
             "1e-4", "--max-new-tokens", "4", "--held-out-fraction", "0.3", "--template", "question_answer"]
    said = command(torchrun(2), *words, "--out", tmp_path / "two", "--shard")
    assert said.count("unseen pairs as they are labelled") == 1
    command(ALONE, *words, "--out", tmp_path / "one")
    ours, theirs = (dict(load_reward(tmp_path / name)[0].named_parameters()) for name in ("two", "one"))
    for name, weight in theirs.items():  # Adam's epsilon is 1e-8: a few steps of the rate where a gradient is near 0
        assert (weight - ours[name]).abs().max() <= 5e-4, name


@pytest.mark.long
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
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
