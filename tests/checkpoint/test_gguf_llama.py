"""LLaMAs in GGUF: the same bits back, and a file that llama.cpp's own Python package finds in order."""

import math
from dataclasses import replace

import numpy as np
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant
from test_gguf_blocks import HALVES, any_blocks, package

from minillama.checkpoint import gguf, load_model
from minillama.checkpoint.gguf import read_gguf
from minillama.checkpoint.gguf_blocks import BLOCKS
from minillama.checkpoint.gguf_llama import _to_meta, read_gguf_llama, write_gguf_llama
from minillama.checkpoint.llama2c import read_llama2c
from minillama.checkpoint.weights import build_model, from_model
from minillama.cli.info import examine_checkpoint
from minillama.config import ModelConfig, RopeScaling, preset
from minillama.generate import generate_text
from minillama.tokenizer import load_tokenizer, train_bpe

CONFIG = ModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, hidden_dim=96, max_seq_len=64,
                     norm_eps=1e-5, rope_theta=5e5)


def test_the_package_reads_what_we_write(tmp_path):
    model, path = model_of(CONFIG), tmp_path / "model.gguf"
    tokenizer = train_bpe(["the cat and the hat and the bat"] * 20, 280)
    write_gguf_llama(path, from_model(model), tokenizer)
    reader = package().GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama" and fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.freq_base"] == 5e5 and fields["tokenizer.ggml.model"] == "llama"
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == [piece.text for piece in tokenizer.pieces] + [f"[PAD{i}]" for i in range(280, CONFIG.vocab_size)]
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == len(model.state_dict())
    assert np.array_equal(found["blk.1.attn_q.weight"].data, model.layers[1].attention.wq.weight.detach().numpy())
    assert list(found["blk.0.ffn_down.weight"].shape) == [96, 64]  # columns first
    assert all(tensor.data_offset % 32 == 0 for tensor in reader.tensors)


def test_models_come_back_bit_for_bit_in_their_dtype(tmp_path):
    odd = replace(CONFIG, hidden_dim=23, head_dim=6, vocab_size=37, norm_eps=1.2345e-6)
    scaled = replace(CONFIG, rope_scaling=RopeScaling(32.0), tie_embeddings=True)
    own = replace(CONFIG, head_dim=8, rope_theta=1e4, rope_scaling=RopeScaling(4.0, 1.0, 3.0, 32))
    for config in (CONFIG, odd, scaled, own):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            model, path = model_of(config, dtype=dtype), tmp_path / "model.gguf"
            write_gguf_llama(path, from_model(model))
            copy, tokenizer = load_model(path)
            assert copy.config == config and tokenizer is None
            assert_same_weights(model, copy)


def test_q8_0_stays_within_half_a_step_and_leaves_odd_rows_alone(tmp_path):
    model, path = model_of(replace(CONFIG, hidden_dim=40)), tmp_path / "model.gguf"
    write_gguf_llama(path, from_model(model), kind="Q8_0")
    copy = build_model(read_gguf_llama(path))
    for name, weight in model.state_dict().items():
        difference = (copy.state_dict()[name] - weight).abs()
        if weight.dim() == 1 or name.endswith("w2.weight"):  # rows of 40 are no multiple of 32
            assert not difference.any(), name
        else:  # half a step, and the scale's own rounding to fp16 (2^-11) of 127 steps
            step = weight.reshape(-1, 32).abs().amax(1) / 127
            assert (difference.view(-1, 32).amax(1) <= step * (0.5 + 127 * 2**-11) + 1e-9).all(), name


def test_stories260k_tells_its_story_from_a_gguf(weights, tmp_path):
    original, path = read_llama2c(weights / "stories260K.bin"), tmp_path / "stories.gguf"
    tokenizer = load_tokenizer(weights / "tok512.bin")
    write_gguf_llama(path, original, tokenizer)
    model, inside = load_model(path)
    assert model.config == preset("stories260k") and inside.pieces == tokenizer.pieces
    assert_same_weights(build_model(original), model)
    text = "".join(generate_text(model, inside, "", 20))
    assert text.startswith("Once upon a time, there was a little girl named Lily.")


def test_a_model_in_blocks_of_every_kind_has_the_weights_that_llama_cpp_reads(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    config = replace(CONFIG, dim=256, head_dim=128, hidden_dim=512, vocab_size=261, n_layers=1)
    monkeypatch.setattr(gguf, "PIECE", 100)  # so that matrices are decoded in several pieces, the last one shorter
    write_gguf_llama(path, from_model(model_of(config)))
    settings, tensors = read_gguf(path)
    writer, wanted, words = package().GGUFWriter(tmp_path / "blocks.gguf", "llama"), {}, iter(HALVES)
    for key, value in settings.items():
        if key.startswith("llama."):
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for place, (name, tensor) in enumerate(tensors.items()):
        raw, kind = tensor.read().numpy(), package().GGMLQuantizationType.F32
        if raw.ndim == 2:
            kind = package().GGMLQuantizationType[next(words)]
            block = BLOCKS[kind]
            raw = any_blocks(block.name, raw.size // block.numbers, place).reshape(len(raw), -1)
        writer.add_tensor(name, raw, raw_dtype=kind)
        wanted[_to_meta(name, path)] = package().quants.dequantize(raw, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = load_model(tmp_path / "blocks.gguf")[0]
    assert model.config == config and model.state_dict().keys() == wanted.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32 and np.array_equal(weight.numpy(), wanted[name]), name
    text = examine_checkpoint(tmp_path / "blocks.gguf")[0]
    assert all(word in text for word in [*HALVES][:9]) and "all together 32" not in text


def test_scaled_rope_is_written_as_the_divisors_that_llama_cpp_reads(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf_llama(path, from_model(model_of(replace(CONFIG, rope_scaling=RopeScaling(32.0)))))
    divisors = read_gguf(path)[1]["rope_freqs.weight"].read().tolist()
    for i, divisor in enumerate(divisors):  # convert_hf_to_gguf.py's rule, for width 16 and theta 5e5
        wavelength = 2 * math.pi * 5e5 ** (2 * i / 16)
        smooth = (8192 / wavelength - 1) / 3
        wanted = 1 if wavelength < 2048 else 32 if wavelength > 8192 else 1 / ((1 - smooth) / 32 + smooth)
        assert math.isclose(divisor, wanted, rel_tol=1e-5)
    assert divisors[0] == 1 and divisors[-1] == 32


LLAMA = "minillama.checkpoint.gguf_llama"
MUTANTS = [
    Mutant(LLAMA, "rope_frequencies(head_dim, theta) / rope_frequencies(head_dim, theta, scaling)",
           "rope_frequencies(head_dim, theta, scaling) / rope_frequencies(head_dim, theta)",
           lambda: in_a_folder(test_scaled_rope_is_written_as_the_divisors_that_llama_cpp_reads)),
    Mutant(LLAMA, '"attn_q": "attention.wq", "attn_k": "attention.wk"',
           '"attn_k": "attention.wq", "attn_q": "attention.wk"',
           lambda: in_a_folder(test_the_package_reads_what_we_write)),
]
