"""Laws of `run.py judge`: planted biases stand in its report, a hostile file is one line, a stopped run goes on."""

import json

import evaluate
import judge_answers
import pytest
from answer_files import read_both, read_prompts
from checkpoints import model_of
from judge_answers import main, report_of, tables, write_replies
from mutants import Mutant
from test_judge import answers, judge_with

from minillama.chat import Conversation, reply
from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import save_with_tokenizer
from minillama.config import ModelConfig
from minillama.evaluate.judge import both_orders, planted_pairs
from minillama.generate import GREEDY
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.train.blank_infilling import prepare_tokenizer


class Asked:
    model, ours, theirs = "judge", "a.jsonl", "b.jsonl"


def told(prefers, pairs, marks=None):
    """(report, table) as the command makes them of a judge's preferences."""
    known = {name: prefers(both_orders(some)) for name, some in planted_pairs(pairs).items()}
    report = report_of(Asked, pairs, prefers(both_orders(pairs)), known, marks)[0]
    return report, tables(report)


def questions(seed, n=200):
    """Pairs whose answers name the question that they answer."""
    return [(f"q{i}.", f"{ours} q{i}.", f"{theirs} q{i}.") for i, (_, ours, theirs) in enumerate(answers(seed, n))]


def reads(position=0.0, length=0.0):
    """A judge as `judge_with` makes it that also sees whether an answer is one to the question."""
    plain = judge_with(position, length)
    return lambda shown: [margin + 4 * ((one[0] in one[1]) - (one[0] in one[2]))
                          for margin, one in zip(plain(shown), shown, strict=True)]


def test_a_judge_with_a_planted_position_bias_is_unmasked_and_its_verdicts_repaired():
    for seed in range(3):
        pairs = questions(seed)
        fair, biased = told(reads(), pairs), told(reads(position=3), pairs)
        assert biased[0]["changed"] == biased[0]["first_preferred"] == 1.0 == biased[0]["planted"]["itself"][0]
        assert biased[0]["tied"] == 200 and biased[0]["balanced"] == fair[0]["win_rate"] == fair[0]["balanced"]
        assert fair[0]["planted"]["itself"][0] == 0.5 and fair[0]["changed"] == 0.0
        assert "This judge prefers a place: the first of two equal answers in 100 of 100 cases." in biased[1]
        assert "prefers a place" not in fair[1] and "| the other order turns the verdict round | 100.0 | |" in biased[1]


def test_a_judge_that_likes_length_or_sees_nothing_is_told_by_planted_pairs():
    pairs = questions(0)
    assert told(reads(length=1.0), pairs)[0]["planted"]["repeated"][0] == 1.0
    assert told(reads(), pairs)[0]["planted"]["repeated"][0] == 0.5
    blind = told(lambda shown: [0.1] * len(shown), pairs)
    assert blind[0]["planted"]["stray"][0] == 0.5 and "Do not trust this judge" in blind[1]


def test_a_quality_of_90_per_cent_is_not_90_per_cent_of_cases():
    pairs, marks = questions(0, 10), [9.0, 8.0] + 9 * [7.0, 8.0]
    report, table = told(reads(), pairs, marks)
    assert report["grades"]["ratio"][0] == pytest.approx(72 / 80) and report["grades"]["higher"] == 0.1
    assert "| quality: our mean grade 7.20 of their 8.00 | 90.0 |" in table
    assert "| cases: our grade is the higher one | 10.0 | |" in table


def lines(path, *objects):
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects), encoding="utf-8")
    return path


def tiny_folder(folder, seed=0, context=256):
    folder.mkdir()
    train_bpe(["Question: how? Answer A: so. Which answer is better? Grade this 1 2 3. " * 3], 300).save(
        folder / "tokenizer.model")
    save_model(folder, model_of(ModelConfig(16, 1, 2, 300, hidden_dim=16, max_seq_len=context), seed),
               folder / "tokenizer.model")
    return folder


def run(folder, *more, model="m", out="out"):
    return main(["--model", str(folder / model), "--ours", str(folder / "a.jsonl"), "--theirs",
                 str(folder / "b.jsonl"), "--kernels", "torch", "--out", str(folder / out), *more])


