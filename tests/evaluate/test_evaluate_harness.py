"""The same questions to the same model by the program that published tables are made with: equal item by item.

lm-evaluation-harness runs in a process of its own, offline, with its own task files; the data are look-alikes in the
form of the hub, while ours reads them in the form of their authors.
"""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_lookalikes import EXAMS, MAKERS, write_lookalikes
from benchmark_scores import MATCHES, score, score_questions
from benchmark_table import rows_of
from benchmark_tasks import CHOICES, Question, read_task
from checkpoints import model_of

from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig
from minillama.evaluate.likelihood import text_nats_and_counts
from minillama.tokenizer import load_tokenizer

HERE = Path(__file__).parents[1]
SHAPE = ModelConfig(32, 2, 4, 400, hidden_dim=48, max_seq_len=512, n_kv_heads=2)
FIRST = {"mmlu": "abstract_algebra", "ceval": "accountant", "cmmlu": "agronomy"}
TEXT = "The red cup. Kim looks at it,\n\nand takes the blue box! 小明拿起杯子。 " * 30


def harness(*arguments):
    """Run harness_scores.py; skip where the harness is not installed."""
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
                   "HF_HOME": str(arguments[0] / "hub")}
    known = subprocess.run([sys.executable, "-c", "import lm_eval, datasets, transformers"], capture_output=True)
    if known.returncode:
        pytest.skip("the oracle lm-eval is not installed: pip install -r tests/oracles.txt")
    done = subprocess.run([sys.executable, str(HERE / "harness_scores.py"), *map(str, arguments)], env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(arguments[2]).read_text(encoding="utf-8"))


def hub_form(name, row):
    """A row of a look-alike as the hub's copy of the benchmark has it."""
    if name == "boolq":
        return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}
    if name == "hellaswag":
        return {**row, "label": str(row["label"])}
    if name.startswith("arc"):
        choices = {key: [one[key] for one in row["question"]["choices"]] for key in ("text", "label")}
        return {"question": row["question"]["stem"], "choices": choices, "answerKey": row["answerKey"]}
    if name == "mmlu":
        question, *choices, answer = row
        return {"question": question, "choices": choices, "answer": "ABCD".index(answer)}
    if name in EXAMS:
        names = EXAMS[name][0][1:]
        return dict(zip(names, row[1:], strict=True))
    return row


def write_hub_form(ours, theirs):
    """The look-alikes below `ours`, of each exam one subject, for the harness."""
    for name in CHOICES:
        for split in {"train", "val", "test", "dev"}:
            pattern = f"{split}.jsonl" if name in MAKERS else f"{split}/{FIRST[name]}*.csv"
            for path in (ours / name).glob(pattern):
                if path.suffix == ".csv":
                    with open(path, encoding="utf-8", newline="") as file:
                        rows = list(csv.reader(file))[bool(EXAMS[name][0]):]
                else:
                    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                hub = "validation" if split == "val" and name != "ceval" else split
                target = theirs / name / f"{hub}.jsonl"
                target.parent.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(hub_form(name, row), ensure_ascii=False) + "\n" for row in rows]
                target.write_text("".join(lines), encoding="utf-8")
    (theirs / "text.txt").write_text(TEXT, encoding="utf-8")


def tokenizer_file(folder, add_bos):
    """A byte-level BPE of transformers' own making, which both sides read."""
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle: pip install -r tests/oracles.txt")
    transformers = pytest.importorskip("transformers", reason="the oracle: pip install -r tests/oracles.txt")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator([TEXT, "Question: What is the day after? Answer: red blue 答案："], trainer)
    if add_bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return load_tokenizer(folder / "tokenizer.json")


