"""A vocabulary with another's pieces behind it: Chinese-LLaMA's numbers, and what the merge does to digits."""

import random
from functools import partial

import pytest
from mutants import Mutant

from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from minillama.tokenizer.extend import extend_tokenizer, joins_digits, new_pieces
from minillama.tokenizer.sentencepiece import Piece, SentencePieceTokenizer
from minillama.tokenizer.wordpiece import train_wordpiece

ENGLISH = ["The owl and the hen met at the mill in 1999, and the owl was kind to the hen."] * 9
CHINESE = ["\u732b\u5934\u9e70\u548c\u6bcd\u9e21\u5728\u78e8\u574a\u76f8\u9047, \u732b\u5934\u9e70\u5f88\u5584\u826f. "
           "\u78e8\u574a\u5efa\u4e8e1999\u5e74."] * 9
# of Chinese-LLaMA's README
SENTENCE = ("\u4eba\u5de5\u667a\u80fd\u662f\u8ba1\u7b97\u673a\u79d1\u5b66\u3001\u5fc3\u7406\u5b66\u3001\u54f2\u5b66"
            "\u7b49\u5b66\u79d1\u878d\u5408\u7684\u4ea4\u53c9\u5b66\u79d1\u3002")


def small():
    return train_bpe(ENGLISH, 300), train_bpe(CHINESE, 300)


def cut(tokenizer, text):
    return [tokenizer.id_to_piece(i) for i in tokenizer.encode(text)]


def scored(*texts):
    return [Piece(text, float(len(texts) - place)) for place, text in enumerate(texts)]


def test_new_pieces_stand_behind_the_old_ones_each_with_a_score_of_its_own_above_theirs():
    old, other = small()
    new = extend_tokenizer(old, other.pieces)
    assert new.pieces[:old.vocab_size] == old.pieces
    added = new.pieces[old.vocab_size:]
    texts = {piece.text for piece in old.pieces}
    assert added == scored(*(p.text for p in other.pieces if p.kind == NORMAL and p.text not in texts)) and added
    assert min(piece.score for piece in added) > max(piece.score for piece in old.pieces)
    assert (new.bos_id, new.eos_id, new.unk_id, new.rules) == (old.bos_id, old.eos_id, old.unk_id, old.rules)


def test_english_stays_as_it_was_and_chinese_gets_shorter():
    old, other = small()
    new = extend_tokenizer(old, other.pieces, split_digits=True)
    assert new.encode(ENGLISH[0]) == old.encode(ENGLISH[0])
    assert len(new.encode(CHINESE[0])) < 0.5 * len(old.encode(CHINESE[0]))
    for text in (ENGLISH[0], CHINESE[0], "", " x  y ", SENTENCE, "\U0001f999 1\n"):
        assert new.decode(new.encode(text)) == text


def test_only_text_is_taken_and_each_text_once():
    old, _ = small()
    pieces = [Piece("a"), Piece("zq"), Piece("<pad>", 0, CONTROL), Piece("<unk2>", 0, UNKNOWN),
              Piece("<0x41>", 0, BYTE), Piece("zq", 5.0), Piece("[tool]", -1.0, USER_DEFINED), Piece("the")]
    assert new_pieces(old, pieces) == scored("zq", "[tool]", *([] if "the" in old._ids else ["the"]))


def test_pieces_that_join_digits_can_be_left_out():
    old, _ = small()
    pieces = [Piece(text) for text in ("19", "\u25812", "7", "3\u53f7", "\uff11\uff12", "qx", "\u00b2\u00b3")]
    assert [piece.text for piece in new_pieces(old, pieces, split_digits=True)] == [
        text for text in ("7", "qx", "\u00b2\u00b3") if text not in old._ids]
    merged, split = (extend_tokenizer(old, pieces, flag) for flag in (False, True))
    assert cut(merged, "1999")[-3:] == ["19", "9", "9"]
    assert cut(split, "1999") == cut(old, "1999") == ["\u2581", "1", "9", "9", "9"]


def test_what_cannot_be_extended_is_refused():
    old, _ = small()
    with pytest.raises(ValueError, match="none of 300 pieces is new to the 300"):
        extend_tokenizer(old, old.pieces)
    with pytest.raises(TypeError, match="a WordPieceTokenizer cannot be extended"):
        extend_tokenizer(train_wordpiece(ENGLISH, 40), old.pieces)


