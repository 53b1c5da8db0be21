"""Laws of the tour on somebody else's files: their pairs say what is good, and what needs a truth is left out aloud."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from mutants import Mutant
from test_feedback_commands import mean_quality, write_the_users_files
from test_preferences import write_pairs
from test_tour import fresh_tour

from minillama.cli.command_line import build_parser
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.evaluate import held_out
from minillama.evaluate.held_out import LONGEST_ANSWER
from minillama.rlhf.preferences import Pair, thread_pairs
from minillama.rlhf.rollout import prompts_of
from minillama.tokenizer import train_bpe
from minillama.tour import tour_own, tour_rlhf, tour_sft
from minillama.tour.tour import TourConfig, TourReport, tour
from minillama.tour.tour_own import own_feedback
from minillama.train.data import question_held_out
from minillama.train.records import Record, encode_records
from minillama.train.sft import answer_loss
from minillama.transformer import Transformer

FEW = TourConfig(text_steps=40, text_dim=32, progress=False)


@pytest.fixture(scope="module")
def few_steps():
    """So few that no band is reached."""
    penalized = replace(tour_rlhf.PENALIZED, iterations=2, batch_size=4, epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_sft, "FULL", replace(tour_sft.FULL, steps=4, warmup_steps=1))
        patch.setattr(tour_own, "OWN_SFT", tour_sft.FULL)
        patch.setattr(held_out, "LONGEST_ANSWER", 12)
        patch.setattr(tour_rlhf, "OWN_PPO", penalized)
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
    assert [stage for stage, _ in report["skipped"]] == ["LoRA, QLoRA", "hidden quality", "without the KL penalty"]
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
    report = type("TourReport", (), {"say": told.append, "skip": lambda *why: None, "out": tmp_path})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_own, "own_sft_stage", lambda *given: told.append(given[-1]) or model)
        patch.setattr(tour_own, "feedback_stages", lambda *given: None)
        tour_own.own_stages(report, model, tokenizer, None, files / "pairs.jsonl")
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


def own_records(count):
    return [Record(({"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": f"At {n}."}))
            for n in range(count)]


@pytest.mark.parametrize(("after", "passed"), [(-0.25, True), (0.0, False), (0.5, False)])
def test_own_answers_are_learned_on_nine_tenths_and_judged_and_shown_on_the_rest(after, passed, monkeypatch, tmp_path):
    """The tuning is a stand-in that ends so many nats above its start."""
    model, tokenizer, records, seen = a_model(), a_tokenizer(), own_records(70), []
    held_out = [record for record in records if question_held_out(record.question, 0.1)]
    kept = [record for record in records if record not in held_out]
    assert len(held_out) >= 4 and len(kept) > 4 * len(held_out)
    expected = [encode_records(part, "question_answer", tokenizer, 128).sequences for part in (kept, held_out)]
    before = answer_loss(model, expected[1])

    def trained(report, name, start, tokenizer, lessons, config):
        seen.append((name, start, lessons.train, lessons.held_out))
        return tour_sft.Tuned("tuned", [{"held_out_loss": 9.0}, {"held_out_loss": before + after}])

    monkeypatch.setattr(tour_own, "tune_or_load", trained)
    def answers(model, tokenizer, questions):
        assert len(questions) == (len(held_out) if model == "tuned" else 4), "of the old model more are not shown"
        return [(f"{'new' if model == 'tuned' else 'old'} {question}", True) for question in questions]

    monkeypatch.setattr(tour_own, "answers", answers)
    report = TourReport(tmp_path, FEW)
    assert tour_own.own_sft_stage(report, model, tokenizer, records) == "tuned"
    assert seen == [("sft", model, *expected)]
    (row,), (page,) = report.rows, report.pages
    assert row["pass"] is passed and row["got"] == f"{before:.3f} to {before + after:.3f} nats a token"
    assert f"{len(held_out)} unseen answers" in row["expected"]
    shown = [page.find(f"> {kind} Where is {record.messages[0]['content'].split()[-1]}") for record in held_out[:4]
             for kind in ("old", "new")]
    assert -1 not in shown and shown == sorted(shown) and page.count("<blockquote>") == 8


def test_one_side_of_the_answers_left_empty_is_refused():
    with pytest.raises(ValueError, match="3 answers leave one side of the split empty"):
        tour_own.own_answers(own_records(3), a_tokenizer(), 128)


def test_answers_that_the_context_cuts_are_refused_before_any_training():
    _, parts = tour_own.own_answers(own_records(60), a_tokenizer(), 128)
    room = min(len(sequence.tokens) for part in parts for sequence in part) - 1
    with pytest.raises(ValueError, match=f"60 of 60 answers do not end within the {room} tokens"):
        tour_own.own_answers(own_records(60), a_tokenizer(), room)


def test_a_batch_of_pairs_is_enough_and_one_fewer_is_not(tmp_path):
    """Those that are held out come first, and then as many as leave 15, and 16, pairs to learn from."""
    pairs = [Pair(f"Where is {n}?", "Here.", "No.") for n in range(60)]
    pairs.sort(key=lambda pair: not question_held_out(pair.prompt, 0.1))
    held_out = sum(question_held_out(pair.prompt, 0.1) for pair in pairs)
    assert held_out > 0
    for wanted in (15, 16):
        count = held_out + wanted
        write_pairs(tmp_path / "pairs.jsonl", pairs[:count])
        records = tmp_path / "sft.jsonl"
        records.write_text("".join(json.dumps({"instruction": f"Where is {n}?", "output": "Here."}) + "\n"
                                   for n in range(70)))
        with (pytest.raises(ValueError, match="15 are to be learned, do not fill a batch of 16") if wanted == 15
              else nullcontext()):
            tour_own.check_lengths(a_tokenizer(), 128, records, tmp_path / "pairs.jsonl")


def test_a_pair_that_does_not_fit_the_context_is_refused_before_anything_is_trained(tmp_path):
    pairs = [Pair(f"Where is {n}?", "Here.", "No" * (200 if n == 33 else 1)) for n in range(60)]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    with pytest.raises(ValueError, match="128"):
        tour_own.check_lengths(a_tokenizer(), 128, None, tmp_path / "pairs.jsonl")


def test_an_answer_may_be_as_long_as_the_longest_of_the_pairs_and_two_tokens_or_as_the_room_left(monkeypatch):
    monkeypatch.setattr(held_out, "LONGEST_ANSWER", LONGEST_ANSWER)
    tokenizer = a_tokenizer()
    pairs = [Pair(f"Where is {n}?", "Here.", "No" + " indeed" * (n % 7) + ".") for n in range(60)]
    longest = max(len(tokenizer.encode(text)) for pair in pairs for text in pair[1:])
    asked = max(len(tokens) for tokens in prompts_of([pair.prompt for pair in pairs], tokenizer))
    for context, most in ((128, longest + 2), (asked + longest + 2, longest + 2), (asked + longest + 1, longest + 1),
                          (asked + 2, 2)):
        assert own_feedback(pairs, tokenizer, context).max_new_tokens == most
    with pytest.raises(ValueError, match=f"leaves 1 of {asked + 1} tokens"):
        own_feedback(pairs, tokenizer, asked + 1)
    endless = [*pairs, Pair("Where is it?", "Here.", "No" * 999)]
    assert own_feedback(endless, tokenizer, 500).max_new_tokens == 128


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
    Mutant("minillama.tour.tour_own", "split_by_prompt(pairs, 0.1)", "(pairs, pairs[:9])",
           test_prompts_of_the_exam_are_in_no_pair_that_is_learned_and_answers_have_room),
]
