"""Settings of tokenizer files: what changes ids or text is obeyed as other programs do, or refused."""

import copy
import json
import random
from collections import Counter

import pytest
from checkpoints import in_a_folder
from mutants import Mutant
from test_huggingface_settings import mutated
from test_tokenizer_json import trained

from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.tokenizer_json import read_tokenizer_json, sentencepiece_json

TEXTS = ["the cat sat", " cats' 1234 hats", "<tool>the <|im_end|>cat", "caf\u00e9 \u4f60\n\tx  y ", "abcd bcd xyz"]
VALUES = [None, True, False, 0, 1, -1, 2, 7, 280, 281, 299, [3, 4], 0.5, 1e400, 2**31, 2**70, "",
          "1", "true", "</s>", "<s>", "the", "<tool>", "<|x|>", "default", "{{ messages }}", [], [1], ["<s>"],
          ["<|x|>"], [[]], {}, {"content": "<s>"}, {"a": None},
          {"content": "<s>", "lstrip": 1}, {"default": "x"}, [{"name": "default", "template": "t"}]]
WORDS = ("add bos eos pad unk token special tokens chat template prefix space clean up legacy lower case split strip "
         "normalize suppress bad words forced stop strings min length num beams penalty bias decoder").split()
# Said by the tests on their own: of no influence on ids, on the text of a template, or on where an answer ends.
INERT = set("model_max_length max_len max_length padding_side truncation_side model_input_names padding truncation "
            "truncation_strategy stride pad_to_multiple_of pad_token_type_id pad_token_type return_token_type_ids "
            "return_attention_mask name_or_path _name_or_path _commit_hash special_tokens_map_file tokenizer_file "
            "vocab_file vocab_size merges_file spaces_between_special_tokens use_default_system_prompt use_fast "
            "from_slow device_map processor_class backend is_local local_files_only verbose suffix_first "
            "response_template response_schema transformers_version unsloth_version legacy tokenizer_class "
            "clean_up_tokenization_spaces version".split())  # legacy: of LlamaTokenizer's alone; clean_up ...: told
SAMPLING = set("transformers_version _from_model_config bos_token_id pad_token_id decoder_start_token_id do_sample "
               "temperature top_k top_p min_p repetition_penalty max_length max_new_tokens max_time use_cache "
               "early_stopping length_penalty diversity_penalty num_return_sequences low_memory".split())
OFF = set("min_length min_new_tokens no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id "
          "suppress_tokens begin_suppress_tokens sequence_bias stop_strings penalty_alpha guidance_scale "
          "remove_invalid_values token_healing".split())
CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False},
          "unk_token": "<unk>", "pad_token": None, "add_bos_token": True, "add_eos_token": False, "legacy": False,
          "clean_up_tokenization_spaces": False, "model_max_length": 2048, "add_prefix_space": True,
          "additional_special_tokens": [], "split_special_tokens": False, "chat_template": "{{ messages }}",
          "added_tokens_decoder": {"280": {"content": "<tool>", "special": False, "lstrip": False, "rstrip": False,
                                           "single_word": False, "normalized": False}}}