def real(weights):
    """LLaMA's tokenizer, and the pieces of Chinese-LLaMA's, a unigram model."""
    chinese = SentencePieceTokenizer((weights / "chinese_sp.model").read_bytes())
    return load_tokenizer(weights / "llama_tokenizer.model"), chinese.pieces


def test_chinese_llamas_numbers(weights):
    """32,000 + 20,000 - 2,047 = 49,953, and 35 tokens become 16. Characters alone, as Ziya took them, come to 29."""
    llama, chinese = real(weights)
    new = extend_tokenizer(llama, chinese)
    assert (llama.vocab_size, len(chinese), new.vocab_size) == (32000, 20000, 49953)
    assert new.vocab_size - llama.vocab_size == 17953
    assert (len(llama.encode(SENTENCE)), len(new.encode(SENTENCE))) == (35, 16)
    characters = extend_tokenizer(llama, [piece for piece in chinese if len(piece.text) == 1])
    assert (characters.vocab_size, len(characters.encode(SENTENCE))) == (38356, 29)
    english = "The capital of France is Paris."
    assert new.encode(english) == llama.encode(english)
    unused = [p.text for p in new.pieces[32000:]
              if new.encode(p.text if p.text[0] == "\u2581" else "\n" + p.text)[-1] != new._ids[p.text]]
    assert len(unused) == 343 and "\u610f\u5927\u5229" in unused  # Italy: neither half of it is a piece


def test_chinese_llamas_merge_undoes_digit_splitting_and_the_other_keeps_it(weights):
    llama, chinese = real(weights)
    merged, split = (extend_tokenizer(llama, chinese, flag) for flag in (False, True))
    assert (merged.vocab_size - split.vocab_size, split.vocab_size) == (594, 49359)
    assert sum(joins_digits(piece.text) for piece in merged.pieces[32000:]) == 594
    assert cut(llama, "2023") == cut(split, "2023") == ["\u2581", "2", "0", "2", "3"]
    assert cut(merged, "2023") == ["\u258120", "23"]
    assert len(split.encode(SENTENCE)) == 16
    rng = random.Random(0)
    for _ in range(300):
        number = str(rng.randrange(10**rng.randrange(1, 9)))
        text = rng.choice(["\u4e8e{}\u5e74", "{}%", "x{}.5", "\u7b2c{}\u7ae0", " {} "]).format(number)
        assert all(len(piece) == 1 for piece in cut(split, text) if not DIGITS.isdisjoint(piece)), text


DIGITS = frozenset("0123456789")


@pytest.mark.parametrize("split_digits", [False, True])
def test_sentencepiece_reads_the_merged_file_and_cuts_alike(weights, split_digits, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece", reason="compares with sentencepiece")
    llama, chinese = real(weights)
    new = extend_tokenizer(llama, chinese, split_digits)
    new.save(tmp_path / "new.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "new.model"))
    assert theirs.vocab_size() == new.vocab_size
    rng = random.Random(1)
    han = [p.text for p in chinese if p.kind == NORMAL]
    for _ in range(200):
        parts = [rng.choice([rng.choice(han), str(rng.randrange(5000)), rng.choice(ENGLISH[0].split()), " ", "\n"])
                 for _ in range(rng.randrange(1, 20))]
        text = "".join(parts).replace("\u2581", " ")
        assert new.encode(text) == theirs.encode(text)
        assert new.decode(new.encode(text)) == text


plant = partial(Mutant, "minillama.tokenizer.extend")
MUTANTS = [
    plant("float(len(new) - place)", "0.0",
          test_new_pieces_stand_behind_the_old_ones_each_with_a_score_of_its_own_above_theirs),
    plant("kind in (NORMAL, USER_DEFINED) and ", "", test_only_text_is_taken_and_each_text_once),
    plant(" and text not in known\n", "\n", test_what_cannot_be_extended_is_refused),
    plant("len(text) > 1 and ", "", test_pieces_that_join_digits_can_be_left_out),
    plant("not (split_digits and joins_digits(text))", "True", test_pieces_that_join_digits_can_be_left_out),
]
