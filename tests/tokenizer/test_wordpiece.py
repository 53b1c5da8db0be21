"""WordPiece: ids are those of Hugging Face's tokenizers and transformers; files go both ways or are refused."""

import json
import pickle
import random
import unicodedata
from functools import cache, partial

import pytest
from mutants import Mutant
from tokenizer_texts import CRUEL, random_text, real_text

from minillama.tokenizer import load_tokenizer
from minillama.tokenizer.wordpiece import (
    UNCASED,
    BertRules,
    WordPieceTokenizer,
    longest_match,
    split_words,
    train_wordpiece,
)

RULES = (UNCASED, BertRules(lowercase=False), BertRules(False, False, True, False), BertRules(True, True, False))


@cache
def trained(rules=UNCASED, size=700):
    return train_wordpiece([real_text(30_000).decode("utf-8", "ignore")], size, rules)


def hugging_face(tokenizer):
    """The tokenizers library with the same vocabulary and rules, built of its own parts."""
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle of WordPiece encoding is tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.WordPiece(tokenizer.ids, unk_token="[UNK]"))
    theirs.normalizer = tokenizers.normalizers.BertNormalizer(**tokenizer.rules._asdict())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return theirs


def known(text):
    """The text without characters that came or changed their kind after Unicode 3.2: tokenizers' tables are old."""
    return "".join(c for c in text if unicodedata.ucd_3_2_0.category(c) == unicodedata.category(c)
                   and unicodedata.category(c) not in ("Cn", "Co", "Cs"))


