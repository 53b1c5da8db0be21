"""Laws of the tour on somebody else's files: their pairs say what is good, and what needs a truth is left out aloud."""

import json
from dataclasses import replace

import pytest
import torch
from mutants import Mutant
from test_cli_feedback import mean_quality, write_the_users_files
from test_preferences import write_pairs
from test_tour import fresh_tour

from minillama import tour_own, tour_rlhf, tour_sft
from minillama.cli import build_parser
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.rlhf.preferences import Pair, thread_pairs
from minillama.tokenizer import train_bpe
from minillama.tour import TourConfig, tour
from minillama.tour_own import own_feedback
from minillama.transformer import Transformer

FEW = TourConfig(text_steps=40, text_dim=32, progress=False)


@pytest.fixture(scope="module")
def few_steps():
    """So few that no band is reached."""
    leashed = replace(tour_rlhf.LEASHED, iterations=2, batch_size=4, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_sft, "FULL", replace(tour_sft.FULL, steps=4, warmup_steps=1))
        patch.setattr(tour_own, "FULL", tour_sft.FULL)
        patch.setattr(tour_own, "LONGEST_ANSWER", 12)
        patch.setattr(tour_rlhf, "LEASHED", leashed)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """text, answers and pairs of somebody who likes short answers."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "text").mkdir()
    for i, thread in enumerate(forum.threads("mine", 60)):
        (folder / "text" / f"{i}.txt").write_text("\n".join([thread.question, *(a.text for a in thread.answers)]))
    threads = forum.threads("mine too", 60)
    (folder / "sft.jsonl").write_text("".join(
        json.dumps({"instruction": t.question, "output": t.answers[0].text}) + "\n" for t in threads))
    write_pairs(folder / "pairs.jsonl", [Pair(t.question, "No.", t.answers[0].text) for t in threads])
    return folder


def test_the_chain_walks_the_users_files_and_says_what_it_left_out(files, few_steps, tmp_path):
    tour(tmp_path, [files / "text"], FEW, files / "sft.jsonl", files / "pairs.jsonl")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["stage"] for row in report["rows"]] == ["real text", "fine-tuning", "reward model", "PPO",
                                                        "PPO's ratio", "memory"]
    assert [stage for stage, _ in report["skipped"]] == ["LoRA, QLoRA", "hidden quality", "without the leash"]
    page = (tmp_path / "report.html").read_text()
    assert all(f"Left out: {stage}: {why}" in page.replace("&#x27;", "'") for stage, why in report["skipped"])
    assert "uality" not in page.replace("Left out: hidden quality", "") and "Before and after PPO" in page


def test_without_pairs_there_is_no_feedback_and_without_answers_the_preferred_ones_are_learned(files, few_steps,
                                                                                               tmp_path):
    tour(tmp_path / "a", [files / "text"], FEW, files / "sft.jsonl")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [row["stage"] for row in report["rows"]] == ["real text", "fine-tuning", "memory"]
    assert report["skipped"][-1][0] == "reward model, PPO" and "--preferences" in report["skipped"][-1][1]
    model, tokenizer = a_model(), a_tokenizer()
    told = []
    road = type("Road", (), {"say": told.append, "skip": lambda *why: None, "out": tmp_path})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_own, "own_sft_stage", lambda road, model, tokenizer, records: told.append(records) or model)
        patch.setattr(tour_own, "feedback_stages", lambda *given: (None, type("P", (), {"policy": given[-1]})()))
        tour_own.own_stages(road, model, tokenizer, None, files / "pairs.jsonl")
    assert {record.messages[1]["content"] for record in told[-1]} == {"No."} and len(told[-1]) == 60


def a_tokenizer():
    return train_bpe([t.question for t in forum.threads(0, 50)], 300, hard_vocab_limit=False, progress=False)


def a_model(length=128):
    torch.manual_seed(0)
    return Transformer(ModelConfig(16, 1, 2, 300, max_seq_len=length)).eval()


def test_prompts_of_the_exam_are_in_no_pair_that_is_learned_and_answers_have_room():
    pairs = [pair for thread in forum.threads("x", 120) for pair in thread_pairs(thread)]
    task = own_feedback(pairs, a_tokenizer(), 128)
    learned = {pair.prompt for pair in task.pairs}
    assert learned == set(task.practice) and not learned & set(task.asked) and task.asked
    assert task.truth is None and task.watched == {} and 2 <= task.max_new_tokens <= 128
    with pytest.raises(ValueError, match="the longest prompt leaves"):
        own_feedback(pairs, a_tokenizer(), 16)


def test_the_flags_of_the_command_line():
    given = build_parser("tour").parse_args(["tour", "--text", "a", "b", "--sft", "c", "--preferences", "d"])
    assert (given.text, given.sft, given.preferences) == (["a", "b"], "c", "d")


@pytest.mark.long
def test_ppo_follows_a_notion_of_good_that_is_upside_down(tmp_path, monkeypatch):
    """The forum's posts as somebody's files, chosen and rejected exchanged: rude, wrong and sour is good here."""
    monkeypatch.chdir(tmp_path)
    write_the_users_files(threads := forum.threads("upside down", 2500))
    fresh_tour(tmp_path / "out", "--text-steps", "500", "--text-dim", "96", "--text-max-lr", "8e-3",
               "--text", "text", "--sft", "sft.jsonl", "--preferences", "pairs.jsonl")  # bands in its own terms
    folders = [next((tmp_path / "out" / "stages").glob(f"{name}-*")) for name in ("sft", "ppo")]
    before, after = (mean_quality(folder, [thread.question for thread in threads[-40:]]) for folder in folders)
    print(f"hidden quality {before:+.2f} before, {after:+.2f} after PPO on pairs that are upside down")
    assert after < before - 1.5


MUTANTS = [
    Mutant("minillama.tour_own", "split_by_prompt(pairs, 0.1)", "(pairs, pairs[:9])",
           test_prompts_of_the_exam_are_in_no_pair_that_is_learned_and_answers_have_room),
]
