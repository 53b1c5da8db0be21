"""Laws of the tour's stages, each by itself: what is trained and generated is a stand-in, the bands are the tour's."""

import math
from dataclasses import replace

import pytest
from checkpoints import in_a_folder
from mutants import Mutant
from test_tour import FEW

from minillama.corpus.forum import threads
from minillama.corpus.grammar import Document
from minillama.tour import tour as tour_module
from minillama.tour.tour import TourReport, text_stage, tour
from minillama.tour.tour_pages import context


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Its stages draw nothing."""
    for name in ("corpus_page", "tokenizer_page", "pretrain_page", "attention_page", "talk_page", "text_page"):
        monkeypatch.setattr(tour_module.pages, name, lambda *shown, name=name: (name, *shown))
    return TourReport(tmp_path, FEW)


@pytest.mark.parametrize(("beside", "passed"), [(0.0, True), (1.41, True), (-1.41, True), (1.42, False),
                                                (-1.42, False)])
def test_the_corpus_is_within_four_standard_errors_of_its_entropy(report, monkeypatch, beside, passed):
    """8 documents, 1 bit above and below their mean: the standard error is 1 / sqrt(8), four of them are 1.414."""
    train = [Document(f"{i} a b c", 30 + beside + (-1) ** i) for i in range(8)]
    held_out = [Document("0 a b c", 9.0), Document("x", 9.0), Document("y", 9.0)]
    asked = []
    monkeypatch.setattr(tour_module, "mixture", lambda *given: asked.append(given) or (
        held_out if given[2:] else train))
    monkeypatch.setattr(tour_module, "mixture_entropy_bits", lambda: 30.0)
    assert tour_module.corpus_stage(report) == (train, held_out)
    assert asked == [(FEW.seed, FEW.documents), (FEW.seed, 400, "held-out")]
    (row,) = report.rows
    assert row["pass"] is passed and "(1.41)" in row["expected"] and row["got"].endswith(f" {30 + beside:.2f}")
    assert report.pages == [("corpus_page", train, 30.0, 1, 3)]


def test_a_document_that_does_not_come_back_misses_the_tokenizers_band(report, monkeypatch):
    train, held_out = ([Document(f"the llama {i} ate hay {i * i}. ", 9.0) for i in range(first, first + 90)]
                       for first in (0, 900))
    monkeypatch.setattr(tour_module, "PIECES", 300)
    tokenizer = tour_module.tokenizer_stage(report, train, held_out)
    ids = [tokenizer.encode(document.text) for document in held_out]
    rate = sum(len(document.text) for document in held_out) / sum(map(len, ids))
    assert report.rows[0]["pass"] and report.rows[0]["got"] == f"90, at {rate:.2f} characters a token"
    assert report.pages == [("tokenizer_page", tokenizer, held_out[0].text)] and tokenizer.vocab_size == 300
    whole = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, given: "" if given == ids[7] else whole(self, given))
    tour_module.tokenizer_stage(report, train, held_out)
    assert not report.rows[1]["pass"] and report.rows[1]["got"].startswith("89, ")


@pytest.mark.parametrize(("above", "passed"), [(-0.5, True), (0.099, True), (0.101, False)])
def test_pretraining_ends_within_a_tenth_of_the_entropy(report, monkeypatch, above, passed):
    held_out = [Document("a", 20.0), Document("b", 40.0), Document("c", 30.0)]  # 90 bits in all
    seen, checked = [], []
    report.check_lengths = lambda *given: checked.append(given)
    monkeypatch.setattr(tour_module, "train_or_load",
                        lambda *given: seen.append(given) or ("model", "tokens", "history"))
    monkeypatch.setattr(tour_module, "model_nats", lambda *given, **sizes: seen.append((given, sizes)) or (
        (1 + above) * 90 * math.log(2), 17))
    tokenizer = type("Tokenizer", (), {"vocab_size": 301})
    assert tour_module.pretrain_stage(report, tokenizer, [Document("d", 1.0)], held_out) == "model"
    (row,) = report.rows
    assert row["pass"] is passed and row["got"] == f"{30 * (1 + above):.1f} bits a document, {above:+.1%}"
    (_, name, shape, _, path, split, settings), measured = seen
    assert (name, shape.vocab_size, path) == ("pretrain", 301, report.out / "tokenizer.model")
    assert split == (["d"], ["a", "b", "c"]) and (settings.steps, settings.max_lr) == (FEW.steps, 8e-3)
    assert measured == (("model", "tokens"), {"seq_len": 128, "stride": 64}) and checked == [(tokenizer, 256)]
    assert report.pages == [("pretrain_page", "history", "tokens", held_out, 30.0),
                          ("attention_page", "model", tokenizer, "a")]


@pytest.mark.parametrize(("good", "passed"), [(11, False), (12, True), (16, True)])
def test_three_quarters_of_16_answers_to_unseen_questions_must_be_the_forums(report, monkeypatch, capsys, good, passed):
    asked = []

    def generate(model, tokenizer, question, tokens, sampling, seed):
        asked.append((question, seed))
        assert tokens == 64 and sampling.temperature == 0.7
        verb = question.split()[3]  # How do I fix ...
        return [" Just ", "go."] if seed >= good else [f" Just {verb} ", "the thing for 12 minutes. That is all."]

    monkeypatch.setattr(tour_module, "generate_text", generate)
    tour_module.talk_stage(report, None, None)
    assert asked == [(thread.question, i) for i, thread in enumerate(threads(FEW.seed + 1, 16))]
    (row,), ((_, shown),) = report.rows, report.pages
    assert (row["pass"], row["got"]) == (passed, str(good)) and "12 of 16" in row["expected"] and len(shown) == 16
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip().split("?")[0] + "?" for line in lines[1:-1]] == [question for question, _ in asked[:3]]


@pytest.mark.parametrize(("paths", "characters"), [(["mine"], 2), (None, 3)])
def test_real_text_is_held_against_a_model_of_2_characters_and_pythons_own_against_3(report, monkeypatch, paths,
                                                                                   characters):
    split, levels = (["a llama " * 50] * 9, ["a llama "]), {context(n): 4.0 - n for n in range(5)}
    monkeypatch.setattr(tour_module.text_files, "read_documents", lambda given: given)
    monkeypatch.setattr(tour_module.text_files, "split", lambda given, say: split)
    monkeypatch.setattr(tour_module.stdlib_docs, "train_and_held_out", lambda: split)
    tokens, seen = type("Tokens", (), {"characters": 77}), []
    monkeypatch.setattr(tour_module, "train_or_load", lambda *given: seen.append(given) or ("model", tokens, "history"))
    monkeypatch.setattr(tour_module.pages, "text_levels", lambda split: levels)
    monkeypatch.setattr(tour_module.pages, "continuations", lambda *given: [("given", "made"), ("no", "more")])
    checked = []
    report.check_lengths = lambda *given: checked.append(given)
    for bits in (4.0 - characters - 0.01, 4.0 - characters):
        monkeypatch.setattr(tour_module, "bits_per_character", lambda *given, bits=bits: seen.append(given) or bits)
        model, tokenizer = text_stage(report, paths)
    assert [row["pass"] for row in report.rows] == [True, False] and context(characters) in report.rows[0]["expected"]
    assert seen[1] == ("model", tokens, 128, 64) and checked == [(seen[0][3], 256), (tokenizer, 256)]
    (_, name, shape, _, path, given, settings) = seen[0]
    assert (name, shape.vocab_size, shape.dim, given) == ("text", seen[0][3].vocab_size, FEW.text_dim, split)
    assert settings.steps == FEW.text_steps
    assert settings.max_lr == pytest.approx(0.32 / FEW.text_dim if paths else 5e-3), "a model to be tuned has to copy"
    assert report.pages[0][1] == ("your text" if paths else "Python's documentation") and len(report.pages) == 2
    report.config = replace(FEW, text_steps=None)
    text_stage(report, paths)
    assert seen[-2][-1].steps == (900 if paths else 600)


@pytest.mark.parametrize(("files", "stages"), [
    ((None, None, None), ["forum_chain", "text_stage"]), ((["t"], None, None), ["forum_chain", "text_stage"]),
    (([], "s", None), ["forum_base", "own_stages"]), ((["t"], "s", None), ["text_stage", "own_stages"]),
    ((["t"], None, "p"), ["text_stage", "own_stages"]), ((None, None, "p"), ["forum_base", "own_stages"])])
def test_the_users_files_take_the_place_of_the_forums_and_one_miss_is_a_miss(monkeypatch, tmp_path, files, stages):
    walked = []

    def stand_in(name):
        def stage(report, *given):
            walked.append(name)
            report.check(name, "1", "1", True, "m")
            return "model", "tokenizer"

        monkeypatch.setattr(tour_module, name, stage)

    for name in ("forum_chain", "text_stage", "forum_base", "own_stages"):
        stand_in(name)
    monkeypatch.setattr(tour_module, "check_inputs", lambda *given: walked.append(given[1:]))
    for last in (True, False):
        walked.clear()
        monkeypatch.setattr(tour_module, "write_results", lambda report, seconds, last=last: report.check(
            "last", "1", "1", last, "m"))
        assert tour(tmp_path, files[0], FEW, *files[1:]) is last
        assert walked == [files, *stages]


def test_a_lesson_is_named_once_it_is_there_to_be_read(tmp_path):
    report = TourReport(tmp_path, FEW)
    for lesson in ("lessons/01_bpe.py", "lessons/99_none.py", ""):
        report.check("a", "1", "1", 1, "m", lesson)
    assert [row["lesson"] for row in report.rows] == ["lessons/01_bpe.py", "", ""] and report.rows[0]["pass"] is True


def test_each_row_has_its_own_seconds(tmp_path, monkeypatch):
    clock = iter([100.0, 101.25, 104.5])
    monkeypatch.setattr(tour_module.time, "perf_counter", lambda: next(clock))
    report = TourReport(tmp_path, FEW)
    for _ in range(2):
        report.check("a", "1", "1", True, "m")
    assert [row["seconds"] for row in report.rows] == [1.25, 3.25]


MUTANTS = [
    Mutant("minillama.tour.tour", "lesson = lesson if lesson and", "lesson = lesson if lesson or",
           lambda: in_a_folder(test_a_lesson_is_named_once_it_is_there_to_be_read)),
]
