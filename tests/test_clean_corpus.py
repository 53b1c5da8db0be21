"""Laws of cleaning a corpus: every document comes out on one side with its reason, in the same bytes however the work
was cut, shared or interrupted."""

import json
import os
import random
import tempfile
from pathlib import Path

import clean_corpus
import corpus_shards as shards
import pytest
from clean_corpus import Cleaning, learn_judges, main
from corpus_report import BUCKETS
from mutants import Mutant

from lessons import chinese_stories
from lessons.cleaning import CleaningRules
from minillama.corpus import mixture

FOOTER = "Subscribe to our letter and never miss a story again."
RULES = CleaningRules(min_words=8)


def planted(seed, n=60):
    """[(text, what it is)]: stories of two languages with a common line, and of each kind of bad document some."""
    rng = random.Random(seed)
    english = [document.text for document in mixture(seed, n)]
    chinese = [document.text for document in chinese_stories.documents(seed, n)]
    documents = [(f"{text}\n{FOOTER}", "latin") for text in english] + [(text, "chinese") for text in chinese]
    documents += [("Home | News | 1042 | 1043 | 1044 | 1045 | 1046 | 1047", "letters")] * 3
    documents += [("马上购买！" * 30, "repetition")] * 3 + [("Too short.", "length")] * 3
    rng.shuffle(documents)
    # behind the originals:
    return documents + [(english[i].upper(), "near copy") for i in range(5)] + [
        (chinese[i], "near copy") for i in range(5)] + [(english[7] + " Visit our casino now!", "word list")]


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "raw", planted(0))


def write(folder, documents):
    folder.mkdir()
    half = len(documents) // 2
    (folder / "a.txt").write_text("\n\n".join(text for text, _ in documents[:half]), encoding="utf-8")
    lines = [json.dumps({"text": text}) for text, _ in documents[half:]]
    (folder / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def clean(raw, out, workers=1, **settings):
    listed = raw.parent / "words"
    listed.write_text("casino\n")
    return clean_corpus.clean_corpus([raw], out, Cleaning(RULES, word_list=str(listed), **settings), workers)


def test_every_document_comes_out_on_one_side_with_its_reason(corpus, tmp_path):
    counts, out, raw = clean(corpus, tmp_path / "out"), tmp_path / "out", planted(0)
    kept = {text for path in out.rglob("*.txt") for text in path.read_text(encoding="utf-8").split("\n\n") if text}
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) + len(dropped) == len(raw) == counts.total()
    for language in ("latin", "chinese"):
        wanted = {text.removesuffix(f"\n{FOOTER}") for text, kind in raw if kind == language}
        written = [(out / language / f"{bucket}.txt").read_text(encoding="utf-8").split("\n\n")[:-1]
                   for bucket in BUCKETS]
        assert {text for texts in written for text in texts} == wanted & kept
        assert len(wanted - kept) <= 3, "stories of one grammar may be near copies of one another"
        assert max(map(len, written)) - min(map(len, written)) <= 1
    for reason in ("letters", "repetition", "length", "word list"):
        assert counts[reason] == sum(kind == reason for _, kind in raw)
    assert 10 <= counts["near copy"] <= 16
    report = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} | {count} |" in report and f"## {name}\n" in report for name, count in counts.items())
    assert not (out / "work").exists()


