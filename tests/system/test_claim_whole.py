"""A folder is a model from the moment when all of it is there: whatever breaks off its last writes, nothing opens that
is not whole, and the same command goes on to the same bytes."""

import errno
import os
import random

import pytest

from minillama.checkpoint import load_model, open_weights, save_model
from minillama.checkpoint.convert import convert, save_with_tokenizer
from minillama.cli.command_line import main
from minillama.config import preset
from minillama.peft.lora_file import load_lora
from minillama.rlhf.reward_file import load_reward
from minillama.system.files import fcntl
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.transformer import Transformer

LAST = 4  # writes before the end at which a command is broken off
WORDS = ("one two three four five six seven eight nine ten red green blue cold warm old new big small the a of and "
         "llama river stone tree bird wind house road light night").split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What all commands start from: a model, an adapter, a reward model, data."""
    folder, rng = tmp_path_factory.mktemp("place"), random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=8)) for _ in range(60)]
    (folder / "texts").mkdir()
    for number, line in enumerate(lines):
        (folder / "texts" / f"{number}.txt").write_text(line)
    (folder / "data.jsonl").write_text("".join(f'{{"instruction": "{a}", "output": "{b}"}}\n'
                                               for a, b in zip(lines, lines[1:], strict=False)))
    (folder / "pairs.jsonl").write_text("".join(f'{{"prompt": "{a}", "chosen": "{b}", "rejected": "{b[:9]}"}}\n'
                                                for a, b in zip(lines[:24], lines[1:], strict=False)))
    train_bpe(lines, 300).save(folder / "t.model")
    train_bpe([text.upper() for text in lines], 300).save(folder / "other.model")
    save_model(folder / "model", Transformer(preset("tiny", vocab_size=300)), folder / "t.model")
    for name in ("lora", "reward"):
        assert main([str(word).format(d=folder, out=folder / name) for word in COMMANDS[name]]) == 0
    return folder


SFT = ("sft", "--model", "{d}/model", "--data", "{d}/data.jsonl", "--template", "question_answer", "--out", "{out}",
       "--steps", "2", "--batch-size", "2", "--warmup-steps", "0", "--max-length", "96")
RUNS = {
    "pretrain": ("pretrain", "--text", "{d}/texts", "--tokenizer", "{d}/t.model", "--out", "{out}", "--steps", "2",
                 "--warmup-steps", "0", "--batch-size", "2", "--seq-len", "16"),
    "pretrain-on": ("pretrain", "--text", "{d}/texts", "--model", "{d}/model", "--out", "{out}", "--steps", "2",
                    "--warmup-steps", "0", "--batch-size", "2", "--seq-len", "16"),
    "full": (*SFT, "--method", "full"),
    "lora": SFT,
    "reward": ("reward", "--model", "{d}/model", "--pairs", "{d}/pairs.jsonl", "--out", "{out}", "--batch-size", "8",
               "--max-new-tokens", "4"),
    "ppo": ("ppo", "--model", "{d}/model", "--reward", "{d}/reward", "--prompts", "{d}/pairs.jsonl", "--out", "{out}",
            "--iterations", "1", "--batch-size", "2", "--max-new-tokens", "4", "--epochs", "1", "--checkpoint-every",
            "1"),
}
MAKERS = {
    "merge": ("merge", "--model", "{d}/model", "--adapter", "{d}/lora", "--out", "{out}"),
    "extend": ("tokenizer", "extend", "--model", "{d}/model", "--add", "{d}/other.model", "--out", "{out}"),
    "meta": ("convert", "{d}/model", "{out}", "--to", "meta", "--dtype", "float16"),
    "hf": ("convert", "{d}/model", "{out}", "--to", "hf"),
    "gguf": ("convert", "{d}/model", "{out}", "--to", "gguf"),
    "llama2c": ("convert", "{d}/model", "{out}", "--to", "llama2c"),
    "nf4": ("quantize", "{d}/model", "{out}", "--nf4", "--no-fit-scales"),
}
COMMANDS = RUNS | MAKERS
OPENS = {"lora": lambda path: load_lora(path, Transformer(preset("tiny", vocab_size=300))), "reward": load_reward}


def content(path):
    """{name: bytes} of a file or folder; times are not compared, nor what torch.save makes of the order of objects."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files if file.name not in ("metrics.jsonl", "ppo_state.pt")}


