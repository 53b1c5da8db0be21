"""Encoding with a SentencePiece model in plain Python: its ids and text on every input, with or without cuts."""

import random
from functools import lru_cache

import pytest
from mutants import Mutant
from tokenizer_texts import (
    MISTRAL,
    hand_made,
    mistral_model,
    own_model,
    processor,
    random_hand_made,
    random_ids,
    random_text,
    real_text,
    tiny_model,
)

from minillama.tokenizer import default_backend
from minillama.tokenizer.bpe_encoder import rank_of
from minillama.tokenizer.compiled import BACKENDS
from minillama.tokenizer.protobuf import write_fields
from minillama.tokenizer.sentencepiece import Piece, SentencePieceTokenizer, model_bytes


def check_like_sentencepiece(model, count, seed):
    """Ids and texts of `count` random strings and id lists."""
    ours, theirs, rng = tokenizer_of(model), processor(model), random.Random(seed)
    for _ in range(count):
        text = random_text(rng)
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, repr(text)
        for given in (ids, random_ids(rng, ours.vocab_size)):
            assert ours.decode(given) == theirs.decode(given), given


# ---- equal to sentencepiece --------------------------------------------------------------------------------------

def plain(model):
    return SentencePieceTokenizer(model, backend="python")


tokenizer_of = lru_cache(plain)


@pytest.fixture
def llama(weights):
    return (weights / "llama_tokenizer.model").read_bytes()


def test_llamas_tokenizer_gives_sentencepieces_ids_and_text(llama):
    check_like_sentencepiece(llama, 500, seed=1)


@pytest.mark.parametrize("name", MISTRAL)
def test_mistrals_tokenizers_give_sentencepieces_ids_and_text(name):
    check_like_sentencepiece(mistral_model(name), 300, seed=2)


def test_our_own_tokenizers_give_sentencepieces_ids_and_text():
    check_like_sentencepiece(own_model(), 600, seed=3)


@pytest.mark.long
def test_twenty_thousand_strings_are_encoded_as_by_sentencepiece(llama):
    for seed, model in enumerate([llama, own_model(), *map(mistral_model, MISTRAL)]):
        check_like_sentencepiece(model, 4000, seed=100 + seed)


def test_the_vectors_of_llama_cpp_hold(weights, llama):
    """46 strings, each followed by a marker line (what comes after the last marker is not a string)."""
    texts = (weights / "ggml-vocab-llama-spm.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (weights / "ggml-vocab-llama-spm.gguf.out").read_text().splitlines()
    tokenizer = tokenizer_of(llama)
    assert len(lines) == 46 and texts.pop() == ""
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text) == [int(number) for number in line.split()], repr(text)


def check_hand_made(seeds):
    for seed in seeds:
        rng = random.Random(seed)
        model = random_hand_made(rng)
        ours, theirs = plain(model), processor(model)
        for _ in range(20):
            text = "".join(rng.choices("ab\u2581cé  \n", k=rng.randrange(20)))
            ids = theirs.encode(text)
            assert ours.encode(text) == ids, (seed, text)
            for given in (ids, random_ids(rng, ours.vocab_size)):
                assert ours.decode(given) == theirs.decode(given), (seed, given)


def test_any_mixture_of_pieces_and_rules_is_encoded_as_by_sentencepiece():
    check_hand_made(range(100))


@pytest.mark.long
def test_many_mixtures_of_pieces_and_rules_are_encoded_as_by_sentencepiece():
    check_hand_made(range(100, 3000))


# ---- facts that need no oracle -----------------------------------------------------------------------------------

def test_known_ids_of_llama(llama):
    tokenizer = tokenizer_of(llama)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id) == (1, 2, 0, None)
    assert tokenizer.encode("Hello world", bos=True, eos=True) == [1, 15043, 3186, 2]
    assert (tokenizer.encode(" Hello"), tokenizer.encode(" "), tokenizer.encode("")) == ([29871, 15043], [259], [])
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("2023")] == ["▁", "2", "0", "2", "3"]


