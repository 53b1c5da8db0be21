"""Characters and words as tokens: pieces, scores and ids are those of sentencepiece's types char and word."""

import random

import pytest
from mutants import Mutant
from tokenizer_texts import processor, random_text, real_text, train_oracle

from minillama.tokenizer import SentencePieceTokenizer, default_backend, load_tokenizer, train_bpe
from minillama.tokenizer.sentencepiece_training import train_sentencepiece


def check_pieces_and_ids(model_type, size, byte_fallback, count=120):
    data, draw = real_text(40_000), random.Random(size)
    own = ["foo_bar", "你好"] if model_type == "char" else []
    model = train_oracle(data, size, model_type=model_type, byte_fallback=byte_fallback, user_defined_symbols=own)
    ours, theirs = train_sentencepiece([data], size, model_type, byte_fallback=byte_fallback,
                                       user_defined_symbols=own), SentencePieceTokenizer(model).pieces
    assert [piece.text for piece in ours.pieces] == [piece.text for piece in theirs]
    assert [p.score for p in ours.pieces] == pytest.approx([p.score for p in theirs], abs=4e-6)  # 32-bit logarithms
    for tokenizer in (ours, SentencePieceTokenizer(model)):
        for _ in range(count):
            text = random_text(draw)
            ids = processor(model).encode(text)
            assert tokenizer.encode(text) == ids, repr(text)
            assert tokenizer.decode(ids) == processor(model).decode(ids), repr(text)


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize(("model_type", "size"), [("char", 150), ("word", 500)])
def test_pieces_scores_and_ids_are_sentencepieces(model_type, size, byte_fallback):
    check_pieces_and_ids(model_type, size + 256 * byte_fallback, byte_fallback)


def test_a_saved_model_is_read_again_as_what_it_is(tmp_path):
    for model_type, wanted in (("char", ["▁", "l", "o", "w"]), ("word", ["▁low"]), ("unigram", ["▁low"])):
        tokenizer = train_sentencepiece(["low low lower"], 99, model_type, byte_fallback=False, hard_vocab_limit=False)
        tokenizer.save(tmp_path / "t.model")
        again = load_tokenizer(tmp_path / "t.model")
        assert [again.id_to_piece(i) for i in again.encode("low")] == wanted
        assert again.rules.model_type == model_type and again.pieces == tokenizer.pieces


def test_words_that_are_not_known_are_one_unknown_and_lost():
    tokenizer = train_sentencepiece(["low low lower lowest"], 5, "word")
    assert tokenizer.encode("low slow fast lower low") == [3, tokenizer.unk_id, 4, 3]
    assert tokenizer.decode(tokenizer.encode("low slow")) == "low \u2047 "


def test_in_bpe_letters_stay_single_where_no_space_parts_words_if_asked():
    """The oracle: digits, which stay single, in the place of those letters."""
    text, letters = "茶 茶tea tea茶 เต tea水壶 lever茶水 日ひカー ter", "茶水壶日ひカเตー"
    as_digits = text.translate(dict(zip(map(ord, letters), "123456789", strict=True)))
    for backend in ("python", default_backend("BpeTrainer")):
        pieces, others, usual = ({piece.text for piece in train_bpe(
            [given], 400, hard_vocab_limit=False, split_unspaced=split, backend=backend).pieces[259:]}
            for given, split in ((text, True), (as_digits, False), (text, False)))
        assert pieces - set(letters) == others - set("123456789") and set(letters) <= pieces, backend
        assert "\u2581tea" in pieces and "\u2581日ひカー" in usual
    with pytest.raises(ValueError, match="split_unspaced is of bpe alone, not of unigram: leave it out"):
        train_sentencepiece([text], 400, "unigram", split_unspaced=True)


PAGE = "minillama.tokenizer.characters_and_words"
MUTANTS = [
    Mutant("minillama.tokenizer.piece_trainer", "split_unspaced and script in", "split_unspaced and character in",
           test_in_bpe_letters_stay_single_where_no_space_parts_words_if_asked),
    Mutant(PAGE, "-item[1], item[0]", "-item[1], -ord(item[0][0])", lambda: check_pieces_and_ids("char", 150, False)),
    Mutant(PAGE, "for part in WORD.findall(word):", "for part in [word]:",
           lambda: check_pieces_and_ids("word", 500, False)),
    Mutant("minillama.tokenizer.bpe_encoder", "elif not ids or ids[-1] != self.unk_id:", "else:",
           test_words_that_are_not_known_are_one_unknown_and_lost),
]