def check_ids(rules, count):
    tokenizer = trained(rules)
    oracle, draw = hugging_face(tokenizer), random.Random(3)
    words = sorted(set(real_text(60_000).decode("utf-8", "ignore").split()))[:count]
    texts = [known(random_text(draw)) for _ in range(count // 5)]
    for text in [*words, *texts, *(known(data.decode("utf-8", "replace")) for data in CRUEL.values())]:
        assert tokenizer.encode(text) == oracle.encode(text).ids, repr(text)


@pytest.mark.parametrize("rules", RULES)
def test_ids_are_those_of_tokenizers(rules):
    check_ids(rules, 500)


def test_every_character_is_kept_dropped_or_cut_as_tokenizers_does():
    oracle = hugging_face(trained())
    cut = oracle.pre_tokenizer.pre_tokenize_str
    for character in filter(known, map(chr, (*range(0x2100), *range(0x3000, 0x3100), 0x4E00, 0x9FA5, 0xAC00, 0xFB01,
                                             *range(0xFE20, 0x10000), 0x1D400, 0x20000, 0x2F800, 0xE0041))):
        theirs = [word for word, _ in cut(oracle.normalizer.normalize_str(f"a{character}b"))]
        assert split_words(f"a{character}b", UNCASED) == theirs, hex(ord(character))


def vocab_txt(tokenizer):
    """The bytes of BERT's vocab.txt: one piece a line, in the order of ids."""
    return "".join(f"{tokenizer.id_to_piece(index)}\n" for index in range(tokenizer.vocab_size)).encode()


@pytest.mark.long
def test_ids_of_ten_thousand_words_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' BertTokenizer")
    text = real_text(700_000).decode("utf-8", "ignore")
    tokenizer = trained(size=1200)
    (tmp_path / "vocab.txt").write_bytes(vocab_txt(tokenizer))
    oracle, words = transformers.BertTokenizer(str(tmp_path / "vocab.txt")), sorted(set(text.split()))
    assert len(words) >= 10_000
    ours = load_tokenizer(tmp_path / "vocab.txt").encode_batch(words, bos=True, eos=True)
    for word, ids in zip(words, ours, strict=True):
        assert ids == oracle(word).input_ids, repr(word)


def test_a_word_with_an_unknown_rest_is_unknown_as_a_whole():
    assert longest_match("huge", {"hug", "h", "##u"}) is None
    tokenizer = WordPieceTokenizer({"[UNK]": 0, "hug": 1, "##s": 2, "[CLS]": 3, "[SEP]": 4})
    assert tokenizer.encode("hugs huge hug", bos=True, eos=True) == [3, 1, 2, 0, 1, 4]
    assert tokenizer.decode([3, 1, 2, 0, 1, 4]) == "hugs [UNK] hug"
    assert tokenizer.encode("s" * 101) == tokenizer.encode("s") == [0] and tokenizer.encode("hug" + "s" * 97) != [0]


def test_a_name_typed_by_a_user_is_text_and_a_special_token_only_on_request():
    tokenizer = trained()
    mask = tokenizer.ids["[MASK]"]
    assert mask not in tokenizer.encode("a [MASK] b")
    assert tokenizer.encode("[MASK]", allowed_special="all") == [mask]
    assert tokenizer.decode([mask]) == "" and tokenizer.decode([mask], show_special=True) == "[MASK]"


def test_text_is_normalized_as_bert_does():
    assert split_words("\u00dcn\u00ef\u200d\u6c49x\t\u03a3", UNCASED) == ["uni", "\u6c49", "x", "\u03c3"]
    assert split_words("\u0391\u03a3") == ["\u03b1\u03c3"]  # Python's lower would write another sigma at the end
    assert split_words("don't $5 \u00abx\u00bb a~b", UNCASED) == [
        "don", "'", "t", "$", "5", "\u00ab", "x", "\u00bb", "a", "~", "b"]


@pytest.mark.parametrize("rules", RULES)
def test_a_tokenizer_json_is_written_that_tokenizers_reads_and_is_read_again(rules, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle of the file is tokenizers")
    path, ours = tmp_path / "tokenizer.json", trained(rules)
    ours.save(path)
    again, theirs = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    assert (again.ids, again.rules, again.special_tokens) == (ours.ids, rules, ours.special_tokens)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    for text in ("The w\u00f6rld's \u6c49\u5b57, 2023", ""):
        assert ours.encode(text, bos=True) == again.encode(text, bos=True) == theirs.encode(text).ids
        ids = again.encode(text)
        assert ours.decode(ids, show_special=True) == theirs.decode(ids, skip_special_tokens=False)
    assert pickle.loads(pickle.dumps(again)).encode("the wordy") == again.encode("the wordy")


@pytest.mark.long
def test_a_file_of_transformers_is_read_with_equal_ids(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers' BertTokenizer")
    (tmp_path / "vocab.txt").write_bytes(vocab_txt(trained()))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    text = "Caf\u00e9 don't \u6c49\u5b57 [x]"
    assert ours.begins and ours.add_eos and ours.encode(text, bos=True, eos=True) == theirs(text).input_ids


def test_a_vocabulary_of_one_piece_a_line_is_read_and_saved_as_it_was(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(vocab_txt(trained()))
    again = load_tokenizer(tmp_path / "vocab.txt")
    assert again.ids == trained().ids and again.encode("Hugs pug") == trained().encode("Hugs pug")
    assert (tmp_path / "vocab.txt").read_bytes().split(b"\n")[:2] == [b"[PAD]", b"[UNK]"]
    again.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()


def test_settings_beside_a_vocabulary_say_whether_letters_lose_their_case(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\nA\na\n")
    assert not load_tokenizer(tmp_path / "vocab.txt").rules.lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "strip_accents": true}')
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.rules == BertRules(lowercase=False, strip_accents=True) and tokenizer.encode("A \u00e0") == [1, 2]


@pytest.mark.parametrize(("content", "said"), [
    (b"[UNK]\na\na\n", "'a' .* stands twice"), (b"[UNK]\n\xff\n", "not UTF-8"), (b"[UNK]\n\na\n", "'' .* empty")])
def test_a_damaged_vocabulary_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        load_tokenizer(tmp_path / "vocab.txt")
    assert "\n" not in str(error.value)


HOSTILE = {
    "model.vocab": ({"a": 0}, "needs the piece .UNK."), "model.unk_token": ("<unk>", "another model than BERT's"),
    "model.max_input_chars_per_word": (50, "another model"), "model.more": (1, "another model"),
    "normalizer": (None, "damaged"), "model": ([], "damaged"), "normalizer.lowercase": (1, "normalizes a text by"),
    "normalizer.strip_accents": ("no", "normalizes a text by"), "pre_tokenizer": (None, "another pre_tokenizer"),
    "decoder": (None, "another decoder"), "decoder.prefix": ("@", "another decoder"), "strange": (1, "strange"),
    "model.vocab.[PAD]": ("x", "a number of its own"), "model.vocab.[CLS]": (1, "a number of its own"),
    "post_processor": ({"type": "BertProcessing"}, "not known here"),
    "added_tokens": ([{"id": 0, "content": "[CLS]", "special": True}], "the id 0, and 2 in the vocabulary")}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_json_of_other_settings_is_refused_in_one_line(tmp_path, name):
    value, said = HOSTILE[name]
    trained().save(tmp_path / "tokenizer.json")
    place = content = json.loads((tmp_path / "tokenizer.json").read_text())
    *folders, last = name.split(".")
    for folder in folders:
        place = place[folder]
    place[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said) as error:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)


plant = partial(Mutant, "minillama.tokenizer.wordpiece")
MUTANTS = [
    plant("range(len(word), start, -1)", "range(start + 1, len(word) + 1)", lambda: check_ids(UNCASED, 300)),
    plant("word[start:end])\n        start = end", "word[start:end])\n        start += 1",
          test_a_word_with_an_unknown_rest_is_unknown_as_a_whole),
    plant("len(word) <= MAX_CHARACTERS", "len(word) < MAX_CHARACTERS",
          test_a_word_with_an_unknown_rest_is_unknown_as_a_whole),
    plant(r'CHINESE.sub(r" \g<0> ", text)', "text", test_text_is_normalized_as_bert_does),
    plant('if rules.strip_accents is None else', 'if rules.strip_accents is True else',
          lambda: check_ids(BertRules(False, False, True, False), 300)),
    plant('character.lower() for character in text', 'text.lower()', test_text_is_normalized_as_bert_does),
]
