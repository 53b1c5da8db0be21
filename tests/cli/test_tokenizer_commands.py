"""The commands of tokenizers: ids and texts alone on stdout, what was learned on stderr, a wrong line named."""

import io
import json
import sys

import pytest
from mutants import Mutant

from minillama.cli.command_line import main
from minillama.cli.tokenizer_commands import _json_lines
from minillama.tokenizer import load_tokenizer, train_bpe

TEXT = "low lower lowest 2023 " * 30


def run(monkeypatch, capsys, *words, stdin=""):
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:
        code = stopped.code
    return (code, *capsys.readouterr())


@pytest.fixture
def model(tmp_path):
    train_bpe([TEXT], 280).save(tmp_path / "t.model")
    return tmp_path / "t.model"


def test_what_was_learned_is_what_the_library_learns_and_stands_on_stderr(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(TEXT + "\n" + "x" * 5000 + "\n")
    given = "tokenizer", "train", "--text", tmp_path / "text.txt", "--vocab-size", "280", "--out"
    code, out, err = run(monkeypatch, capsys, *given, tmp_path / "a.model")
    assert (code, out) == (0, "") and err.endswith(f"{tmp_path / 'a.model'}: 280 pieces\n")
    assert "raise --max-line-bytes" in err and "UserWarning" not in err
    assert "reading" in err and "merging" in err, "progress is shown"
    assert load_tokenizer(tmp_path / "a.model").pieces == train_bpe([TEXT], 280).pieces
    code, _, err = run(monkeypatch, capsys, *given, tmp_path / "b.model", "--max-line-bytes", "5000")
    assert code == 0 and "max-line-bytes" not in err
    assert any("x" in piece.text and len(piece.text) > 1 for piece in load_tokenizer(tmp_path / "b.model").pieces)


@pytest.mark.parametrize(("kind", "size", "words"), [
    ("unigram", 268, ()), ("char", 9, ()), ("word", 5, ()), ("byte", 262, ()), ("byte", 262, ("--pattern", "gpt2")),
    ("wordpiece", 18, ())])
def test_each_type_is_learned_saved_and_recognised_by_its_content(tmp_path, monkeypatch, capsys, kind, size, words):
    (tmp_path / "text.txt").write_text("low lower lowest\nlow lowest\nlower low\n" * 9)
    code, out, err = run(monkeypatch, capsys, "tokenizer", "train", "--text", tmp_path / "text.txt", "--type", kind,
                         "--vocab-size", size, "--out", tmp_path / "t", *words)
    assert (code, out) == (0, "") and err.endswith(f"t: {size} pieces\n"), err
    code, out, _ = run(monkeypatch, capsys, "tokenizer", "encode", "--model", tmp_path / "t", stdin='"low lower"\n')
    assert code == 0 and load_tokenizer(tmp_path / "t").decode(json.loads(out)) == "low lower"


@pytest.mark.parametrize(("kind", "flag"), [("byte", "--no-byte-fallback"), ("bpe", "--pattern=gpt2"),
                                            ("byte", "--character-coverage=0.99"), ("char", "--pattern=gpt2"),
                                            ("wordpiece", "--byte-fallback"), ("wordpiece", "--pattern=gpt2")])
def test_a_flag_that_a_type_would_ignore_is_refused(tmp_path, monkeypatch, capsys, kind, flag):
    (tmp_path / "text.txt").write_text(TEXT)
    code, _, err = run(monkeypatch, capsys, "tokenizer", "train", "--text", tmp_path / "text.txt", "--type", kind,
                       "--vocab-size", "300", "--out", tmp_path / "t", flag)
    assert code == 2 and f"--type {kind} has no --" in err and not (tmp_path / "t").exists()


@pytest.mark.parametrize(("flag", "value"), [
    ("--vocab-size", 0), ("--vocab-size", (1 << 30) + 1), ("--vocab-size", "x"), ("--max-line-bytes", 9),
    ("--max-line-bytes", (1 << 30) + 1)])
def test_numbers_beyond_their_range_are_refused_before_anything_is_read(monkeypatch, capsys, flag, value):
    words = {"--vocab-size": 300, "--max-line-bytes": 10} | {flag: value}
    code, out, err = run(monkeypatch, capsys, "tokenizer", "train", "--text", "none", "--out", "x",
                         *(word for pair in words.items() for word in pair))
    assert (code, out) == (2, "") and flag in err and str(value) in err


@pytest.mark.parametrize(("flag", "value"), [("--vocab-size", 1), ("--vocab-size", 1 << 30), ("--max-line-bytes", 10),
                                             ("--max-line-bytes", 1 << 30)])
def test_the_ends_of_the_ranges_are_allowed(monkeypatch, capsys, flag, value):
    words = {"--vocab-size": 300, "--max-line-bytes": 10} | {flag: value}
    code, _, err = run(monkeypatch, capsys, "tokenizer", "train", "--text", "none.txt", "--out", "x",
                       *(word for pair in words.items() for word in pair))
    assert code == 2 and "none.txt" in err and flag not in err


@pytest.mark.parametrize("missing", ["--text", "--vocab-size", "--out", "--model"])
def test_what_must_be_given_is_named(monkeypatch, capsys, missing):
    given = ["decode"] if missing == "--model" else ["train", "--text", "a", "--vocab-size", "300", "--out", "b"]
    if missing != "--model":
        place = given.index(missing)
        del given[place:place + 2]
    code, out, err = run(monkeypatch, capsys, "tokenizer", *given)
    assert (code, out) == (2, "") and missing in err


@pytest.mark.parametrize(("flags", "options"), [((), {}), (("--bos",), {"bos": True}), (("--eos",), {"eos": True})])
def test_ids_are_those_of_the_library_one_line_for_each_text(model, monkeypatch, capsys, flags, options):
    texts, tokenizer = ["low 2023", "", "é\n"], load_tokenizer(model)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    code, out, err = run(monkeypatch, capsys, "tokenizer", "encode", "--model", model, *flags, stdin=lines)
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == [tokenizer.encode(text, **options) for text in texts]


def test_texts_are_written_in_their_own_letters(model, monkeypatch, capsys):
    ids = load_tokenizer(model).encode("é猫")
    found = run(monkeypatch, capsys, "tokenizer", "decode", "--model", model, stdin=json.dumps(ids))
    assert found == (0, '"é猫"\n', "")


@pytest.mark.parametrize(("action", "line", "said"), [
    ("encode", "1", "line 2 of stdin is int, not a JSON string"), ("decode", "[true]", "[true] is not a list of"),
    ("decode", '"x"', "line 2 of stdin is str, not a JSON list of ids"), ("encode", "x", "2 of stdin is not a JSON"),
    ("decode", "[1.5]", "[1.5] is not a list of whole numbers"), ("decode", "[[]]", "[[]] is not"),
    ("encode", "[" * 100_000, "line 2 of stdin is not a JSON string"),
    ("decode", json.dumps([0.5] * 99), json.dumps([0.5] * 99)[:60] + " is not a list")])
def test_a_wrong_line_is_named_and_those_before_it_were_answered(model, monkeypatch, capsys, action, line, said):
    good = '"low"' if action == "encode" else "[270]"
    code, out, err = run(monkeypatch, capsys, "tokenizer", action, "--model", model, stdin=f"{good}\n{line}\n")
    assert code == 2 and out.count("\n") == 1 and said in err.splitlines()[-1]


def _counts_from_one():
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="line 1 of stdin"):
        patch.setattr(sys, "stdin", io.StringIO("1\n"))
        list(_json_lines(str, "a JSON string"))


MUTANTS = [Mutant("minillama.cli.tokenizer_commands", "enumerate(sys.stdin, 1)", "enumerate(sys.stdin)",
                  _counts_from_one)]
