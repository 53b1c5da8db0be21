"""SentencePiece models that replace characters: sentencepiece's ids with its own tables; damaged ones are refused."""

import functools
import pickle
import random

import numpy as np
import pytest
from mutants import Mutant
from tokenizer_texts import CRUEL, processor, real_text, train_oracle

from minillama.tokenizer import SentencePieceTokenizer
from minillama.tokenizer.bpe_encoder import USER_DEFINED
from minillama.tokenizer.character_map import CharacterMap, require_plain_bpe
from minillama.tokenizer.gguf_vocab import gguf_vocab
from minillama.tokenizer.llama2c_vocab import llama2c_vocab
from minillama.tokenizer.protobuf import read_fields, write_fields
from minillama.tokenizer.sentencepiece import Piece, Rules, append_pieces

ODD = ["ＬＬＡＭＡ", "ｶﾞｷﾞ", "ﬁne", "ﬀ", "½", "①", "㎏", "㍿", "a\u0301\u0327b\u0302", "e\u0301", "\u1100\u1161\u11a8",
       "각", "ｱ\uff9e", "\u3000", "\u00a0x\u200b\u200dy\ufeff", "\x01\x02\x7f\t\r\n\x00", "ẛ̣", "\u212b", "ﷺ", "ΑΣ",
       "ΐ", "𝔘𝔫𝔦", "﹏", "～", "︙", "ᾳ", "\u0344", "", " "]
KINDS = [("nmt_nfkc", "unigram"), ("nmt_nfkc", "bpe"), ("nfkc", "char"), ("nmt_nfkc_cf", "word"),
         ("nfkc_cf", "unigram")]


@functools.cache
def model_of(rule, kind, **options):
    sizes = {"char": 200, "word": 300}
    return train_oracle(real_text(30_000), sizes.get(kind, 600), model_type=kind, normalization_rule_name=rule,
                        byte_fallback=kind == "bpe", hard_vocab_limit=False, remove_extra_whitespaces=kind != "char",
                        **options)


def texts(n, seed=0):
    """Strings of every plane, of what tables replace, and of spaces."""
    rng = random.Random(seed)
    planes = [(0x20, 0x7F), (0xA0, 0x600), (0x300, 0x370), (0x1100, 0x1200), (0x1E00, 0x2100), (0x2100, 0x2800),
              (0x3000, 0x3400), (0xAC00, 0xAD00), (0xF900, 0xFFFE), (0x1D400, 0x1D800), (0x2F800, 0x2FA20)]
    for _ in range(n):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            low, high = rng.choice(planes)
            parts += rng.choice([[chr(rng.randrange(low, high))], [rng.choice(ODD)], [" "], ["the "], ["e\u0301"]])
        yield "".join(parts)


@pytest.mark.parametrize("backend", ["python", "cpp"])
@pytest.mark.parametrize(("rule", "kind"), KINDS)
def test_the_ids_are_sentencepieces(rule, kind, backend):
    model = model_of(rule, kind)
    ours, theirs = SentencePieceTokenizer(model, backend=backend), processor(model)
    cruel = [text.decode("utf-8", "replace") for text in CRUEL.values()]
    for text in (*ODD, *cruel, *texts(400)):
        assert ours.encode(text) == theirs.encode(text), repr(text)


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_replaced_text_is_what_sentencepiece_makes_of_it(rule):
    model = train_oracle(real_text(30_000), 700, normalization_rule_name=rule, add_dummy_prefix=False)
    table, theirs = SentencePieceTokenizer(model).rules.character_map, processor(model)
    for text in (*ODD, *texts(2000, seed=1)):
        assert table.replace(text).replace(" ", "\u2581") == theirs.normalize(text), repr(text)


def test_pieces_that_a_user_defined_stay_as_they_are():
    own = [Piece(text, 0.0, USER_DEFINED) for text in ("ＬＬ", "½½")]
    model = append_pieces(model_of("nmt_nfkc", "bpe"), own)
    ours, theirs = SentencePieceTokenizer(model), processor(model)
    for text in ("ＬＬＡＭＡ", "½½½", "a½½", "Ｌ ＬＬＬ", "ﬁ½½ﬁ"):
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.decode(ours.encode("ＬＬ")) == "ＬＬ" and ours.decode(ours.encode("Ｌ")) == "L"


