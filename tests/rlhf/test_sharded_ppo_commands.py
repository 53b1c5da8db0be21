"""Laws of `ppo --shard`: what torchrun's processes write is what one would have written, killed on the way or not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_sharded_commands import ALONE, ROOT, assert_equal, command, torchrun, weights

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import quantize
from minillama.cli.command_line import main
from minillama.config import ModelConfig
from minillama.peft.lora_file import load_lora
from minillama.rlhf.reward_file import save_reward
from minillama.rlhf.reward_model import RewardModel
from minillama.tokenizer import load_tokenizer
from minillama.transformer import Transformer

SETTINGS = ("--iterations 3 --batch-size 4 --max-new-tokens 4 --epochs 2 --lr 1e-3 --held-out-fraction 0.3 --keep last "
            "--checkpoint-every 1 --template question_answer --kernels torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with prompts, a policy and a reward model of random weights."""
    folder = tmp_path_factory.mktemp("base")
    assert main(["tokenizer", "train", "--text", str(ROOT / "README.md"), "--vocab-size", "400", "--out",
                 str(folder / "t.model")]) == 0
    rows = [{"prompt": f"Count to {n}."} for n in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shape = ModelConfig(24, 2, 2, 400, n_kv_heads=1, max_seq_len=64)
    torch.manual_seed(1)
    save_model(folder / "policy", Transformer(shape), folder / "t.model")
    (folder / "judge").mkdir()
    save_reward(folder / "judge", RewardModel(Transformer(shape), shape.dim), load_tokenizer(folder / "t.model"))
    for name in ("policy", "judge"):
        quantize(folder / name, folder / f"{name}-nf4", "nf4")
    return folder


def words_of(base, out, *more):
    return ["ppo", "--model", base / "policy", "--reward", base / "judge", "--prompts", base / "prompts.jsonl", "--out",
            out, *SETTINGS.split(), *more]


@pytest.mark.parametrize(("words", "told"), [
    ("", "--shard shares a model out to the processes that torchrun starts, and it started none"),
    ("--batch-size 5", "--batch-size 5 cannot be shared by 2 processes: give a multiple of 2"),
])
def test_what_cannot_be_shared_out_is_told_in_one_line_before_any_work(words, told, tmp_path, monkeypatch, capsys):
    if words:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["ppo", "--model", "nowhere", "--reward", "nobody", "--prompts", "nothing", "--out",
                 str(tmp_path / "out"), "--shard"]
    assert main([*arguments, *words.split()]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.parametrize("method", ["full", "lora"])
def test_ppo_in_shards_writes_what_one_process_would(method, base, tmp_path):
    command(ALONE, *words_of(base, tmp_path / "one", "--method", method))
    said = command(torchrun(2), *words_of(base, tmp_path / "two", "--method", method, "--shard"))
    assert said.count("held-out prompts") == 1, "one of all processes says so"
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2] and all("slowest_process" in row for row in rows)
    assert [path.name for path in (tmp_path / "two").glob("shards-*")] == ["shards-3"]
    if method == "full":
        assert_equal(weights(tmp_path / "two"), weights(tmp_path / "one"))
        command(ALONE, "convert", tmp_path / "two", tmp_path / "hf", "--to", "hf")
        return assert_equal(weights(tmp_path / "hf"), weights(tmp_path / "one"))
    models = [load_model(base / "policy")[0] for _ in range(2)]
    for model, name in zip(models, ("two", "one"), strict=True):
        load_lora(tmp_path / name, model)
    assert_equal(*[dict(model.named_parameters()) for model in models])


@pytest.mark.long
def test_over_nf4_a_run_begun_by_one_process_ends_in_shards_as_it_would_have_in_one(base, tmp_path):
    """Policy and reward model, and with it the value model, are in NF4."""
    def words(name, *more):
        return words_of(base, tmp_path / name, "--method", "lora", "--model", base / "policy-nf4", "--reward",
                        base / "judge-nf4", *more)

    command(ALONE, *words("one", "--iterations", 1))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    command(ALONE, *words("one", "--resume"))
    command(torchrun(2), *words("two", "--resume", "--shard"))
    models = [load_model(base / "policy-nf4")[0] for _ in range(2)]
    for model, name in zip(models, ("two", "one"), strict=True):
        load_lora(tmp_path / name, model)
    assert_equal(*[dict(model.named_parameters()) for model in models])


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_whose_process_is_killed_goes_on_to_the_same_end(victim, base, tmp_path):
    """Begun on two, killed behind the first iteration's checkpoint, resumed on two."""
    more, out = ("--iterations", "12"), tmp_path / "out"
    words, state = words_of(base, out, *more, "--shard"), out / "ppo_state.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    group = subprocess.Popen([sys.executable, *torchrun(2), *map(str, words)], env=environment, cwd=ROOT, text=True,
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 400
    while not state.exists() or torch.load(state)["iteration"] < 1:
        assert time.monotonic() < until and group.poll() is None
        time.sleep(0.1)
    child = Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split()[victim]
    os.kill(int(child), signal.SIGKILL)
    said = group.communicate(timeout=90)[1]
    assert group.returncode and f"pid: {child}" in said and "SIGKILL" in said
    assert torch.load(state)["iteration"] < 12 and not (out / "params.json").exists()
    command(torchrun(2), *words, "--resume")
    command(torchrun(2), *words_of(base, tmp_path / "unkilled", *more, "--shard"))
    assert_equal(weights(out), weights(tmp_path / "unkilled"))
