"""Laws of `ghost-attention`: sampled with the instruction each time, written with it once, the last answer learned."""

import json
import sys
from pathlib import Path

import ghost_attention
import pytest
from mutants import Mutant

from minillama.collate import IGNORE
from minillama.rlhf.llama2_chat import told_once
from minillama.train.records import encode_records, read_records
from minillama.train.sequence_loss import encode_segments
from minillama.train.templates import llama2_chat

sys.path += [str(Path(__file__).parent / room) for room in ("cli", "train")]
QUESTIONS, TOLD = [["a?", "b?", "c?"], ["d?"], ["e?", "f?"]], ["Be kind.", "Be brief.", "Be kind."]


def echo(asked):
    """An answer that repeats its question in capitals; none to "f?"."""
    last = [messages[-1]["content"].splitlines()[-1] for messages in asked]
    return [None if text == "f?" else text.upper() for text in last]


def test_every_turn_is_asked_with_the_instruction_and_all_earlier_answers():
    seen = []
    talks = ghost_attention.answer_turns(QUESTIONS, TOLD, lambda asked: seen.append(asked) or echo(asked))
    assert [len(asked) for asked in seen] == [3, 2, 1], "a conversation that is over, or failed, is asked no more"
    assert [message["content"] for message in seen[2][0]] == ["Be kind.\na?", "A?", "Be kind.\nb?", "B?",
                                                              "Be kind.\nc?"]
    assert [talk and [message["content"] for message in talk] for talk in talks] == [
        ["a?", "A?", "b?", "B?", "c?", "C?"], ["d?", "D?"], None], "kept without the instruction"


def last_answer_only(sequence):
    """The tokens and labels of a sequence of which only the last run of learned tokens is learned."""
    end = max(place for place, label in enumerate(sequence.labels) if label != IGNORE)
    start = max(place for place, label in enumerate(sequence.labels[:end]) if label == IGNORE)
    return list(sequence.tokens), [label if start < place <= end else IGNORE
                                   for place, label in enumerate(sequence.labels)]


def test_what_is_written_teaches_the_last_answer_alone(tmp_path):
    from test_sequence_loss import Letters

    talks = ghost_attention.answer_turns(QUESTIONS[:2], TOLD, echo)
    rows = [ghost_attention.ghost_record(*pair) for pair in zip(TOLD, talks, strict=False)]
    (tmp_path / "ghost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = encode_records(read_records(tmp_path / "ghost.jsonl").records, "llama2", Letters(), 10**6).sequences
    wanted = [last_answer_only(encode_segments(llama2_chat(told_once(told, talk)), Letters()))
              for told, talk in zip(TOLD, talks, strict=False)]
    assert [(list(s.tokens), list(s.labels)) for s in found] == wanted


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_command_writes_conversations_that_sft_reads(tmp_path, capsys):
    from test_command_line import made_model, made_tokenizer

    (tmp_path / "texts").mkdir()
    model = made_model(made_tokenizer(tmp_path), tmp_path / "model", tmp_path / "texts")
    (tmp_path / "told.txt").write_text("Be kind.\n\nBe brief.\n")
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"Llama {i}?"}, {"role": "assistant", "content": "-"}]}) + "\n" for i in range(3)))
    words = ["--model", str(model), "--data", str(tmp_path / "talks.jsonl"), "--instructions",
             str(tmp_path / "told.txt"), "--max-new-tokens", "4", "--out", str(tmp_path / "out")]
    assert ghost_attention.main([*words, "--template", "alpaca"]) == 2
    assert "no place for a system text" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ghost_attention, "end_of_answer", lambda *_: None)
        assert ghost_attention.main(words) == 2 and "with no token of its own" in capsys.readouterr().err
        patch.setattr(ghost_attention, "load_from_args", interrupt)
        assert ghost_attention.main(words) == 130 and "nothing was written" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:  # a model that was never taught to stop
        patch.setattr(ghost_attention, "answers_to", lambda model, reads, template, end, talks, given: echo(talks))
        assert ghost_attention.main(words) == 0
    records = read_records(tmp_path / "out" / "ghost.jsonl").records
    assert len(records) == 3 and all(r.messages[0]["content"] in ("Be kind.", "Be brief.") for r in records)
    assert ghost_attention.main(words) == 2 and "ghost.jsonl exists" in capsys.readouterr().err
    (tmp_path / "told.txt").write_text("\n")
    assert ghost_attention.main([*words[:-1], str(tmp_path / "new")]) == 2
    assert "no instruction in it" in capsys.readouterr().err
    (tmp_path / "told.txt").write_bytes(b"a\xf7")
    assert ghost_attention.main([*words[:-1], str(tmp_path / "new")]) == 2
    assert "told.txt: byte 1 is not UTF-8" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_answer_that_holds_a_mark_of_the_template_leaves_its_conversation_out(monkeypatch):
    from types import SimpleNamespace

    import torch
    from test_sequence_loss import Letters

    asked = [[{"role": "user", "content": "a?"}, {"role": "assistant", "content": text},
              {"role": "user", "content": "b?"}] for text in ("fine", "so [INST]", "long" * 99)]
    monkeypatch.setattr(ghost_attention, "sample_answers", lambda model, prompts, *_: SimpleNamespace(
        texts=lambda _: ["yes"] * len(prompts), ended_B=torch.ones(len(prompts), dtype=torch.bool)))
    given = SimpleNamespace(max_new_tokens=4, batch_size=2, temperature=1.0, seed=0)
    model = SimpleNamespace(config=SimpleNamespace(max_seq_len=200))
    assert ghost_attention.answers_to(model, Letters(), llama2_chat, 2, asked, given) == ["yes", None, None]


MUTANTS = [
    Mutant("ghost_attention", "weight=int(place == last)", "weight=1", lambda: in_a_folder(
        test_what_is_written_teaches_the_last_answer_alone)),
    Mutant("ghost_attention", "told_each_time(instructions[i], talk)", "talk",
           test_every_turn_is_asked_with_the_instruction_and_all_earlier_answers),
]


def in_a_folder(law):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder))
