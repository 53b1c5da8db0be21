"""What `convert` writes gives the programs it is written for the same ids, the same template and the same logits."""

import json
import random

import pytest
import torch
from byte_texts import fuzzed
from checkpoints import in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint import load_model
from minillama.checkpoint.convert import convert
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.tokenizer_json import sentencepiece_json

TEMPLATE = ("{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TALK = [{"role": "user", "content": " the cat "}, {"role": "assistant", "content": "and the hat"},
        {"role": "user", "content": "the bat"}]


def entry(text, special):
    return {"content": text, "special": special, "lstrip": False, "rstrip": False, "single_word": False,
            "normalized": False}


def downloaded(folder, **settings):
    """A folder as a ChatML tune of Llama 2 has it: added tokens behind the vocabulary, spare rows, a template."""
    folder.mkdir()
    config = ModelConfig(24, 2, 4, 290, n_kv_heads=2, hidden_dim=40, max_seq_len=96, norm_eps=1e-5)
    write_huggingface(folder, from_model(model_of(config)))
    train_bpe(["the cat and the hat and the bat"] * 20, 280).save(folder / "tokenizer.model")
    added = {"280": entry("<|im_start|>", True), "281": entry("<|im_end|>", True), "282": entry("<tool>", False)}
    told = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>",
            "add_bos_token": True, "added_tokens_decoder": added, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | settings))
    return folder


def texts(n):
    rng = random.Random(11)
    words = ["the", " cat", "<tool>", " and", "  ", "x", "\u00e9", "\n", "hat", "\u4f60", "7", "<|im_end|>"]
    return ["".join(rng.choices(words, k=7)) for _ in range(n)]


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": False}, {"legacy": True}, {"add_prefix_space": False}],
                         ids=str)
@pytest.mark.parametrize("way", [("hf",), ("meta", "hf"), ("hf", "hf")], ids="-".join)
def test_transformers_gives_the_ids_the_template_and_the_logits_of_the_source(tmp_path, way, settings):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("google.protobuf")
    source = at = downloaded(tmp_path / "source", **settings)
    for place, form in enumerate(way):
        convert(at, tmp_path / f"{place}", form)
        at = tmp_path / f"{place}"
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, at))
    for text in texts(60):
        assert ours.encode(text) == theirs.encode(text), (text, ours.encode(text), theirs.encode(text))
    assert ours.apply_chat_template(TALK, tokenize=False) == theirs.apply_chat_template(TALK, tokenize=False)
    assert ours.eos_token_id == theirs.eos_token_id == 281
    ids = torch.tensor([theirs.encode("the cat and the hat")])
    before, after = (transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (source, at))
    assert torch.equal(before, after)


def test_a_gguf_file_has_a_token_for_each_row_and_comes_back_with_the_same_ids(tmp_path):
    gguf = pytest.importorskip("gguf")
    source = downloaded(tmp_path / "source", legacy=True)
    convert(source, tmp_path / "m.gguf", "gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == len(fields["tokenizer.ggml.scores"]) == 290
    assert tokens[280:] == ["<|im_start|>", "<|im_end|>", "<tool>", *(f"[PAD{i}]" for i in range(283, 290))]
    kind = gguf.TokenType
    assert kinds[280:284] == [kind.CONTROL, kind.CONTROL, kind.USER_DEFINED, kind.UNUSED]
    names = ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token")
    assert [fields[f"tokenizer.ggml.{name}"] for name in names] == [1, 281, True, False]
    assert fields["tokenizer.chat_template"] == TEMPLATE
    ours, back = load_model(source)[1], load_model(tmp_path / "m.gguf")[1]
    assert (back.bos_id, back.eos_id, back.begins, back.chat_template) == (1, 281, True, TEMPLATE)
    for text in texts(60):
        if not text.startswith(" ") and "<tool> " not in text:  # there llama.cpp puts a second space, transformers none
            assert back.encode(text) == ours.encode(text), text


def test_a_file_that_the_other_program_would_refuse_is_refused_before(tmp_path):
    source = downloaded(tmp_path / "source")
    many = {str(280 + i): entry(f"<{i}>", True) for i in range(20)}
    told = json.loads((source / "tokenizer_config.json").read_text())
    told |= {"added_tokens_decoder": many, "eos_token": "</s>"}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="300 tokens and the model 290 rows for them: llama.cpp refuses"):
        convert(source, tmp_path / "m.gguf", "gguf")
    with pytest.raises(ValueError, match="300 tokens and the model 290 rows for them: llama2.c reads one for each row"):
        convert(source, tmp_path / "m.bin", "llama2c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_sentencepiece_vocabulary_written_as_tokenizer_json_gives_sentencepieces_ids(weights):
    tokenizers = pytest.importorskip("tokenizers")
    model = load_tokenizer(weights / "llama_tokenizer.model")
    theirs = tokenizers.Tokenizer.from_str(sentencepiece_json(model).decode())
    for text in fuzzed(300, seed=8):
        if not any(name in text for name in ("<s>", "</s>", "<unk>")):  # the library takes them for tokens
            assert theirs.encode(text, add_special_tokens=False).ids == model.encode(text), repr(text)
            assert theirs.decode(model.encode(text)) == model.decode(model.encode(text))


def gguf_law(folder):
    test_a_gguf_file_has_a_token_for_each_row_and_comes_back_with_the_same_ids(folder)


def refused_law(folder):
    test_a_file_that_the_other_program_would_refuse_is_refused_before(folder)


def template_law(folder):
    test_transformers_gives_the_ids_the_template_and_the_logits_of_the_source(folder, ("hf",), {})


VOCAB, CONVERT = "minillama.tokenizer.gguf_vocab", "minillama.checkpoint.convert"
MUTANTS = [
    Mutant(VOCAB, '"tokenizer.ggml.add_bos_token": tokenizer.begins', '"tokenizer.ggml.add_bos_token": False',
           lambda: in_a_folder(gguf_law)),
    Mutant(VOCAB, "if tokenizer.vocab_size > n_rows > 0:", "if False:", lambda: in_a_folder(refused_law)),
    Mutant(CONVERT, '"eos_token": tokenizer.eos_id', '"eos_token": tokenizer.bos_id',
           lambda: in_a_folder(template_law)),
]