BASES = {
    "tokenizer_config.json": (CONFIG, sorted(INERT | CONFIG.keys() | {"sp_model_kwargs", "do_lower_case", "errors"}),
                              [("add_bos_token", False), ("errors", "replace"), ("bos_token", "the")]),
    "special_tokens_map.json": ({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
                                ["bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens"],
                                [("eos_token", "<s>"), ("pad_token", None)]),
    "generation_config.json": ({"eos_token_id": [2], "bos_token_id": 1}, sorted({"eos_token_id"} | SAMPLING | OFF),
                               [("eos_token_id", [3, 4]), ("eos_token_id", 2), ("temperature", 0.5)]),
    "added_tokens.json": ({"<tool>": 280}, ["<tool>", "<|im_end|>", "the", "<s>", "x y"],
                          [("<tool>", 280), ("<|im_end|>", 281)])}


def behaviour(tokenizer):
    """All that a file can change: the ids of texts, the texts of ids, what begins and ends, the template."""
    ids = [tokenizer.encode(text, bos=tokenizer.begins, eos=tokenizer.add_eos) for text in TEXTS]
    marked = [tokenizer.encode(text, allowed_special="all") for text in TEXTS]
    return (ids, marked, [tokenizer.decode(some) for some in ids], tokenizer.end_ids, tokenizer.bos_id,
            tokenizer.eos_id, tokenizer.pad_id, dict(tokenizer.added), tokenizer.chat_template,
            getattr(tokenizer, "words", None))


def outcome_of(read, usual, path=""):
    """"refused" in one line, "obeyed" or "ignored"; any other exception goes through."""
    try:
        tokenizer = read()
        found = behaviour(tokenizer)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500 + len(str(path)), error
        return "refused"
    return "ignored" if found == usual and not tokenizer.notes else "obeyed"


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("file", BASES)
def test_no_setting_beside_a_vocabulary_is_ignored_unless_it_is_harmless(file, count, tmp_path):
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(tmp_path / "tokenizer.model")
    base, names, certain = BASES[file]
    draw, outcomes, path = random.Random(18), Counter(), tmp_path / file

    def read(content):
        path.write_text(json.dumps(content))
        return load_tokenizer(tmp_path / "tokenizer.model")

    usual = behaviour(read(base))
    for name, value in [*certain, *(mutated(draw, names, WORDS, VALUES) for _ in range(count))]:
        outcome = outcome_of(lambda name=name, value=value: read({**base, name: value}), usual, tmp_path)
        outcomes[outcome] += 1
        if outcome == "ignored" and name not in (SAMPLING if file == "generation_config.json" else INERT):
            same = base.get(name) == value and type(base.get(name)) is type(value)
            assert same or not value or is_said_already(name, value), (name, value)
    assert outcomes["refused"] > count // 4 and outcomes["obeyed"] > 0 and outcomes["ignored"] > 0, outcomes


def is_said_already(name, value):
    """A value that says what holds anyway: a token that is special without it, an end that ends anyway, one beam."""
    tokens = value if isinstance(value, list) else [value]
    texts = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    return (name.endswith(("_token", "special_tokens")) and {*texts} <= {"<s>", "</s>", None} or
            name.startswith("num_") and {*tokens} == {1} or name == "eos_token_id" and {*tokens} <= {1, 2, -1} or
            value == "replace" and name == "errors" or
            name == "guidance_scale" and {*tokens} == {1})


def llama_2s():
    """A tokenizer.json of Llama 2's kind, with words added."""
    tokenizer = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    content = json.loads(sentencepiece_json(tokenizer))
    content["added_tokens"] += [{**content["added_tokens"][0], "id": 280, "content": "<tool>", "special": False}]
    return content


def byte_level():
    content = json.loads(trained(None).to_str())
    added = {**content["added_tokens"][0], "id": len(content["model"]["vocab"]), "content": "<tool>", "special": False}
    content["added_tokens"] += [added]
    return content


def places(part, way=()):
    """The ways to all objects inside a part of a tokenizer.json, but for its vocabulary."""
    if isinstance(part, dict):
        yield way
        for name, inner in part.items():
            if name not in ("vocab", "merges"):
                yield from places(inner, (*way, name))
    if isinstance(part, list):
        for place, inner in enumerate(part):
            yield from places(inner, (*way, place))


def changed_somewhere(draw, content):
    """(a copy with one setting of one of its objects changed, added, renamed or taken away; its name)."""
    content = copy.deepcopy(content)
    part = content
    for step in draw.choice(list(places(content))):
        part = part[step]
    names = sorted(set(part) - {"vocab", "merges"})
    name, value = mutated(draw, names or ["type"], WORDS, VALUES + names)
    if name in part and draw.random() < 0.3:
        del part[name]
    else:
        part[name] = value
    return content, name


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("base", [byte_level, llama_2s])
def test_a_changed_tokenizer_json_is_refused_or_read_as_its_own_library_reads_it(base, count):
    tokenizers = pytest.importorskip("tokenizers")
    base, draw, outcomes = base(), random.Random(5), Counter()
    usual = behaviour(read_tokenizer_json(json.dumps(base).encode()))
    for _ in range(count):
        content, name = changed_somewhere(draw, base)
        text = json.dumps(content)
        outcome = outcome_of(lambda text=text: read_tokenizer_json(text.encode()), usual)
        outcomes[outcome] += 1
        if outcome == "refused":
            continue
        try:
            theirs = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # it refuses what changes nothing here, and what is not said at all
            assert outcome == "ignored" or "missing field" in str(error), (name, text[:300])
            continue
        theirs.no_truncation()  # as transformers does before each text
        theirs.no_padding()
        theirs.encode_special_tokens = True
        ours = read_tokenizer_json(text.encode())
        for sample in TEXTS:
            ids = theirs.encode(sample).ids
            assert ours.encode(sample, bos=ours.add_bos, eos=ours.add_eos) == ids, (name, sample, text[:300])
            if content.get("decoder"):  # without one the library shows pieces as they are spelled in the file
                assert ours.decode(ids) == theirs.decode(ids), (name, sample)
    assert outcomes["refused"] > count // 4 and outcomes["ignored"] > 0, outcomes


def beside_a_vocabulary(tmp_path):
    test_no_setting_beside_a_vocabulary_is_ignored_unless_it_is_harmless("tokenizer_config.json", 300, tmp_path)


MUTANTS = [
    Mutant("minillama.tokenizer.token_settings", "check_known(content, path, form if", "check_known({}, path, form if",
           lambda: in_a_folder(beside_a_vocabulary)),
]