@pytest.mark.parametrize("name", [*MAKERS, *(pytest.param(name, marks=pytest.mark.long) for name in RUNS)])
def test_a_command_that_breaks_off_in_its_last_writes_leaves_no_model_and_goes_on(name, place, tmp_path, capsys,
                                                                                  monkeypatch):
    def words(out):
        return [word.format(d=place, out=out) for word in COMMANDS[name]]

    def fail_at(number):
        calls = []

        def replace(source, target, rename=os.rename):
            calls.append(target)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rename(source, target)

        monkeypatch.setattr(os, "replace", replace)
        return calls

    whole = tmp_path / "whole" / "out"
    writes = fail_at(None)
    assert main(words(whole)) == 0
    for number in range(max(1, len(writes) - LAST), len(writes) + 1):
        out = tmp_path / str(number) / "out"
        fail_at(number)
        assert main(words(out)) == 2
        assert "No space left" in capsys.readouterr().err
        if out.exists():
            with pytest.raises(ValueError, match="not finished: go on with") as told:
                OPENS.get(name, open_weights)(out)
            resumes = ["--resume"] if "--resume" in str(told.value) else []
        else:
            resumes = []
        fail_at(None)
        assert main(words(out) + resumes) == 0
        assert content(out) == content(whole)
        assert [entry.name for entry in out.parent.iterdir() if entry.name.endswith(".partial")] == []


def test_the_file_that_makes_a_model_is_written_last_and_taken_away_first(tmp_path, monkeypatch):
    train_bpe(["some text for a vocabulary"] * 9, 300, hard_vocab_limit=False).save(tmp_path / "t.model")
    tokenizer = load_tokenizer(tmp_path / "t.model")
    model = Transformer(preset("tiny", vocab_size=tokenizer.vocab_size))
    save_with_tokenizer(tmp_path / "m", model, tokenizer)
    there, rename = [], os.replace

    def watched(source, target):
        there.append((tmp_path / "m" / "params.json").exists())
        rename(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_with_tokenizer(tmp_path / "m", model, tokenizer)
    assert there == [False] * 4 and load_model(tmp_path / "m")[1] is not None


def test_a_vocabulary_of_another_model_beside_a_llama2c_file_stays(tmp_path):
    train_bpe(["some text for a vocabulary"] * 9, 300, hard_vocab_limit=False).save(tmp_path / "t.model")
    size = load_tokenizer(tmp_path / "t.model").vocab_size
    save_model(tmp_path / "m", Transformer(preset("tiny", vocab_size=size)), tmp_path / "t.model")
    convert(tmp_path / "m", tmp_path / "1.bin", "llama2c")
    convert(tmp_path / "m", tmp_path / "2.bin", "llama2c")  # the same vocabulary serves both
    vocabulary = tmp_path / f"tok{size}.bin"
    vocabulary.write_bytes(vocabulary.read_bytes()[:-1])
    with pytest.raises(ValueError, match="holds another vocabulary"):
        convert(tmp_path / "m", tmp_path / "3.bin", "llama2c")
    assert not (tmp_path / "3.bin").exists()


@pytest.mark.skipif(fcntl is None, reason="this system has no flock")
def test_what_dead_commands_left_beside_a_new_folder_goes(place, tmp_path):
    (tmp_path / ".out.abcdefgh.partial").mkdir()
    (tmp_path / ".out.abcdefgh.partial" / "consolidated.00.pth").write_bytes(b"half")
    (tmp_path / ".outer.abcdefgh.partial").mkdir()  # of another name
    assert main([word.format(d=place, out=tmp_path / "out") for word in COMMANDS["merge"]]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".outer.abcdefgh.partial", "out"]
