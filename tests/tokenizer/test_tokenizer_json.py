"""tokenizer.json: the ids of Hugging Face's own library, for the kinds that LLaMA models come with."""

import json

import pytest
from byte_texts import fuzzed
from mutants import Mutant

from minillama.tokenizer import load_tokenizer
from minillama.tokenizer.byte_bpe import GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS
from minillama.tokenizer.tokenizer_json import read_tokenizer_json, tokenizer_json

TEXT = ["the cat sat on the mat, the 1234 cats' hats don't match 56 bats",
        "na\u00efve caf\u00e9 \u4f60\u597d\u4f60\u597d \u0439\u0446\u0443",
        "    def f(x):\n\treturn x + 1\n", "the the the ninth theme then"] * 5


def library():
    return pytest.importorskip("tokenizers", reason="the oracle: pip install -r tests/oracles.txt")


def trained(steps, prefix_space=False):
    """A byte-level BPE that the library trained on TEXT. steps: patterns; None: its own; "digits": also digits."""
    tokenizers = library()
    pre = tokenizers.pre_tokenizers
    level = pre.ByteLevel(add_prefix_space=prefix_space, use_regex=steps in (None, "digits"))
    splits = [pre.Split(tokenizers.Regex(step), "isolated") for step in steps or ()]
    splits = [pre.Digits(individual_digits=True)] if steps == "digits" else splits
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre.Sequence([*splits, level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=["<|endoftext|>", "<|im_start|>"],
                                             initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def assert_equal(theirs, ours, count=300):
    for text in fuzzed(count, seed=3):
        if "<|" in text:
            continue  # the library turns names of special tokens into tokens; here they are text
        wanted = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == wanted, repr(text)
        assert ours.decode(wanted) == theirs.decode(wanted), repr(text)


def test_byte_level_vocabularies_give_the_ids_of_the_library():
    for theirs in (trained(None), trained([LLAMA3_WORDS]), trained("digits"), trained(None, True)):
        ours = read_tokenizer_json(theirs.to_str().encode())
        assert_equal(theirs, ours)
        assert (ours.vocab_size, ours.eos_id) == (theirs.get_vocab_size(), 0)
        assert theirs.encode("a<|endoftext|>").ids == ours.encode("a<|endoftext|>", allowed_special="all")


def test_whole_words_need_no_joining_where_the_file_says_so():
    content = json.loads(trained(None).to_str())
    content["model"]["vocab"]["zq"] = 330  # no merge leads to it
    for flag, wanted in ((False, 2), (True, 1)):
        content["model"]["ignore_merges"] = flag
        text = json.dumps(content)
        ours = read_tokenizer_json(text.encode()).encode("zq")
        assert len(ours) == wanted and ours == library().Tokenizer.from_str(text).encode("zq").ids


def with_template(template):
    theirs = trained(None)
    names = [(name, theirs.token_to_id(name)) for name in ("<|endoftext|>", "<|im_start|>")]
    theirs.post_processor = library().processors.TemplateProcessing(single=template, special_tokens=names)
    return theirs


@pytest.mark.parametrize(("template", "bos", "eos"), [
    ("$A", False, False), ("<|im_start|> $A", True, False), ("$A <|endoftext|>", False, True),
    ("<|im_start|> $A <|endoftext|>", True, True), ("<|endoftext|> $A <|endoftext|>", True, True)])
def test_the_tokens_around_a_text_are_those_of_the_library(template, bos, eos):
    theirs = with_template(template)
    ours = read_tokenizer_json(theirs.to_str().encode())
    assert (bool(ours.add_bos), bool(ours.add_eos)) == (bos, eos)
    assert ours.encode("the cat", bos=bos, eos=eos) == theirs.encode("the cat").ids


@pytest.mark.parametrize("template", [
    "<|im_start|> <|im_start|> $A", "$A <|endoftext|> <|endoftext|>", "<|im_start|> <|im_start|> $A <|endoftext|>",
    "<|im_start|> $A <|endoftext|> <|endoftext|>", "$A <|endoftext|> $A"])
def test_more_tokens_than_one_on_a_side_of_a_text_are_refused(template):
    with pytest.raises(ValueError, match="puts more around a text than one known token on either side"):
        read_tokenizer_json(with_template(template).to_str().encode())


def test_what_we_write_the_library_reads():
    source = read_tokenizer_json(trained([SINGLE_DIGITS, GPT2_WORDS]).to_str().encode())
    written = tokenizer_json(source)
    theirs, ours = library().Tokenizer.from_str(written.decode()), read_tokenizer_json(written)
    assert_equal(theirs, ours)
    assert ours.ids == source.ids and ours.merges() == source.merges()


def test_a_llama_2_vocabulary_gives_the_ids_of_its_model_file(weights):
    """The library's form of a SentencePiece vocabulary: merges in the order of the scores."""
    model = load_tokenizer(weights / "llama_tokenizer.model")
    pieces = {piece.text: index for index, piece in enumerate(model.pieces)}
    score = {piece.text: piece.score for piece in model.pieces}
    merges = [(text[:cut], text[cut:]) for text in pieces for cut in range(1, len(text))
              if text[:cut] in pieces and text[cut:] in pieces]
    merges.sort(key=lambda pair: -score[pair[0] + pair[1]])
    content = {"model": {"type": "BPE", "vocab": pieces, "merges": [list(pair) for pair in merges],
                         "byte_fallback": True, "unk_token": "<unk>"},
               "added_tokens": [{"id": 0, "content": "<unk>"}, {"id": 1, "content": "<s>"},
                                {"id": 2, "content": "</s>"}],
               "normalizer": {"type": "Sequence", "normalizers": [
                   {"type": "Prepend", "prepend": "\u2581"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}}
    ours = read_tokenizer_json(json.dumps(content).encode())
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.vocab_size) == (1, 2, 0, 32000)
    for text in fuzzed(300, seed=4):
        assert ours.encode(text) == model.encode(text), repr(text)


def test_settings_beside_it_name_the_ends(tmp_path):
    (tmp_path / "tokenizer.json").write_text(trained(None).to_str())
    assert load_tokenizer(tmp_path / "tokenizer.json").bos_id == 1  # <|im_start|>, by custom
    settings = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_start|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)


def test_a_merge_to_no_token_is_refused_with_both_of_its_parts():
    content = json.loads(trained(None).to_str())
    content["model"]["merges"].append(["a", "\u0120"])  # a and a space, spelled as GPT-2 does
    with pytest.raises(ValueError, match="joins b'a' and b' ' to no token of its vocabulary"):
        read_tokenizer_json(json.dumps(content).encode())


def test_another_kind_of_file_is_refused_by_name():
    good = json.loads(trained(None).to_str())
    for change, message in (({"model": {**good["model"], "type": "Unigram"}}, "type 'Unigram'"),
                            ({"normalizer": {"type": "NFKC"}}, "normalizer 'NFKC'"),
                            ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts text by"),
                            ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "invert": False,
                                                "behavior": "Isolated"}}, "cuts text by"),
                            ({"model": {"vocab": {}}}, "not a tokenizer.json"),
                            ({"model": {**good["model"], "vocab": {"a": -1}}}, "not a whole number"),
                            ({"model": {**good["model"], "vocab": {"a": 300, "b": 300}}}, "to no token|share an id"),
                            ({"model": {**good["model"], "merges": ["a"]}}, "not a tokenizer.json")):
        with pytest.raises(ValueError, match=message):
            read_tokenizer_json(json.dumps({**good, **change}).encode())


JSON = "minillama.tokenizer.tokenizer_json"
MUTANTS = [
    Mutant(JSON, "for rank, (left, right) in enumerate(merges)}", "for rank, (left, right) in enumerate(merges[::-1])}",
           test_byte_level_vocabularies_give_the_ids_of_the_library),
    Mutant(JSON, "SINGLE_DIGITS\n        elif", "GPT2_WORDS\n        elif",
           test_byte_level_vocabularies_give_the_ids_of_the_library),
    Mutant(JSON, 'flag(model, "ignore_merges", "tokenizer.json")', "True",
           test_whole_words_need_no_joining_where_the_file_says_so),
]
