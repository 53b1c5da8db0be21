"""A byte-level vocabulary with another's pieces behind it, and special tokens behind either kind."""

import random
from functools import cache, partial

import pytest
from byte_texts import fuzzed
from mutants import Mutant
from test_extend import CHINESE, ENGLISH, SENTENCE
from test_tiktoken import llama3, tiny_file

from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.added_tokens import AddedToken, TokenSettings
from minillama.tokenizer.byte_bpe_training import train_byte_bpe
from minillama.tokenizer.extend import extend_tokenizer, new_merges, pieces_of
from minillama.tokenizer.sentencepiece import Piece, SentencePieceTokenizer
from minillama.tokenizer.tiktoken import read_tiktoken
from minillama.tokenizer.tokenizer_json import tokenizer_json
from minillama.tokenizer.wordpiece import train_wordpiece

CHAT = ["<|im_start|>", "<|im_end|>"]


@cache
def small(pattern="llama3"):
    """A byte-level tokenizer of English, and pieces of Chinese."""
    return train_byte_bpe(ENGLISH, 280, pattern), train_bpe(CHINESE, 320, split_digits=False).pieces


def whole_tokens(old, new, text):
    """Whether each token of the new cut is made of whole tokens of the old one."""
    borders = [{0}, {0}]
    for tokenizer, found in zip((old, new), borders, strict=True):
        for index in tokenizer.encode(text):
            found.add(max(found) + len(tokenizer.token_bytes(index)))
    return borders[1] <= borders[0]


def test_old_tokens_keep_their_ids_and_each_new_piece_is_one_token_behind_all_of_them():
    old, pieces = small()
    new = extend_tokenizer(old, pieces)
    assert {**new.ids, **old.ids} == new.ids and new.special_tokens == old.special_tokens
    added = {token: index for token, index in new.ids.items() if token not in old.ids}
    assert sorted(added.values()) == [*range(old.vocab_size, new.vocab_size)] and len(added) > 30
    texts = [piece.text.replace("\u2581", " ") for piece in pieces if piece.kind == 1]
    texts = [text for text in texts if len(old.split(text)) == 1]
    assert all(len(new.encode(text)) == 1 for text in texts) and "\u5934\u9e70" in texts
    between = {token for token in added if token.decode("utf-8", "replace") not in texts}
    assert all(any(text.encode().startswith(token) for text in texts) for token in between), "they lead to one"
    assert new.merges()[:len(old.merges())] == old.merges()


def test_a_text_is_cut_as_before_and_neighbours_are_joined_further():
    old, pieces = small()
    new = extend_tokenizer(old, pieces, split_digits=True)
    assert new.encode(ENGLISH[0]) == old.encode(ENGLISH[0])
    assert len(new.encode(CHINESE[0])) < 0.4 * len(old.encode(CHINESE[0]))
    draw = random.Random(0)
    for text in fuzzed(150, 3):
        text += "".join(draw.choices(CHINESE[0] + ENGLISH[0], k=20))
        assert whole_tokens(old, new, text), repr(text)
        assert new.decode(new.encode(text)) == old.decode(old.encode(text))


@pytest.mark.parametrize("backend", ["python", None])
def test_each_step_to_a_piece_is_a_merge_of_two_tokens(backend):
    """By hand: bytes of the tiny file, and the piece "ab" + "cab", whose own merges come last."""
    tiny = read_tiktoken(tiny_file())
    ids, merges = new_merges(tiny, [Piece("abcab"), Piece("\u732b"), Piece("ab"), Piece("</s>", 0.0, 3)])
    cat = "\u732b".encode()
    assert merges == [(b"abc", b"ab"), (cat[:1], cat[1:2]), (cat[:2], cat[2:])]
    first = tiny.vocab_size
    assert ids == {b"abcab": first, cat[:2]: first + 1, cat: first + 2}
    assert extend_tokenizer(tiny, [Piece("abcab")]).encode("abcabx") == [first, ord("x")]


