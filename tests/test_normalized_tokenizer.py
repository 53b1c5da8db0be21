"""Training with another model's rule for characters: sentencepiece's own vocabulary, and its ids."""

import tempfile
from pathlib import Path

import normalized_tokenizer
import pytest
from mutants import Mutant
from test_character_map import ODD, model_of, texts
from tokenizer_texts import processor, real_text, train_oracle

from minillama.tokenizer import SentencePieceTokenizer, load_tokenizer


def foreign_text(size=40_000):
    """Real text, with lines of what the rules replace."""
    lines = real_text(size).decode("utf-8", "replace").split("\n")
    odd = [" ".join(ODD).replace("\n", " ").replace("\0", ""), "ＬＬＡＭＡ ﬁne Ｌａｍａ ｶﾞｷﾞ " * 9]
    return "\n".join(odd + lines + odd).encode()


def train(folder, rule, kind, *more, size=700):
    """The tokenizer that the command trains, by the rule of a model of sentencepiece's."""
    (folder / "rule.model").write_bytes(model_of(rule, "char"))
    (folder / "text.txt").write_bytes(foreign_text())
    words = ["tokenizer", "train", "--text", folder / "text.txt", "--type", kind, "--vocab-size", size, "--out",
             folder / "t.model", "--normalization", folder / "rule.model", *more]
    assert normalized_tokenizer.main(list(map(str, words))) in (0, None)
    return load_tokenizer(folder / "t.model")


@pytest.mark.parametrize(("rule", "kind"), [("nmt_nfkc", "unigram"), ("nmt_nfkc", "bpe"), ("nfkc_cf", "bpe")])
def test_the_file_loads_in_sentencepiece_with_equal_ids(tmp_path, rule, kind):
    ours = train(tmp_path, rule, kind)
    theirs = processor(ours.model)
    for text in (*ODD, *texts(200), "ﬁne Ｌａｍａ  and\ttabs"):
        assert ours.encode(text) == theirs.encode(text), repr(text)
    assert ours.encode("ＬＬＡＭＡ") == ours.encode("llama" if rule == "nfkc_cf" else "LLAMA")


def check_vocabulary(folder, rule):
    wanted = train_oracle(foreign_text(), 700, normalization_rule_name=rule)
    assert train(folder, rule, "bpe").pieces == SentencePieceTokenizer(wanted).pieces


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "nfkc_cf"])
def test_the_vocabulary_is_what_sentencepiece_trains_by_that_rule(tmp_path, rule):
    check_vocabulary(tmp_path, rule)


def test_user_defined_symbols_stay_as_they_are(tmp_path):
    ours = train(tmp_path, "nmt_nfkc", "bpe", "--user-defined-symbols", "ＬＬ")
    assert ours.encode("aＬＬ") == processor(ours.model).encode("aＬＬ")
    assert "ＬＬ" in [ours.id_to_piece(i) for i in ours.encode("aＬＬ")]


@pytest.mark.parametrize(("words", "said"), [
    (["tokenizer", "train", "--normalization"], "names no file"),
    (["tokenizer", "encode", "--normalization", "x"], "goes with tokenizer train, not with tokenizer encode"),
    (["tokenizer", "train", "--type", "byte", "--normalization", "x"], "not with byte"),
    (["tokenizer", "train", "--normalization=plain.model"], "replaces no characters"),
    (["tokenizer", "train", "--normalization", "text.txt"], "text.txt: ")])
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    if "plain" in words[-1]:
        Path("plain.model").write_bytes(train_oracle(real_text(30_000), 700))
    Path("text.txt").write_text("no model", encoding="utf-8")
    assert normalized_tokenizer.main(words) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def _in_a_folder(law, *given):
    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder), *given)


MUTANTS = [
    Mutant("normalized_tokenizer", 'character_map.replace(line.decode("utf-8", EACH_BYTE), own)',
           'line.decode("utf-8", EACH_BYTE)', lambda: _in_a_folder(check_vocabulary, "nmt_nfkc")),
    Mutant("normalized_tokenizer", "put = {NAME: name, TABLE: table}", "put = {NAME: name}",
           lambda: _in_a_folder(test_the_file_loads_in_sentencepiece_with_equal_ids, "nmt_nfkc", "bpe")),
]