@pytest.mark.long
@pytest.mark.parametrize(("shots", "language", "add_bos"), [(0, "english", True), (3, "chinese", False)])
def test_each_item_is_as_the_harness_finds_it(tmp_path, shots, language, add_bos):
    """Tolerance of a log-likelihood: two fp32 programs, sums of 1 to 60 terms of size 10."""
    model = model_of(SHAPE).eval()
    write_huggingface(tmp_path / "model", from_model(model))
    tokenizer = tokenizer_file(tmp_path / "model", add_bos)
    write_lookalikes(tmp_path / "ours", seed=5, n=20, language=language)
    write_hub_form(tmp_path / "ours", tmp_path / "theirs")
    found = harness(tmp_path / "model", tmp_path / "theirs", tmp_path / "found.json", shots)
    for name in CHOICES:
        questions = read_task(tmp_path / "ours", name, shots)
        questions = [one for one in questions if one.subject == FIRST.get(name, "")]
        items = score_questions(model, tokenizer, name, questions)
        assert len(items) == len(found[name]) == 20
        for item, theirs in zip(items, found[name], strict=True):
            assert item["log_likelihoods"] == pytest.approx(theirs["sums"], rel=2e-5, abs=1e-3), name
            assert {key: item[key] for key in theirs if key in item} == {
                key: value for key, value in theirs.items() if key in item}, name
    if not add_bos:  # else the harness reads bos twice in front of a text
        assert -text_nats_and_counts(model, tokenizer, TEXT)["nats"] == pytest.approx(found["text"][0], rel=2e-5)


PLANTED = {"gsm8k": ["so it is\n#### {0}", "{0}", "#### ${0}.", "#### {0}.0 or 7", "first 3, then {0}.", "none", "",
                     "####", "#### -{0}", "It is 1,2{0}", "a #### 3 b #### {0}"],
           "triviaqa": [" {0}", "{0}!", "the {0}", " {0} ", "", "KIM", "小明", "{0}-"]}


def planted_answers(name, question):
    """Answers to a question, right and wrong, in spellings that a normalization may or may not forgive."""
    right = question.answers[0].rpartition("#### ")[2]
    return [text.format(right) for text in PLANTED[name]]


@pytest.mark.long
@pytest.mark.parametrize(("shots", "language", "add_bos"), [(0, "english", True), (3, "chinese", False)])
def test_what_a_model_writes_and_what_counts_as_right_is_as_in_the_harness(tmp_path, shots, language, add_bos):
    known = tokenizer_file(tmp_path / "known", add_bos).vocab_size
    model = model_of(replace(SHAPE, vocab_size=known)).eval()  # it writes: each of its tokens must have a spelling
    write_huggingface(tmp_path / "model", from_model(model))
    tokenizer = tokenizer_file(tmp_path / "model", add_bos)
    write_lookalikes(tmp_path / "ours", seed=5, n=12, language=language, names=["gsm8k", "triviaqa", "text"])
    asked = {name: read_task(tmp_path / "ours", name, shots) for name in ("gsm8k", "triviaqa")}
    for name, questions in asked.items():
        (tmp_path / "theirs" / name).mkdir(parents=True)
        for path in (tmp_path / "ours" / name).glob("*.jsonl"):
            target = "validation.jsonl" if path.stem == "val" else path.name
            (tmp_path / "theirs" / name / target).write_bytes(path.read_bytes())
        planted = [planted_answers(name, question) for question in questions]
        (tmp_path / "theirs" / f"{name}.json").write_text(json.dumps(planted), encoding="utf-8")
    documents = [*read_task(tmp_path / "ours", "text"), Question((TEXT,), (), 0)]
    texts = [one.texts[0] for one in documents]
    (tmp_path / "theirs" / "documents.json").write_text(json.dumps(texts), encoding="utf-8")
    found = harness(tmp_path / "model", tmp_path / "theirs", tmp_path / "found.json", shots)
    filters = {"gsm8k": {"exact_match": "strict-match", "last_number": "flexible-extract"},
               "triviaqa": {"exact_match": "remove_whitespace"}}
    for name, questions in asked.items():
        items = score(model, tokenizer, name, questions, max_new_tokens=24)
        assert [item["written"] for item in items] == [item["written"] for item in found[name]], name
        for question, theirs in zip(questions, found[name], strict=True):
            for text, right in zip(planted_answers(name, question), theirs["right"], strict=True):
                for measure, matches in MATCHES[name].items():
                    assert matches(text, question.answers) == right[filters[name][measure]], (name, measure, text)
    if not add_bos:  # else the harness reads bos twice in front of a text
        row = rows_of(score(model, tokenizer, "text", documents))[0]
        for measure, theirs in found["documents"].items():
            assert row[measure][0] == pytest.approx(theirs, rel=1e-4), measure