def test_what_the_pattern_cuts_apart_or_joins_digits_is_left_out():
    pieces = [Piece(text) for text in ("\u25812", "3\u53f7", "1999", "q!", "qx", "\u2581qy", "99")]
    assert [*new_merges(small()[0], pieces)[0]] == [b"qx", b" q", b" qy", b"99"], "of Llama 3's pattern"
    gpt2 = small("gpt2")[0]
    assert {b" 2", b"1999"} < {*new_merges(gpt2, pieces)[0]}
    assert [*new_merges(gpt2, pieces, split_digits=True)[0]] == [b"qx", b" q", b" qy"]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_special_tokens_stand_behind_the_pieces_and_the_settings_stay(kind, tmp_path):
    old = train_bpe(ENGLISH, 300) if kind == "sentencepiece" else train_byte_bpe(ENGLISH, 280)
    settings = TokenSettings((AddedToken("<think>", old.vocab_size, special=False),), chat_template="{{ x }}",
                             ends=frozenset({5}), add_bos=False)
    old.obey(settings)
    new = extend_tokenizer(old, [Piece("\u732b\u732b"), Piece("\u732b")], special_tokens=CHAT)
    assert [new.added[name].id for name in CHAT] == [new.vocab_size - 2, new.vocab_size - 1]
    assert new.added["<think>"] == old.added["<think>"] and (new.chat_template, new.begins) == ("{{ x }}", False)
    assert (new.bos_id, new.eos_id, new.end_ids) == (old.bos_id, old.eos_id, old.end_ids)
    only = extend_tokenizer(old, special_tokens=CHAT)
    assert only.vocab_size == old.vocab_size + 2
    new.save(tmp_path / "new")
    for tokenizer in (new, only, load_tokenizer(tmp_path / "new")):
        text = "<|im_start|>the owl<|im_end|>"
        front, *middle, back = tokenizer.encode(text, allowed_special="all")
        assert (front, back) == (tokenizer.added[CHAT[0]].id, tokenizer.added[CHAT[1]].id)
        assert len(tokenizer.encode(text)) > len(middle) + 2, "what a user types stays text"
        assert tokenizer.decode([front, *old.encode("an owl"), back]) == old.decode(old.encode("an owl"))
    with pytest.raises(ValueError, match="special token '<think>' is empty, given twice, or in the vocabulary already"):
        extend_tokenizer(old, special_tokens=["<think>"])
    for names in (["<a>", "<a>"], [""], [old.id_to_piece(265)], [old.id_to_piece(old.bos_id)]):
        with pytest.raises(ValueError, match="is empty, given twice"):
            extend_tokenizer(old, special_tokens=names)


def test_sentencepiece_reads_the_special_tokens():
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle is sentencepiece")
    new = extend_tokenizer(train_bpe(ENGLISH, 300), [Piece("\u732b")], special_tokens=CHAT)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=new.model)
    assert [theirs.piece_to_id(name) for name in CHAT] == [new.added[name].id for name in CHAT]
    assert all(map(theirs.is_control, [new.added[name].id for name in CHAT]))
    assert theirs.encode("an owl\u732b<|im_end|>") == new.encode("an owl\u732b<|im_end|>")


def test_pieces_come_from_files_of_either_kind(tmp_path):
    old, pieces = small()
    for number, tokenizer in enumerate((train_bpe(CHINESE, 320, split_digits=False), extend_tokenizer(old, pieces))):
        tokenizer.save(tmp_path / str(number))
        texts = {piece.text for piece in pieces_of(tmp_path / str(number))}
        assert {"\u5934\u9e70", "\u5728"} < texts
    assert "\u2581owl" in texts and not any("\ufffd" in text or " " in text for text in texts)
    train_wordpiece(ENGLISH, 40).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="holds a WordPieceTokenizer: pieces are taken from"):
        pieces_of(tmp_path / "tokenizer.json")


def assert_equal_to_tokenizers(new, count, seed):
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle is tokenizers")
    theirs = tokenizers.Tokenizer.from_str(tokenizer_json(new).decode())
    for text in fuzzed(count, seed):
        text = f"{CHINESE[0][:seed % 9]}{text}{SENTENCE[seed % 5:]} {ENGLISH[0][:9]}"
        assert theirs.encode(text, add_special_tokens=False).ids == new.encode(text, allowed_special="all"), text


@pytest.mark.parametrize("pattern", ["llama3", "gpt2"])
def test_tokenizers_cuts_alike(pattern):
    old, pieces = small(pattern)
    assert_equal_to_tokenizers(extend_tokenizer(old, pieces, special_tokens=CHAT), 200, 1)


@pytest.mark.long
def test_llama_3_with_the_pieces_of_chinese_llama(weights):
    """Of 20,000 pieces 5,012 are there already and 452 cross a cut of the pattern; 534 tokens lead to others."""
    chinese = SentencePieceTokenizer((weights / "chinese_sp.model").read_bytes()).pieces
    new = extend_tokenizer(llama3(), chinese, special_tokens=CHAT)
    assert (llama3().vocab_size, new.vocab_size, new.added[CHAT[0]].id) == (128256, 143328, 143326)
    assert (len(llama3().encode(SENTENCE)), len(new.encode(SENTENCE))) == (25, 15)
    english = "The capital of France is Paris, isn't it? 2023"
    assert new.encode(english) == llama3().encode(english)
    assert_equal_to_tokenizers(new, 2000, 2)


plant = partial(Mutant, "minillama.tokenizer.extend")
MUTANTS = [
    plant("ranks[parts[0], parts[1]] = len(ranks)", "ranks[parts[0], parts[1]] = -len(ranks)",
          test_old_tokens_keep_their_ids_and_each_new_piece_is_one_token_behind_all_of_them),
    plant("token, tokenizer.vocab_size + len(ids))", "token, len(tokenizer.ids) + len(ids))",
          test_old_tokens_keep_their_ids_and_each_new_piece_is_one_token_behind_all_of_them),
    plant("tokenizer.split(text) != [text] or", "", test_what_the_pattern_cuts_apart_or_joins_digits_is_left_out),
    plant("[*tokenizer.merges(), *pairs]", "[*pairs, *tokenizer.merges()]",
          test_old_tokens_keep_their_ids_and_each_new_piece_is_one_token_behind_all_of_them),
]
