"""transformers reads an extended tokenizer and a grown model, with equal ids and logits."""

import random

import pytest
import torch
from checkpoints import FP32_NOISE, logits_of_transformers, model_of

from lessons import chinese_stories
from minillama.checkpoint import load_model
from minillama.checkpoint.convert import convert, save_with_tokenizer
from minillama.config import ModelConfig
from minillama.corpus import stories
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tokenizer.byte_bpe_training import train_byte_bpe
from minillama.tokenizer.extend import extend_tokenizer
from minillama.tokenizer.sentencepiece import SentencePieceTokenizer
from minillama.tokenizer.tokenizer_json import sentencepiece_json
from minillama.train.vocabulary import grow_vocabulary


@pytest.mark.long
@pytest.mark.parametrize("train", [train_bpe, train_byte_bpe])
def test_transformers_reads_the_extended_tokenizer_and_the_grown_model(train, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    english, chinese = ([story.text for story in corpus.documents(0, 60)] for corpus in (stories, chinese_stories))
    old = train(english, 400)
    marks = ["<|im_start|>", "<|im_end|>"]
    new = extend_tokenizer(old, train_bpe(chinese, 500).pieces, split_digits=True, special_tokens=marks)
    model = model_of(ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=400, hidden_dim=48, max_seq_len=512))
    grow_vocabulary(model, new.vocab_size)
    save_with_tokenizer(tmp_path / "meta", model, new)
    convert(tmp_path / "meta", tmp_path / "hf", "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    copy, again = load_model(tmp_path / "hf")
    for corpus in (stories, chinese_stories):
        for text in [story.text for story in corpus.documents(1, 20)] + ["2023\u5e74 x", ""]:
            ids = new.encode(text, bos=True)
            assert again.encode(text, bos=True) == theirs(text).input_ids == ids, text
            assert theirs.decode(ids, skip_special_tokens=True) == text
            chat = f"{marks[0]}{text}{marks[1]}"
            assert again.encode(chat, bos=True, allowed_special=marks) == theirs(chat).input_ids
    tokens_BT = torch.tensor([ids + new.encode(chinese[0])])
    assert tokens_BT.max() >= old.vocab_size
    assert (copy(tokens_BT) - logits_of_transformers(tmp_path / "hf", tokens_BT)).abs().max() <= FP32_NOISE


def test_tokenizers_cuts_chinese_as_the_merged_file_does(weights):
    tokenizers = pytest.importorskip("tokenizers", reason="the oracle is tokenizers")
    chinese = SentencePieceTokenizer((weights / "chinese_sp.model").read_bytes()).pieces
    new = extend_tokenizer(load_tokenizer(weights / "llama_tokenizer.model"), chinese)
    theirs, draw = tokenizers.Tokenizer.from_str(sentencepiece_json(new).decode()), random.Random(4)
    for _ in range(200):
        text = "".join(draw.choice(chinese[3:]).text for _ in range(draw.randrange(1, 12))).replace("\u2581", " ")
        assert theirs.encode(text, add_special_tokens=False).ids == new.encode(text), text
