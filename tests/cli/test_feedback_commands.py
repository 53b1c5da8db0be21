"""Laws of `reward` and `ppo`: the user's own pairs decide what is good, whatever anyone else thinks of it."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file
from test_preferences import write_pairs

from minillama.checkpoint import load_model
from minillama.checkpoint.convert import quantize
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.evaluate.held_out import split_by_prompt
from minillama.generate import generate_text
from minillama.quant.quantize_linears import quantization_of
from minillama.rlhf.preferences import Pair, read_prompts, thread_pairs
from minillama.rlhf.reward_file import load_reward, save_reward
from minillama.rlhf.reward_model import RewardModel
from minillama.sampling import Sampling
from minillama.transformer import Transformer

FIXTURES = (model_folder, tokenizer_file)  # of test_cli, used here by name
FEW = ("--iterations", "2", "--batch-size", "4", "--max-new-tokens", "6", "--epochs", "2", "--checkpoint-every", "1")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, [Pair(f"Count to {n % 20}.", " ".join(map(str, range(1 + n % 12))), "no" * (1 + n % 5))
                       for n in range(1, 60)])
    return path


@pytest.fixture(scope="module")
def reward_folder(model_folder, pairs_file, tmp_path_factory):
    from minillama.cli.command_line import main

    out = tmp_path_factory.mktemp("reward") / "out"
    words = ("reward", "--model", model_folder, "--pairs", pairs_file, "--out", out, "--batch-size", 8)
    assert main([str(word) for word in words]) == 0
    return out


def test_a_saved_reward_model_gives_the_same_scores_again(reward_folder, tmp_path):
    model, tokenizer = load_reward(reward_folder)
    save_reward(tmp_path / "again", model, tokenizer)
    tokens_BT, mask_BT = torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool)
    assert torch.equal(load_reward(tmp_path / "again")[0](tokens_BT, mask_BT), model(tokens_BT, mask_BT))
    assert model.deviation != 1 and not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_reward_model_that_is_quantized_stays_one():
    """Within 4 bits: scores keep three quarters of their spread in common."""
    torch.manual_seed(2)
    model = RewardModel(Transformer(ModelConfig(64, 2, 2, 40, max_seq_len=16)), 64)
    tokens_BT, mask_BT = torch.randint(40, (32, 16)), torch.ones(32, 16, dtype=torch.bool)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        (folder / "plain").mkdir()
        save_reward(folder / "plain", model, None)
        quantize(folder / "plain", folder / "nf4", "nf4")
        read, _ = load_reward(folder / "nf4")
        assert quantization_of(read.body) and torch.equal(read.head.weight, model.head.weight)
        scores = torch.stack([read(tokens_BT, mask_BT), model(tokens_BT, mask_BT)])
    assert torch.corrcoef(scores)[0, 1] > 0.75


def test_scores_are_normalised_over_answers_as_long_as_ppos_will_be(model_folder, pairs_file, tmp_path, monkeypatch):
    from minillama.cli import feedback_commands
    from minillama.cli.command_line import main

    sample, asked = feedback_commands.sample_answers, []
    monkeypatch.setattr(feedback_commands, "sample_answers", lambda model, prompts, eos_id, longest, **more: (
        asked.append(longest), sample(model, prompts, eos_id, longest, **more))[1])
    words = ("reward", "--model", model_folder, "--pairs", pairs_file, "--out", tmp_path / "out", "--batch-size", 8)
    assert main([str(word) for word in (*words, "--max-new-tokens", 7)]) == 0 and asked == [7]


def test_what_is_no_reward_model_is_refused(reward_folder, model_folder, tmp_path):
    with pytest.raises(ValueError, match="holds no reward model"):
        load_reward(model_folder)
    for content, message in ((b"nonsense", "damaged"), ({"weight": torch.ones(1, 3)}, "'weight' is not a finite"), (
            {"weight": torch.full((1, load_reward(reward_folder)[0].head.in_features), torch.nan)}, "finite")):
        folder = tmp_path / message[:7].strip("'")
        shutil.copytree(reward_folder, folder, dirs_exist_ok=True)
        if isinstance(content, bytes):
            (folder / "reward_head.pth").write_bytes(content)
        else:
            torch.save(content, folder / "reward_head.pth")
        with pytest.raises(ValueError, match=message):
            load_reward(folder)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ppo_leaves_what_chat_talks_with_and_its_metrics(method, model_folder, reward_folder, pairs_file, tmp_path,
                                                         capsys):
    out = tmp_path / "out"
    words = ("ppo", "--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, "--out", out,
             "--method", method, *FEW)
    code, said, err = run(capsys, *words)
    assert (code, said) == (0, "") and "nats from the start" in err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1] and rows[0]["kl"] == 0.0
    talk = ("--model", out) if method == "full" else ("--model", model_folder, "--adapter", out)
    assert run(capsys, "chat", *talk, "--max-new-tokens", "3", stdin="Count to 3.\n/exit\n")[0] == 0
    code, _, err = run(capsys, *words)
    assert code == 2 and "add --resume" in err
    assert run(capsys, *words, "--resume")[0] == 0


def test_a_check_writes_no_run_and_says_what_it_found(model_folder, reward_folder, pairs_file, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("ppo", "--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, "--out", out, *FEW)
    code, said, err = run(capsys, *words, "--check")
    assert (code, said) == (0, "") and "nats from the start" in err
    assert "of the first answers were cut off at 6 tokens" in err, "the model was never taught to stop"
    assert not out.exists() or not [path for path in out.rglob("*") if path.suffix in (".jsonl", ".pt", ".pth", ".bin")]
    assert run(capsys, *words)[0] == 0, "the run itself may follow in the same folder"


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_ppo_learns_without_a_value_model_where_it_is_told_so(algorithm, model_folder, reward_folder, pairs_file,
                                                             tmp_path, capsys):
    words = ("ppo", "--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, "--out",
             tmp_path / "out", *FEW, "--algorithm", algorithm)
    code, _, err = run(capsys, *words, "--answers", 1)
    assert code == 2 and "answers is 1: a group needs two or more" in err
    assert run(capsys, *words)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("value_loss" not in row for row in rows)
    code, _, err = run(capsys, *words[:-1], "ppo", "--answers", 4, "--resume")
    assert code == 2 and "use --algorithm " + algorithm in err


def test_ppo_mixes_the_users_text_in(model_folder, reward_folder, pairs_file, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("All llamas count to ten before they sleep. " * 40)
    words = ("ppo", "--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, "--out",
             tmp_path / "out", *FEW, "--pretraining-text", tmp_path / "text.txt")
    code, _, err = run(capsys, *words)
    assert code == 2 and "give both or neither" in err
    assert run(capsys, *words, "--pretraining-weight", "0.5")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["other_loss"] > 0.5 for row in rows)


@pytest.mark.parametrize(("text", "message"), [
    ("", "no prompt in it"), ('{"prompt": 3}\n', ":1: field 'prompt' is int, not a string"),
    ("\n[1]\n", ":2: a JSON int, not an object"),
    ('{"prompt": "a"}\n{"pro\n', ":2: not JSON"), ("[" * 100_000, ":1: the array is broken"),
])
def test_a_bad_file_of_prompts_is_named_with_its_line(text, message, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_a_reward_model_never_takes_the_place_of_a_model(model_folder, pairs_file, capsys):
    before = (model_folder / "consolidated.00.pth").read_bytes()
    code, _, err = run(capsys, "reward", "--model", model_folder, "--pairs", pairs_file, "--out", model_folder)
    assert code == 2 and "already holds a model" in err
    assert (model_folder / "consolidated.00.pth").read_bytes() == before


def test_all_pairs_of_a_prompt_are_on_one_side():
    train, held_out = split_by_prompt([Pair(f"p{n % 50}", "a", "b") for n in range(500)], 0.2)
    assert len(train) + len(held_out) == 500
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}


@pytest.mark.long
def test_the_whole_chain_on_the_users_files_follows_a_notion_of_good_that_is_upside_down(tmp_path, capsys, monkeypatch):
    """Text, answers and pairs as files, every command in turn, and the pairs turned round: rude is good here."""
    monkeypatch.chdir(tmp_path)
    write_the_users_files(threads := forum.threads("upside down", 2500))
    for line in (
            "tokenizer train --text text --vocab-size 700 --out t.model",
            "pretrain --text text --tokenizer t.model --out base --steps 500 --seq-len 128 --max-lr 8e-3",
            "sft --model base --data sft.jsonl --out sft --method full --template question_answer --steps 150 "
            "--max-lr 2e-3",
            "reward --model sft --pairs pairs.jsonl --out judge --max-lr 2e-3",
            "ppo --model sft --reward judge --prompts pairs.jsonl --out ppo --iterations 20 --kl-coefficient 0.15 "
            "--kl-target 3 --kl-horizon 300"):
        code, _, err = run(capsys, *line.split())
        assert code == 0, err
    questions = [thread.question for thread in threads[-40:]]
    before, after = (mean_quality(folder, questions) for folder in ("sft", "ppo"))
    assert after < before - 1.5, (before, after)


def write_the_users_files(threads):
    """text/ (files of a few posts), sft.jsonl, and pairs.jsonl with chosen and rejected exchanged."""
    posts = [document.text for document in forum.documents("upside down", 9000)]
    Path("text").mkdir()
    for i in range(0, len(posts), 30):
        Path(f"text/{i}.txt").write_text("\n".join(posts[i:i + 30]))
    Path("sft.jsonl").write_text("".join(
        json.dumps({"instruction": t.question, "output": t.answers[0].text}) + "\n" for t in threads))
    pairs = [pair for thread in threads[:900] for pair in thread_pairs(thread)][:2400]
    write_pairs("pairs.jsonl", [Pair(pair.prompt, pair.rejected, pair.chosen) for pair in pairs])


def mean_quality(folder, questions):
    model, tokenizer = load_model(folder)
    answers = ["".join(generate_text(model.eval(), tokenizer, f"Question: {question}\n\nAnswer:", 40,
                                     Sampling(temperature=1.0), seed=i)) for i, question in enumerate(questions)]
    return sum(map(forum.quality, questions, answers)) / len(questions)


MUTANTS = [
    Mutant("minillama.checkpoint.convert", "shutil.copyfile(head, folder / HEAD_FILE)", "pass",
           test_a_reward_model_that_is_quantized_stays_one),
    Mutant("minillama.evaluate.held_out", "question_held_out(pair.prompt,", "question_held_out(str(len(parts[0])),",
           test_all_pairs_of_a_prompt_are_on_one_side),
]
