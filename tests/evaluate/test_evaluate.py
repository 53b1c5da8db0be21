"""Laws of `run.py evaluate`: who knows scores 100 %, who knows nothing at chance; a stopped run ends as one that was
not; and nobody's result is overwritten."""

import json
import math

import evaluate
import pytest
import torch
from benchmark_lookalikes import write_lookalikes
from benchmark_scores import score, score_questions
from benchmark_table import rows_of, table
from benchmark_tasks import CHOICES, TASKS, Question, read_task
from checkpoints import model_of
from evaluate import main
from mutants import Mutant

from minillama.checkpoint import save_model
from minillama.config import ModelConfig
from minillama.evaluate.likelihood import encode_pair
from minillama.tokenizer import train_bpe
from minillama.tokenizer.added_tokens import Tokenizer
from minillama.transformer import Transformer

V = 258


class Bytes(Tokenizer):
    """Each byte is a token; behind them begin and end."""

    vocab_size, bos_id, eos_id = V, 256, 257

    def encode(self, text, bos=False, eos=False):
        return [256] * bos + list(text.encode()) + [257] * eos


class Knowing(torch.nn.Module):
    """Knows how each question goes on, and nothing else: elsewhere all tokens are equally likely."""

    def __init__(self, questions):
        super().__init__()
        self.config = ModelConfig(8, 1, 2, V, max_seq_len=4096)
        self.tok_embeddings, self.next = torch.nn.Embedding(1, 1), {}
        for question in questions:
            context, rest = encode_pair(Bytes(), question.texts[question.gold], " " + question.answers[question.gold])
            for place, token in enumerate(rest):
                self.next[tuple(context + rest[:place])] = token

    def hidden_states(self, tokens_BT):
        hidden_BTV = torch.zeros(*tokens_BT.shape, V)
        for hidden_TV, row in zip(hidden_BTV, tokens_BT.tolist(), strict=True):
            for place in range(len(row)):
                if (token := self.next.get(tuple(row[:place + 1]))) is not None:
                    hidden_TV[place, token] = 50.0
        return hidden_BTV

    def logits(self, hidden_BTV):
        return hidden_BTV


@pytest.mark.parametrize("language", ["english", pytest.param("chinese", marks=pytest.mark.long)])
def test_who_knows_scores_everything_and_who_knows_nothing_scores_at_chance(tmp_path, language):
    """Three seeds; 3 standard errors of a guess among the choices of 48 items."""
    for name in CHOICES:
        items = []
        for seed in range(3):
            write_lookalikes(tmp_path / str(seed), seed, 16, language, [name])
            questions = read_task(tmp_path / str(seed), name, shots=0)[:16]
            known = score_questions(Knowing(questions[:4]), Bytes(), name, questions[:4])
            assert all(item[measure] for item in known for measure in TASKS[name].measures), name
            torch.manual_seed(seed)
            guessing = Transformer(ModelConfig(8, 1, 2, V, hidden_dim=8, max_seq_len=512))
            items += score_questions(guessing, Bytes(), name, questions, batch_size=64)
        (row, *_) = rows_of(items)
        for measure in TASKS[name].measures:
            error = math.sqrt(row["chance"] * (1 - row["chance"]) / row["items"])
            assert abs(row[measure][0] - row["chance"]) < 3 * error, (name, measure, row)


def test_the_table_counts_the_items_of_each_subject_and_compares_item_by_item():
    def item(task, subject, right):
        return {"task": task, "subject": subject, "log_likelihoods": [0.0] * 4, "acc": right}

    ours = [item("mmlu", "anatomy", 1), item("mmlu", "virology", 0), item("mmlu", "virology", 1),
            item("mmlu", "abstract_algebra", 1)]
    theirs = [{**one, "acc": 0} for one in ours]
    rows = rows_of(ours, theirs)
    assert [(row["group"], row["subject"], row["items"], row["acc"][0]) for row in rows] == [
        ("", "", 4, 0.75), ("STEM", "", 2, 1.0), ("STEM", "abstract_algebra", 1, 1.0), ("STEM", "anatomy", 1, 1.0),
        ("other", "", 2, 0.5), ("other", "virology", 2, 0.5)]
    assert rows[0]["difference"] == [0.75, pytest.approx(0.25)] and rows[2]["acc"][1] is None
    lines = table(rows).splitlines()
    assert lines[0] == "| task | items | chance | acc | difference |"
    assert lines[2] == "| mmlu | 4 | 25.0 | 75.0 ± 25.0 | 75.0 ± 25.0 |"
    assert lines[4] == "| mmlu: STEM: abstract_algebra | 1 | 25.0 | 100.0 ± ? | 100.0 ± ? |"


def tiny_folder(folder, seed):
    folder.mkdir()
    train_bpe(["Question: What is 3 plus 4? Answer: 7 the red cup. " * 3], 300).save(folder / "tokenizer.model")
    shape = ModelConfig(16, 1, 2, 300, hidden_dim=16, max_seq_len=64)
    save_model(folder, model_of(shape, seed), folder / "tokenizer.model")
    return folder


def run(model, out, *more, tasks=("obqa", "boolq")):
    return main(["--model", str(model), "--tasks", *tasks, "--limit", "9", "--kernels", "torch", "--out", str(out),
                 *more])


