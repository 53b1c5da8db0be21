"""What files beside a vocabulary say of its tokens: obeyed as transformers obeys it, damaged ones refused."""

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
    ours = put(folder, tokenizer_config={"eos_token": {"content": "<e>"}}, config={"eos_token_id": [5, 6]},
               added_tokens={"<e>": 280, "<t>": 281, "<|i|>": 282, "<w>": 283},
               special_tokens_map={"eos_token": "</s>", "additional_special_tokens": ["<t>"]})
    assert ours.eos_id == 280 and ours.end_ids == {1, 5, 6, 280}
    assert [ours.added[name].special for name in ("<e>", "<t>", "<|i|>", "<w>")] == [True, True, True, False]
    ours = put(folder, generation_config={"eos_token_id": 7})
    assert ours.end_ids == {1, 7, 280}
    (folder / "chat_template.jinja").write_text("own file")
    put(folder, tokenizer_config={"chat_template": [{"name": "default", "template": "listed"}]})
    assert read_token_settings(folder).chat_template == "own file"
    (folder / "chat_template.jinja").unlink()
    assert read_token_settings(folder).chat_template == "listed"


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


MODULE = "minillama.tokenizer.token_settings"
MUTANTS = [
    Mutant(MODULE, "or isinstance(value, int) and not isinstance(value, bool)", "", lambda: in_a_folder(damaged_flag)),
    Mutant(MODULE, 'return name.startswith("<|") or any', "return any", lambda: in_a_folder(several)),
    Mutant(MODULE, '_ends(generation, folder / "generation_config.json") or _ends(', "_ends(",
           lambda: in_a_folder(several)),
]