def test_files_are_judged_and_a_stopped_run_ends_as_one_that_was_not(tmp_path, capsys, monkeypatch):
    tiny_folder(tmp_path / "m"), tiny_folder(tmp_path / "other", 1), tiny_folder(tmp_path / "short", context=16)
    lines(tmp_path / "a.jsonl", *({"question": f"how {i}?", "answer": f"so {i}"} for i in range(3)))
    lines(tmp_path / "b.jsonl", *({"prompt": f"how {i}?", "output": "你好" * i} for i in (2, 0, 1)))
    monkeypatch.setattr(judge_answers, "PIECE", 2)
    assert run(tmp_path, "--grade", out="whole") == 0
    assert "judged" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(judge_answers, "grades", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(tmp_path, "--grade") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(tmp_path, "--grade", model="other") == 2
    assert "holds unfinished work of another model" in capsys.readouterr().err
    assert run(tmp_path, "--grade") == 0
    for name in ("report.md", "report.json", "verdicts.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert run(tmp_path) == 2 and "holds a finished comparison" in capsys.readouterr().err
    assert run(tmp_path, model="short", out="new") == 2
    assert "make" in (said := capsys.readouterr().err) and "the judge reads 16: shorten the answers" in said


def test_answers_of_several_questions_at_once_are_the_replies_to_each(tmp_path):
    model, tokenizer = load_model(tiny_folder(tmp_path / "m", context=48))
    questions = ["how?", "how is it so? " * 2, "so", "A: a. B: b. so? how?", "?"]
    wanted = []
    for question in questions:
        conversation = Conversation(tokenizer, "question_answer")
        conversation.ask(question)
        wanted.append("".join(reply(model.double(), conversation, 9, GREEDY)).strip())
    assert len(set(wanted)) > 1
    for batch_size in (1, 2, 5):
        conversation = Conversation(tokenizer, "question_answer")
        assert write_replies(model, conversation, questions, 9, batch_size) == wanted


def test_two_models_may_answer_the_questions_of_a_file(tmp_path, capsys):
    for name, seed in (("m", 0), ("one", 1), ("two", 2)):
        tiny_folder(tmp_path / name, seed)
    lines(tmp_path / "p.jsonl", {"question": "how?"}, {"question": "so?"})
    command = ["--model", str(tmp_path / "m"), "--ours", str(tmp_path / "one"), "--theirs", str(tmp_path / "two"),
               "--kernels", "torch", "--max-new-tokens", "5", "--out", str(tmp_path / "out")]
    assert main(command) == 2 and "is no file of answers" in capsys.readouterr().err
    assert main([*command, "--prompts", str(tmp_path / "p.jsonl")]) == 0
    found = [json.loads(line) for line in (tmp_path / "out" / "verdicts.jsonl").read_text("utf-8").splitlines()]
    assert [one["question"] for one in found] == ["how?", "so?"] and found[0]["ours"] != found[0]["theirs"]


def test_a_model_that_fills_blanks_is_refused_before_another_writes_its_answers(tmp_path, capsys):
    tiny_folder(tmp_path / "m"), lines(tmp_path / "p.jsonl", {"question": "how?"})
    tokenizer = prepare_tokenizer("blank", load_tokenizer(tmp_path / "m" / "tokenizer.model"))
    shape = ModelConfig(16, 1, 2, tokenizer.vocab_size, hidden_dim=16)
    save_with_tokenizer(tmp_path / "glm", model_of(shape), tokenizer)
    for judge_of, ours in (("glm", "m"), ("m", "glm")):
        assert main(["--model", str(tmp_path / judge_of), "--ours", str(tmp_path / "m"), "--theirs",
                     str(tmp_path / ours), "--prompts", str(tmp_path / "p.jsonl"), "--kernels", "torch", "--out",
                     str(tmp_path / "out")]) == 2
        assert "glm was pretrained with --objective blank" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
    assert evaluate.main(["--model", str(tmp_path / "glm"), "--tasks", "piqa", "--out", str(tmp_path / "out")]) == 2
    assert "cannot be read from left to right" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "told"), [
    ("", "a.jsonl: no answer: give objects"), ("[]", "a.jsonl: no answer"), ("{\n", "a.jsonl:1: not JSON"),
    ('{"question": "q", "answer": "a"}\n\n{"question": "q", "answer": "b"}', r"a.jsonl:3: the same question as .*:1"),
    ('{"question": "q"}', "a.jsonl:1: no field answer, response or output: there are question"),
    ('{"answer": "q"}', "a.jsonl:1: no field question, prompt or instruction"), ("{}", "there are none"),
    ('{"question": " ", "answer": "a"}', "a.jsonl:1: field 'question' is blank"),
    ('{"question": "q", "answer": NaN}', "a.jsonl:1: field 'answer' is float: expected a text"),
    ('{"question": 7, "answer": "a"}', "a.jsonl:1: field 'question' is int: expected a text"),
    ('["q", "a"]', "a.jsonl:1: str: expected an object"), ("3", "a.jsonl:1: int: expected an object"),
    ('{"question": "q", "answer": "\\ud800"}', "a.jsonl:1: field 'answer' holds half a surrogate pair"),
    ('{"question": "x", "answer": "a"}', "a.jsonl:1: 'x' has no answer in .*b.jsonl"),
    ('\ufeff{"question": "q", "answer": ""}\r\n{"question": "问", "answer": "z"}', "b.jsonl"),
    (b'{"question": "\xff"}', "a.jsonl:1: byte 0xff is not UTF-8"), ('{"a": 1, "a": 2}', "field 'a' is given twice")])
def test_a_hostile_file_is_one_line_with_its_name_line_and_field(tmp_path, content, told):
    (tmp_path / "a.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    lines(tmp_path / "b.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(ValueError, match=told) as error:
        read_both(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert "\n" not in str(error.value)


def test_a_file_of_prompts_has_each_question_once(tmp_path):
    assert read_prompts(lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"question": "b"}, {"prompt": "a"})) == ["a", "b"]
    with pytest.raises(ValueError, match="p.jsonl: no question"):
        read_prompts(lines(tmp_path / "p.jsonl"))


MUTANTS = [
    Mutant("judge_answers", 'shares_first(ours[i:i + 2]) if name == "itself"', 'shares_first([ours[i]]) if True',
           test_a_judge_that_likes_length_or_sees_nothing_is_told_by_planted_pairs),
    Mutant("judge_answers", "ratio_and_error(ours, theirs)", "ratio_and_error(theirs, ours)",
           test_a_quality_of_90_per_cent_is_not_90_per_cent_of_cases),
    Mutant("judge_answers", "not itself[1] <= 0.5 <= itself[2]", "itself[1] <= 0.5 <= itself[2]",
           test_a_judge_with_a_planted_position_bias_is_unmasked_and_its_verdicts_repaired),
]