def test_a_model_that_is_not_there_is_refused_before_anything_is_written(tmp_path, capsys):
    assert run(tmp_path / "none", tmp_path / "out") == 2
    assert "none: no such file or folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_stopped_run_ends_as_one_that_was_not_stopped_and_results_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "PIECE", 4)
    model, other = tiny_folder(tmp_path / "a", 0), tiny_folder(tmp_path / "b", 1)
    assert run(model, tmp_path / "whole") == 0
    assert capsys.readouterr().out.startswith("| task | items | chance | acc | acc_norm |")
    right, calls = score, []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return right(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score", stopping)
        assert run(model, tmp_path / "stopped") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(other, tmp_path / "stopped") == 2
    assert "holds unfinished work of another model, other settings or files" in capsys.readouterr().err
    assert run(model, tmp_path / "stopped") == 0
    for name in ("report.json", "report.md"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    items = [json.loads(line) for line in (tmp_path / "stopped" / "items.jsonl").read_text("utf-8").splitlines()]
    assert len(items) == 18 and not (tmp_path / "stopped" / "work").exists()
    before = (tmp_path / "whole" / "report.json").read_bytes()
    assert run(other, tmp_path / "whole") == 2
    assert "holds a finished evaluation, of" in capsys.readouterr().err
    assert (tmp_path / "whole" / "report.json").read_bytes() == before
    _compare(model, other, tmp_path, items, capsys)


def _compare(model, other, tmp_path, items, capsys):
    assert run(other, tmp_path / "other", "--against", str(tmp_path / "whole")) == 0
    assert "item by item" in capsys.readouterr().out
    report = json.loads((tmp_path / "other" / "report.json").read_text(encoding="utf-8"))
    theirs = sum(item["acc"] for item in items if item["task"] == "obqa") / 9
    assert report["rows"][0]["difference"][0] == pytest.approx(report["rows"][0]["acc"][0] - theirs)
    assert run(other, tmp_path / "fewer", "--against", str(tmp_path / "whole"), tasks=("obqa",)) == 2
    assert "--against" in capsys.readouterr().err
    assert run(other, tmp_path / "fewer", "--against", str(tmp_path / "nothing")) == 2
    assert "holds no finished evaluation: make one there" in capsys.readouterr().err


def test_a_model_writes_its_answers_and_a_text_is_read_to_its_end(tmp_path, capsys):
    model, out = tiny_folder(tmp_path / "a", 0), tmp_path / "out"
    assert run(model, out, "--shots", "0", "--max-new-tokens", "4", "--stride", "8",
               tasks=("gsm8k", "triviaqa", "text")) == 0
    said = capsys.readouterr().out
    assert "| task | items | chance | exact_match | last_number |" in said
    assert "| task | items | bytes | bits_per_byte | byte_perplexity | word_perplexity |" in said
    items = [json.loads(line) for line in (out / "items.jsonl").read_text("utf-8").splitlines()]
    assert len(items) == 27 and {len(item["written"]) > 0 for item in items if "written" in item} <= {True, False}
    (row,) = [row for row in json.loads((out / "report.json").read_text("utf-8"))["rows"]
              if (row["task"], row["group"]) == ("text", "") and row["subject"] == ""]
    nats, n_bytes = (sum(item.get(key, 0) for item in items) for key in ("nats", "bytes"))
    assert row["bits_per_byte"][0] == pytest.approx(nats / n_bytes / math.log(2))
    assert run(model, tmp_path / "no", "--shots", "0", "--max-new-tokens", "64", tasks=("gsm8k",)) == 2
    assert "max_new_tokens 64 leave no room" in capsys.readouterr().err.replace("--max-new-tokens", "max_new_tokens")


def test_the_table_of_texts_divides_all_nats_by_all_bytes_and_words():
    documents = [{"task": "text", "subject": "", "nats": nats, "tokens": 9, "bytes": n_bytes, "words": n_words}
                 for nats, n_bytes, n_words in ((6.0, 10, 2), (2.0, 6, 2))]
    row = rows_of(documents, [{**one, "nats": one["nats"] + 1} for one in documents])[0]
    assert row["bits_per_byte"][0] == pytest.approx(0.5 / math.log(2))
    assert row["byte_perplexity"][0] == pytest.approx(math.exp(0.5))
    assert row["word_perplexity"][0] == pytest.approx(math.exp(2.0))
    assert row["difference"][0] == pytest.approx(-2 / 16 / math.log(2)) and (row["bytes"], row["tokens"]) == (16, 18)
    one = rows_of(documents[:1])[0]
    assert one["bits_per_byte"][1] is None and "± ?" in table([one])


def test_a_question_that_stands_twice_is_told(capsys):
    question = Question(("a",), ("b",), 0, "f:1")
    evaluate.tell_repeated({"piqa": [question, question._replace(place="f:2"), question._replace(answers=("c",))]})
    assert "piqa: 1 questions stand there again, as f:2 that is f:1" in capsys.readouterr().err


def test_the_model_and_not_its_place_is_what_a_result_belongs_to():
    one, two = (model_of(ModelConfig(16, 1, 2, 30, hidden_dim=16), seed) for seed in (0, 1))
    assert evaluate.fingerprint(one) != evaluate.fingerprint(two)
    assert evaluate.fingerprint(one) == evaluate.fingerprint(model_of(ModelConfig(16, 1, 2, 30, hidden_dim=16), 0))


def _table():
    test_the_table_counts_the_items_of_each_subject_and_compares_item_by_item()


MUTANTS = [
    Mutant("benchmark_table", "exp(per_word), exp(per_word)", "exp(per_byte), exp(per_word)",
           test_the_table_of_texts_divides_all_nats_by_all_bytes_and_words),
    Mutant("benchmark_table", "[theirs[number] for number in numbers]", "mine", _table),
    Mutant("benchmark_table", "sum(1 / len(", "sum(2 / len(", _table),
    Mutant("evaluate", "zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), crc)",
           "zlib.crc32(bytes(tensor.shape), crc)", test_the_model_and_not_its_place_is_what_a_result_belongs_to)]