def test_what_was_dropped_is_found_again_by_its_place(corpus, tmp_path):
    clean(corpus, tmp_path / "out")
    places = {(shard.path, offset): text for shard in shards.cut_into_shards([corpus])
              for offset, text in shard.documents()}
    numbers = list(places.values())
    for line in (tmp_path / "out" / "dropped.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        text = places[record["file"], record["byte"]]
        assert record["reason"] in dict(map(reversed, planted(0))) or record["reason"] == "near copy"
        if record["reason"] == "near copy":
            other = numbers[int(record["detail"].removeprefix("of document ")) - 1]
            assert numbers.index(other) < numbers.index(text) or other == text


def test_the_result_is_the_same_however_the_work_is_cut_shared_or_interrupted(corpus, tmp_path, monkeypatch):
    clean(corpus, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    clean(corpus, tmp_path / "shared", workers=2)
    assert contents(tmp_path / "shared") == whole
    for size in (300, 4000):
        monkeypatch.setattr(shards, "SHARD_BYTES", size)
        monkeypatch.setattr(clean_corpus, "SAMPLE_SHARE", 1)  # the sample is the whole text, however it is cut
        clean(corpus, tmp_path / f"cut{size}")
    assert contents(tmp_path / "cut300") == contents(tmp_path / "cut4000")
    for stopped_in in ("find_lines", "find_faults", "score", "write_corpus"):
        _stop_and_go_on(corpus, tmp_path / stopped_in, stopped_in)
        assert contents(tmp_path / stopped_in) == contents(tmp_path / "cut4000")


def _stop_and_go_on(corpus, out, name):
    right, calls = getattr(clean_corpus, name), []

    def failing(*arguments, **settings):
        calls.append(name)
        if name == "write_corpus" or len(calls) == 2:
            raise KeyboardInterrupt
        return right(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clean_corpus, name, failing)
        clean(corpus, out)
    assert (out / "work").is_dir() and not (out / "report.md").exists()
    clean(corpus, out)


def test_other_settings_or_changed_files_do_not_go_on_with_unfinished_work(corpus, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="stop"):
        patch.setattr(clean_corpus, "score", lambda *_, **__: int("stop"))
        clean(corpus, tmp_path / "out")
    with pytest.raises(ValueError, match="unfinished work of other settings"):
        clean(corpus, tmp_path / "out", languages=("latin",))
    (corpus / "c.txt").write_text("More.")
    with pytest.raises(ValueError, match="unfinished work of other settings or files"):
        clean(corpus, tmp_path / "out")


def test_nothing_finished_is_overwritten_and_no_text_is_refused(corpus, tmp_path):
    clean(corpus, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="holds a cleaned corpus: choose another --out"):
        clean(corpus, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no text in"):
        clean(tmp_path / "empty", tmp_path / "other")


@pytest.mark.parametrize("flag", ["word_list", "reference", "good"])
def test_files_to_judge_by_are_looked_at_before_any_work(corpus, tmp_path, flag):
    for path, words in ((tmp_path / "nothing", "No such file"), (tmp_path, "give the path of a file")):
        with pytest.raises((ValueError, OSError), match=words):
            clean_corpus.clean_corpus([corpus], tmp_path / "out", Cleaning(RULES, **{flag: str(path)}))
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ValueError, match="the list of words is empty"):
        clean_corpus.clean_corpus([corpus], tmp_path / "out", Cleaning(RULES, word_list=str(tmp_path / "empty")))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_refused_and_what_is_written_is_not_read(corpus, tmp_path):
    os.mkfifo(corpus / "pipe.txt")
    with pytest.raises(ValueError, match="give the path of a file"):
        clean(corpus, tmp_path / "out")
    (corpus / "pipe.txt").unlink()
    (corpus / "out").mkdir()
    (corpus / "out" / "old.txt").write_text("Something.")
    with pytest.raises(ValueError, match="choose an --out apart from --text"):
        clean(corpus, corpus / "out")


def test_a_reference_judges_its_own_languages_and_the_corpus_the_others(tmp_path):
    (tmp_path / "good.txt").write_text("\n\n".join(story.text for story in mixture(1, 50)), encoding="utf-8")
    sample = "\0".join(["数船" * 20 + "。", "zzzz zzzz zzzz."])
    judges = learn_judges([{"sample": sample}], Cleaning(reference=str(tmp_path / "good.txt")))
    assert set(judges["models"]) == {"latin", "chinese"} and judges["classifier"] is None
    assert judges["models"]["latin"].perplexity("zzzz zzzz zzzz.") > 50, "it has not read the corpus"
    assert judges["models"]["chinese"].perplexity("数船数船。") < 5


def test_a_classifier_drops_what_is_less_like_the_good_text(tmp_path):
    documents = planted(3)
    raw = write(tmp_path / "raw", documents)
    (tmp_path / "good.txt").write_text("\n\n".join(story.text for story in chinese_stories.documents(9, 80)),
                                       encoding="utf-8")
    counts = clean(raw, tmp_path / "out", good=str(tmp_path / "good.txt"))
    assert counts["quality"] >= 50, "the English stories"
    assert sum(counts[f"chinese/{bucket}"] for bucket in BUCKETS) >= 50


def test_the_command_says_what_went_and_overwrites_nothing(tmp_path, capsys):
    text, out = tmp_path / "raw.txt", tmp_path / "out"
    stories = [story.text for story in mixture(0, 30)]
    text.write_text("\n\n".join([*stories, stories[3], "Buy now! " * 20]), encoding="utf-8")
    command = ["--text", str(text), "--out", str(out), "--workers", "1", "--min-words", "8"]
    assert not main(command)
    said, err = capsys.readouterr()
    assert "latin/head" in said and "1  near copy" in said and "1  repetition" in said
    assert f"{out}: the report is report.md" in err
    assert main(command) == 2 and "holds a cleaned corpus" in capsys.readouterr().err
    for bad, words in ((["--text", str(text), "--out", str(text)], "is a file"),
                       (["--text", str(tmp_path / "no"), "--out", str(tmp_path / "other")], "no such file"),
                       (["--text", str(text), "--out", str(tmp_path / "other"), "--min-words", "9", "--max-words", "8"],
                        "--min-words 9 is above --max-words 8")):
        assert main(bad) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1 and not (tmp_path / "other").exists()


def _in_a_temporary_folder(law, *more):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        law(write(Path(folder, "raw"), planted(0)), Path(folder), *([patch] if more else []))


MODULE = "clean_corpus"
MUTANTS = [
    Mutant(MODULE, "counts >= repeated", "counts > 1000 * repeated",
           lambda: _in_a_temporary_folder(test_every_document_comes_out_on_one_side_with_its_reason)),
    Mutant(MODULE, "earlier[copies]]", "earlier[copies] + 1]",
           lambda: _in_a_temporary_folder(test_what_was_dropped_is_found_again_by_its_place)),
    Mutant(MODULE, "texts = by_language | texts", "texts = texts | by_language",
           lambda: _in_a_temporary_folder(
               lambda _, folder: test_a_reference_judges_its_own_languages_and_the_corpus_the_others(folder))),
    Mutant(MODULE, "qualities < min_quality", "qualities > min_quality",
           lambda: _in_a_temporary_folder(
               lambda _, folder: test_a_classifier_drops_what_is_less_like_the_good_text(folder / "raw"))),
    Mutant(MODULE, "and path.read_text(encoding=\"utf-8\") != settings", "and False",
           lambda: _in_a_temporary_folder(test_other_settings_or_changed_files_do_not_go_on_with_unfinished_work)),
]
