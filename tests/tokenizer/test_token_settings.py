"""What files beside a vocabulary say of its tokens: obeyed as transformers obeys it, damaged ones refused."""

import itertools
import json
import random

import pytest
from checkpoints import in_a_folder
from mutants import Mutant

from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.token_settings import read_token_settings


@pytest.fixture
def folder(tmp_path):
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(tmp_path / "tokenizer.model")
    return tmp_path


def put(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_tokenizer(folder / "tokenizer.model")


def entry(text, special, **flags):
    return {"content": text, "special": special, "lstrip": False, "rstrip": False, "single_word": False,
            "normalized": False, **flags}


SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("more", [
    {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}, {"add_bos_token": True, "legacy": True},
    {"add_bos_token": True, "add_prefix_space": False}, {"add_bos_token": True, "eos_token": "<|end|>"}])
def test_ids_are_those_of_transformers(folder, more):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    added = {"280": entry("<|end|>", True), "281": entry("<tool>", False), "282": entry("<r>", False, rstrip=True)}
    ours = put(folder, config={"model_type": "llama"},
               tokenizer_config=SETTINGS | more | {"added_tokens_decoder": added})
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    rng = random.Random(7)
    for _ in range(100):
        text = "".join(rng.choices(["the", " cat", "<tool>", "<r>", "  ", "x", "\u00e9", "\n", "hat"], k=6))
        ids = ours.encode(text, bos=ours.begins, eos=ours.add_eos)
        assert ids == theirs.encode(text), (more, text)
        marked = text + "<|end|>" + text
        assert ours.encode(marked, allowed_special="all") == theirs.encode(marked, add_special_tokens=False), marked


def test_of_several_files_the_one_that_transformers_believes_counts(folder):
    ours = put(folder, tokenizer_config={"eos_token": "</s>"}, config={"eos_token_id": [5, 6]},
               added_tokens={"<e>": 280, "<t>": 281, "<|i|>": 282, "<w>": 283},
               special_tokens_map={"eos_token": {"content": "<e>"}, "additional_special_tokens": ["<t>"]})
    assert ours.eos_id == 280 and ours.end_ids == {1, 5, 6, 280}
    assert [ours.added[name].special for name in ("<e>", "<t>", "<|i|>", "<w>")] == [True, True, True, False]
    ours = put(folder, generation_config={"eos_token_id": 7})
    assert ours.end_ids == {1, 7, 280}
    (folder / "chat_template.jinja").write_text("own file")
    put(folder, tokenizer_config={"chat_template": [{"name": "default", "template": "listed"}]})
    assert read_token_settings(folder).chat_template == "own file"
    (folder / "chat_template.jinja").unlink()
    assert read_token_settings(folder).chat_template == "listed"


@pytest.mark.parametrize("newer", [{}, {"added_tokens_decoder": {"280": {"content": "<e>", "special": True}}}])
def test_bos_and_eos_are_those_that_transformers_takes_from_both_files(folder, newer):
    """special_tokens_map.json counts before tokenizer_config.json where that has no added_tokens_decoder; null and
    an empty text say that there is no such token, whatever the vocabulary holds."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "added_tokens.json").write_text('{"<e>": 280}')
    for config, named in itertools.product(("</s>", "<e>", None, ""), ("</s>", "<e>", None)):
        given = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": "<unk>", "eos_token": config}
        ours = put(folder, tokenizer_config=given | newer, special_tokens_map={} if named is None else
                   {"eos_token": named})
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert ours.eos_id == (theirs.eos_token_id if theirs.eos_token else None), (config, named)
    for none in (None, ""):
        ours = put(folder, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "bos_token": none} | newer)
        assert ours.bos_id is None and not ours.begins


def test_a_template_file_that_is_too_large_or_not_utf_8_is_refused_and_not_cut(folder):
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages }}" + " " * (2**20 - 14))
    assert len(read_token_settings(folder).chat_template) == 2**20
    path.write_text("{{ messages }}" + " " * (2**20 - 13))
    with pytest.raises(ValueError, match="chat_template.jinja is larger than 1048576 bytes"):
        load_tokenizer(folder / "tokenizer.model")
    path.write_bytes(b"{{ messages }}\xff")
    with pytest.raises(ValueError, match="chat_template.jinja is not UTF-8 .invalid start byte at byte 14"):
        load_tokenizer(folder / "tokenizer.model")


def test_a_token_that_is_named_special_is_so_though_the_vocabulary_holds_it_as_a_word(folder):
    word = load_tokenizer(folder / "tokenizer.model").id_to_piece(270)
    for named in ({"eos_token": word}, {"additional_special_tokens": [{"content": word, "rstrip": True}]},
                  {"extra_special_tokens": {"tool": word}}, {"image_token": word}):
        ours = put(folder, tokenizer_config=named)
        assert ours.added[word].special and ours.decode([270]) == "" and ours.decode([270], show_special=True)
        assert ours.encode(word, allowed_special="all") == [270]
    with pytest.raises(ValueError, match="a special token is '<none>', which is not in the vocabulary"):
        put(folder, tokenizer_config={"additional_special_tokens": ["<none>"]})


def test_what_the_families_files_say_is_read(folder):
    """As it stands on the hub, beside tokens that this small vocabulary has."""
    old = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": True, "rstrip": False,
           "single_word": False}
    for words in ({"bos_token": old, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {}},
                  {"model_input_names": ["input_ids"], "model_max_length": 2048, "clean_up_tokenization_spaces": True},
                  {"additional_special_tokens": [], "spaces_between_special_tokens": False, "add_prefix_space": None,
                   "use_default_system_prompt": False}, {"fill_token": "<FILL_ME>", "suffix_first": False},
                  {"vocab_size": 49152, "extra_special_tokens": {}, "errors": "replace"}):
        for name in ("LlamaTokenizer", "PreTrainedTokenizerFast", "GPT2Tokenizer"):
            ours = put(folder, tokenizer_config={"tokenizer_class": name, "eos_token": "</s>", **words})
            assert (ours.bos_id, ours.eos_id, ours.begins) == (1, 2, True), words


def test_cleaning_up_is_told_and_not_done_as_in_transformers_5(folder):
    for wanted in (True, False, None):
        ours = put(folder, tokenizer_config={"clean_up_tokenization_spaces": wanted})
        assert bool(ours.notes) == bool(wanted)
        text = "the cat . the hat 's"
        assert ours.decode(ours.encode(text)) == text
    assert "asks for clean_up_tokenization_spaces" in put(
        folder, tokenizer_config={"clean_up_tokenization_spaces": True}).notes[0]
    with pytest.raises(ValueError, match="even_though_it_will_corrupt_output is True"):
        put(folder, tokenizer_config={"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True})


def test_what_the_installed_transformers_writes_of_generation_is_read(folder):
    transformers = pytest.importorskip("transformers")
    text = transformers.GenerationConfig(eos_token_id=[5, 6]).to_json_string(use_diff=False)
    assert put(folder, generation_config=json.loads(text)).end_ids == {1, 2, 5, 6}


def test_a_tokenizer_json_as_large_as_llama_32s_is_read(folder):
    content = json.dumps({"added_tokens": [{"id": 280, "content": "<e>", "special": True}]})
    (folder / "tokenizer.json").write_text(content + " " * (18_000_000 - len(content)))
    assert load_tokenizer(folder / "tokenizer.model").special_tokens["<e>"] == 280


@pytest.mark.parametrize(("file", "content", "message"), [
    ("tokenizer_config", "{", "not valid JSON"), ("tokenizer_config", "[]", "expected a JSON object"),
    ("tokenizer_config", '{"add_bos_token": 1}', "add_bos_token is 1: expected true or false"),
    ("tokenizer_config", '{"legacy": "no"}', "legacy is 'no'"),
    ("tokenizer_config", '{"bos_token": 7}', "bos_token is 7"),
    ("tokenizer_config", '{"added_tokens_decoder": [1]}', "added_tokens_decoder is no object"),
    ("tokenizer_config", '{"added_tokens_decoder": {"x": {"content": "y"}}}', "id 'x': expected a whole number"),
    ("tokenizer_config", '{"chat_template": 3}', "chat_template is no text"),
    ("added_tokens", '{"<e>": -1}', "id -1: expected a whole number"),
    ("added_tokens", '{"<e>": 2147483647}', "id 2147483647: expected a whole number below 16777216"),
    ("added_tokens", '{"<e>": 7}', "the vocabulary has another of that id"),
    ("tokenizer_config", '{"eos_tokens": "</s>"}', "eos_tokens is not known here"),
    ("tokenizer_config", '{"add_prefix_space": false}', "add_prefix_space is False .* own rule is True"),
    ("tokenizer_config", '{"chat_template": [{"name": "rag", "template": "x"}]}', "holds rag, and no 'default'"),
    ("tokenizer_config", '{"added_tokens_decoder": {"280": {"content": "y", "special": "no"}}}', "'special' 'no'"),
    ("special_tokens_map", '{"unk": "<unk>"}', "unk is not known here"),
    ("generation_config", '{"suppress_tokens": [3]}', "suppress_tokens is .3."),
    ("generation_config", '{"eos_token_id": "2"}', "eos_token_id is '2'"),
    ("config", '{"eos_token_id": [true]}', "eos_token_id"),
    ("tokenizer", '{"added_tokens": [{"content": "", "id": 1}]}', "content is ''"),
    ("tokenizer_config", '{"eos_token": "<none>"}', "the eos token is '<none>'")])
def test_a_damaged_file_is_refused_by_its_name(folder, file, content, message):
    (folder / f"{file}.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(folder / "tokenizer.model")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def damaged_flag(tmp_path):
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(tmp_path / "tokenizer.model")
    test_a_damaged_file_is_refused_by_its_name(tmp_path, "tokenizer_config", '{"add_bos_token": 1}', "token is 1")


def several(tmp_path):
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(tmp_path / "tokenizer.model")
    test_of_several_files_the_one_that_transformers_believes_counts(tmp_path)


def believed(tmp_path):
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(tmp_path / "tokenizer.model")
    test_bos_and_eos_are_those_that_transformers_takes_from_both_files(tmp_path, {})


MODULE = "minillama.tokenizer.token_settings"
MUTANTS = [
    Mutant(MODULE, "else named | older", "else older | named", lambda: in_a_folder(believed)),
    Mutant(MODULE, 'if named[which] else "")', "if named[which] else None)", lambda: in_a_folder(believed)),
    Mutant("minillama.system.settings", "isinstance(value, bool))", "isinstance(value, int))",
           lambda: in_a_folder(damaged_flag)),
    Mutant(MODULE, 'name in specials or name.startswith("<|")', "name in specials", lambda: in_a_folder(several)),
    Mutant(MODULE, "_ends(generation, paths[2]) or _ends(", "_ends(", lambda: in_a_folder(several)),
]