def test_a_tokenizer_with_a_table_is_pickled_and_saved_whole(tmp_path):
    ours = SentencePieceTokenizer(model_of("nmt_nfkc", "unigram"))
    again = pickle.loads(pickle.dumps(ours))
    ours.save(tmp_path / "t.model")
    assert again.encode("ﬁne Ａ") == ours.encode("ﬁne Ａ") == ours.encode("fine A")
    assert (tmp_path / "t.model").read_bytes() == ours.model


def test_files_that_cannot_say_so_are_refused():
    tokenizer = SentencePieceTokenizer(model_of("nmt_nfkc", "bpe"))
    for write in (gguf_vocab, llama2c_vocab):
        with pytest.raises(ValueError, match="replace no characters, not one of type bpe that replaces characters"):
            write(tokenizer)
    require_plain_bpe(Rules(), "a file")


def test_children_may_lie_two_million_units_away():
    """A trie of one key, "a": the root's offset is 2^21, said in units of 256."""
    far = 1 << 21
    units = np.zeros(far + 256, "<u4")
    units[0] = far >> 8 << 10 | 1 << 9
    units[far ^ ord("a")] = ord("a") | 1 << 8 | 1 << 10
    units[far ^ ord("a") ^ 1] = 1 << 31 | 3
    table = CharacterMap((4 * len(units)).to_bytes(4, "little") + units.tobytes() + b"xx\0bc\0")
    assert table.replace("cab a") == "cbcb bc"


def _with_table(change):
    """The model with its table of replacements changed."""
    fields = []
    for number, wire, value in read_fields(model_of("nfkc", "char")):
        if number == 3:
            value = write_fields([(n, w, change(v) if n == 2 else v) for n, w, v in read_fields(value)])
        fields.append((number, wire, value))
    return write_fields(fields)


@pytest.mark.parametrize("change", [
    lambda table: table[:3], lambda table: table[:-1], lambda table: b"\xff\xff\xff\x7f" + table[4:],
    lambda table: b"\x03\x00\x00\x00" + table[4:], lambda table: b"\x00" * 4 + table[4:]])
def test_a_damaged_table_is_refused(change):
    with pytest.raises(ValueError, match="precompiled_charsmap is damaged"):
        SentencePieceTokenizer(_with_table(change))


def test_a_table_of_random_bytes_ends_well_or_in_one_line():
    rng = random.Random(5)
    for _ in range(60):
        table = (400).to_bytes(4, "little") + rng.randbytes(900) + b"\0"
        try:
            found = CharacterMap(table).replace("".join(texts(20, seed=rng.random())))
            assert isinstance(found, str)
        except ValueError as error:
            assert "damaged" in str(error) and "\n" not in str(error)


def _same(rule, kind):
    """The law by the plain encoder, from a fresh model: tables keep what they have walked."""
    test_the_ids_are_sentencepieces(rule, kind, "python")


MODULE = "minillama.tokenizer.character_map"
MUTANTS = [
    Mutant(MODULE, "(8 if unit & FAR else 0)", "0", test_children_may_lie_two_million_units_away),
    Mutant(MODULE, "index(0, begin)", "index(0)", test_children_may_lie_two_million_units_away),
    Mutant(MODULE, "unit & LABEL != byte", "False", lambda: _same("nmt_nfkc", "unigram")),
    Mutant(MODULE, "if unit & ENDS else None", "if unit else None", lambda: _same("nmt_nfkc", "unigram")),
    Mutant(MODULE, "found, end = replacement, place + 1", "return replacement, place + 1",
           lambda: _same("nfkc_cf", "unigram")),
    Mutant(MODULE, "own.match(text, at) if own else None", "None",
           test_pieces_that_a_user_defined_stay_as_they_are),
    Mutant(MODULE, "table[-1] != 0", "False", lambda: test_a_damaged_table_is_refused(lambda table: table[:-1])),
]