def test_control_tokens_written_in_a_text_stay_text():
    tokenizer = plain(tiny_model())
    assert {1, 2} & set(tokenizer.encode("a</s><s>")) == set()
    assert tokenizer.decode(tokenizer.encode("a</s><s>")) == "a</s><s>"
    assert tokenizer.decode([1, *tokenizer.encode("low"), 2]) == "low"
    tokenizer = plain(hand_made([Piece("▁"), Piece("</", -1.0), Piece("s>", -2.0)]))
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("</s>")] == ["▁", "</", "s>"]  # though they join to it


def test_the_best_score_is_joined_first_whatever_the_ids():
    tokenizer = plain(hand_made(
        [Piece(text, score) for text, score in (("ab", -9.0), ("bc", -1.0), ("a", -10.0), ("c", -11.0))]))
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("abc")][-2:] == ["a", "bc"]


def test_scores_rank_as_numbers_do_and_minus_zero_is_below_zero():
    scores = [float("-inf"), -1e9, -2.0, -1.0, -0.0, 0.0, 1e-9, 3.0, float("inf")]
    assert sorted(scores, key=rank_of, reverse=True) == scores and rank_of(-0.0) > rank_of(0.0)


def test_characters_outside_the_vocabulary_become_their_bytes_and_come_back():
    tokenizer = plain(tiny_model())
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("🦙")][1:] == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"]
    for text in ("🦙", "\0", " two  spaces ", "\n\t", "日本", "\ufffd"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_without_byte_fallback_a_run_of_strangers_is_one_unknown():
    tokenizer = plain(hand_made([Piece("▁"), Piece("a", -1.0)], byte_fallback=False))
    assert tokenizer.encode("axyz wa") == [3, 4, 0, 3, 0, 4]
    assert tokenizer.encode("x" * 200 + "y") == [3, 0]
    assert tokenizer.decode([3, 4, 0]) == "a \u2047 "
    assert plain(hand_made([Piece("a")], byte_fallback=False)).encode("x y") == [0]  # across words


@pytest.mark.parametrize("texts", [
    ("é", "aé", "éa", "é"),  # kept where it came first, then behind a piece, where it is an id of its own
    ("éü!", "ü!", "éü!", "aü!"),  # met behind an unknown, whose id its own first one joins, then alone
    ("ü!", "éü!", "aéü!", "ü!ü!")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_kept_of_a_run_does_not_depend_on_what_stood_before_it(texts, backend):
    """ü is known as a part of a user-defined piece alone: it touches what follows it, and has no id. What is expected
    comes from a tokenizer that has seen no other text."""
    if backend == "cpp" and default_backend() != "cpp":
        pytest.skip("the compiled core is not built")
    letters = [Piece(letter, -1.0) for letter in "ab!▁"]
    special = [Piece("<s>", 0.0, 3), Piece("</s>", 0.0, 3), Piece("<unk>", 0.0, 2)]  # its id is not 0
    model = model_bytes([*letters, *special, Piece("ü!?", 0.0, 4)], byte_fallback=False)
    model += write_fields([(3, 2, write_fields([(3, 0, 0)]))])  # no space before
    tokenizer = SentencePieceTokenizer(model, backend=backend)
    assert [tokenizer.encode(text) for text in texts] == processor(model).encode(list(texts)) == [
        SentencePieceTokenizer(model, backend=backend).encode(text) for text in texts]


def test_only_the_first_token_loses_its_leading_space():
    tokenizer = plain(tiny_model())
    low = tokenizer.id_named("▁low")
    assert tokenizer.decode([low, low]) == "low low" and tokenizer.decode([1, low]) == "low"
    newline = tokenizer.id_named("<0x0A>")
    assert tokenizer.decode([newline, low]) == "\n low"


def test_each_byte_that_forms_no_character_is_shown_as_one_mark():
    tokenizer = plain(tiny_model())
    ids = [tokenizer.id_named(piece) for piece in ("<0xE2>", "<0x96>", "a", "<0xE2>", "<s>", "<0x96>", "<0x81>")]
    assert tokenizer.decode(ids) == "\ufffd\ufffda\ufffd\ufffd\ufffd"


def test_the_incremental_decoder_shows_whole_characters_and_in_sum_the_text():
    tokenizer, rng = plain(own_model()), random.Random(8)
    for _ in range(200):
        text = random_text(rng)
        ids, decoder = tokenizer.encode(text), tokenizer.decoder()
        shown = [decoder.push(index) for index in ids]
        assert "".join(shown) + decoder.flush() == tokenizer.decode(ids)
        assert "\ufffd" in text or not any("\ufffd" in part for part in shown)


def test_a_long_line_without_cuts_leaves_no_trace_in_the_cache():
    encoder = plain(tiny_model()).encoder_of(True)
    ids = encoder.encode("ab" * 10_000)
    assert len(ids) < 12_000 and encoder.encode("ab" * 10_000 + " low")[:-1] == ids
    assert encoder.ids_of_word.cache_info().currsize == 1


def test_words_of_64_characters_are_remembered():
    encoder = plain(tiny_model()).encoder_of(True)
    for _ in range(2):
        encoder.encode("a" * 63 + " " + "a" * 64)
    assert encoder.ids_of_word.cache_info()[:2] == (1, 1), "hits and misses of the word of 64"


def test_the_word_cache_is_bounded_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("minillama.tokenizer.bpe.CACHE_WORDS", 5)
    small, large = plain(own_model()), plain(own_model())
    text = real_text(5000).decode("utf-8", "ignore")
    encoder = large.encoder_of(True)
    encoder.ids_of_word = lambda word: encoder.ids(encoder.segment(word))  # no cache at all
    assert small.encode(text) == large.encode(text) and small.encoder_of(True).ids_of_word.cache_info().currsize == 5


def test_a_text_is_cut_only_where_no_piece_reaches_across():
    """A piece with a space inside forbids cutting there."""
    tokenizer = plain(hand_made([Piece("▁a"), Piece("a▁", 5.0), Piece("a▁a", -1.0), Piece("a", -2.0)]))
    assert [tokenizer.id_to_piece(i) for i in tokenizer.encode("a a")] == ["<0xE2>", "<0x96>", "<0x81>", "a▁a"]


def _with_small_cache():
    patch = pytest.MonkeyPatch()
    try:
        test_the_word_cache_is_bounded_and_changes_nothing(patch)
    finally:
        patch.undo()


_ENCODER = "minillama.tokenizer.bpe_encoder"
_FILE = "minillama.tokenizer.sentencepiece"
MUTANTS = [
    Mutant(_ENCODER, "rank_of(pieces[i][1])", "i", test_the_best_score_is_joined_first_whatever_the_ids),
    Mutant(_ENCODER, "MATCHABLE = (NORMAL, ", "MATCHABLE = (NORMAL, CONTROL, ",
           test_control_tokens_written_in_a_text_stay_text),
    Mutant(_ENCODER, "else -bits - 1", "else -bits", test_scores_rank_as_numbers_do_and_minus_zero_is_below_zero),
    Mutant(_ENCODER, "elif self.rules.byte_fallback:", "elif False:",
           test_characters_outside_the_vocabulary_become_their_bytes_and_come_back),
    Mutant(_ENCODER, "if ids and found and ids[-1] == found[0] == self.unk_id:", "if False:",
           test_without_byte_fallback_a_run_of_strangers_is_one_unknown),
    Mutant(_ENCODER, "None if inner_space else", "None if False else",
           test_a_text_is_cut_only_where_no_piece_reaches_across),
    Mutant("minillama.tokenizer.bpe", "if len(word) <= CACHE_LENGTH", "if len(word) < CACHE_LENGTH",
           test_words_of_64_characters_are_remembered),
    Mutant("minillama.tokenizer.bpe", "lru_cache(CACHE_WORDS)", "lru_cache(None)", _with_small_cache),
    Mutant(_FILE, "self._at_start and text.startswith", "text.startswith",
           test_only_the_first_token_loses_its_leading_space),
    Mutant(_FILE, "self._at_start = self._at_start and not shown\n            return", "return",
           test_only_the_first_token_loses_its_leading_space),
    Mutant("minillama.tokenizer.sentencepiece", '("utf-8")(EACH_BYTE)', '("utf-8")("replace")',
           test_each_byte_that_forms_no_character_is_shown_as_one_mark),
]
