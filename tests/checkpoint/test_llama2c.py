"""llama2.c's .bin: the layout number by number, and the one real checkpoint that everybody can hold in a test."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint.llama2c import looks_like_llama2c, read_llama2c, write_llama2c
from minillama.checkpoint.weights import build_model, from_model
from minillama.config import ModelConfig, preset
from minillama.generate import generate_tokens
from minillama.transformer import Transformer

SMALL = ModelConfig(dim=12, n_layers=2, n_heads=3, n_kv_heads=1, vocab_size=7, hidden_dim=20, max_seq_len=5)
STORY_IDS = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267,
             337, 410, 408, 419]  # greedy, from the program this checkpoint was published with
STORY_BYTES = 464  # of the text after 200 tokens
STORY_SHA256 = "beeb5cb46785efee81a8545300b31e396b595e5ce6f3b77db201545501981d14"


def by_hand(model, version):
    """The file as export.py lays it out, written from its description alone."""
    config, state = model.config, {name: w.detach().numpy() for name, w in model.state_dict().items()}
    def all_of(part):
        return [state[f"layers.{i}.{part}.weight"] for i in range(config.n_layers)]
    sizes = [config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads]
    attention = [w for part in ("wq", "wk", "wv", "wo") for w in all_of("attention." + part)]
    feed_forward = [w for part in ("w1", "w2", "w3") for w in all_of("feed_forward." + part)]
    head = [] if config.tie_embeddings else [state["output.weight"]]
    if version == 0:
        vocab = config.vocab_size if config.tie_embeddings else -config.vocab_size
        tables = [np.zeros(config.max_seq_len * config.head_dim, np.float32)]
        parts = [state["tok_embeddings.weight"], *all_of("attention_norm"), *attention, *all_of("ffn_norm"),
                 *feed_forward, state["norm.weight"], *tables, *head]
        return struct.pack("<7i", *sizes, vocab, config.max_seq_len) + b"".join(w.tobytes() for w in parts)
    start = struct.pack("<Ii7iB", 0x616B3432, 1, *sizes, config.vocab_size, config.max_seq_len,
                        config.tie_embeddings)
    parts = [*all_of("attention_norm"), *all_of("ffn_norm"), state["norm.weight"],
             state["tok_embeddings.weight"], *attention, *feed_forward, *head]
    return start.ljust(256, b"\0") + b"".join(w.tobytes() for w in parts)


def test_a_file_laid_out_by_hand_is_read_number_by_number(tmp_path):
    for config in (SMALL, replace(SMALL, tie_embeddings=True, n_kv_heads=3)):
        for version in (0, 1):
            model, path = model_of(config), tmp_path / "model.bin"
            path.write_bytes(by_hand(model, version))
            weights = read_llama2c(path)
            assert weights.config == config
            copy = build_model(weights)
            assert_same_weights(model, copy)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_one_piece_is_a_vocabulary_and_groups_may_be_of_one(tmp_path, tied, version):
    model = model_of(ModelConfig(2, 1, 1, 1, hidden_dim=5, max_seq_len=1, tie_embeddings=tied))
    write_llama2c(tmp_path / "x.bin", from_model(model), version)
    assert looks_like_llama2c(tmp_path / "x.bin")
    copy = build_model(read_llama2c(tmp_path / "x.bin"))
    assert copy.config == model.config
    if version < 2:
        assert_same_weights(model, copy)
    else:  # a group of one is its own scale: 127 steps of a 127th
        for name, weight in model.state_dict().items():
            assert torch.allclose(copy.state_dict()[name], weight, rtol=1e-6), name


@pytest.mark.parametrize(("place", "value", "said"), [
    (4, 0, "llama2.c version 0, "), (4, 3, "llama2.c version 3, "), (4, -1, "version -1"),
    (37, 0, "group size 0 does not divide dim 12"), (37, -4, "group size -4"), (37, 8, "group size 8 does not"),
    (8, 0, "not a llama2.c file, or damaged"), (32, -7, "damaged|asks for")])
def test_a_damaged_header_is_named(tmp_path, place, value, said):
    path = tmp_path / "x.bin"
    write_llama2c(path, from_model(model_of(SMALL)), version=2)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + struct.pack("<i", value) + whole[place + 4:])
    with pytest.raises(ValueError, match=f"x.bin: .*({said})"):
        read_llama2c(path)
    for length in (4, 7, 8, 27, 28, 255):
        path.write_bytes(whole[:length])
        assert not looks_like_llama2c(path)
        with pytest.raises(ValueError, match=f"{length} bytes"):
            read_llama2c(path)


def test_int8_takes_the_largest_groups_up_to_64_that_divide_every_row(tmp_path):
    for dim, hidden, group in ((128, 64, 64), (64, 96, 32), (256, 128, 64), (6, 10, 2), (6, 9, 1)):
        config = replace(SMALL, dim=dim, n_heads=1, hidden_dim=hidden, head_dim=dim)
        write_llama2c(tmp_path / "x.bin", from_model(model_of(config)), version=2)
        head = (tmp_path / "x.bin").read_bytes()[:256]
        assert struct.unpack("<i", head[37:41]) == (group,) and head[41:] == bytes(215)


def test_what_is_written_is_what_the_original_writes(tmp_path):
    for config in (SMALL, replace(SMALL, tie_embeddings=True)):
        model, path = model_of(config), tmp_path / "model.bin"
        write_llama2c(path, from_model(model), version=1)
        assert path.read_bytes() == by_hand(model, 1)
        write_llama2c(path, from_model(model), version=0)
        ours, theirs = path.read_bytes(), by_hand(model, 0)
        tables = 4 * config.max_seq_len * config.head_dim
        head = 0 if config.tie_embeddings else 4 * config.vocab_size * config.dim
        end = len(ours) - head
        assert len(ours) == len(theirs) and ours[:end - tables] == theirs[:end - tables]
        assert ours[end:] == theirs[end:]
        cos = np.frombuffer(ours[end - tables:end - tables // 2], np.float32).reshape(-1, config.head_dim // 2)
        assert np.allclose(cos[:, 1], np.cos(np.arange(5) * 10000 ** -0.5), atol=1e-6)


def test_int8_groups_are_scaled_to_127_and_come_back_within_half_a_step(tmp_path):
    model, path = model_of(replace(SMALL, vocab_size=9)), tmp_path / "model.bin"
    model.output.weight.data[0, :4] = 0  # a group of zeros has no scale
    write_llama2c(path, from_model(model), version=2)
    raw = path.read_bytes()
    assert struct.unpack("<i", raw[37:41]) == (4,)  # 64 halved until it divides both 12 and 20
    table = 256 + 4 * 5 * 12
    codes = np.frombuffer(raw[table:table + 9 * 12], np.int8).reshape(-1, 4).astype(np.float32)
    scales = np.frombuffer(raw[table + 9 * 12:table + 9 * 12 + 4 * 27], np.float32)[:, None]
    embeddings = model.tok_embeddings.weight.detach().numpy().reshape(-1, 4)
    assert np.array_equal(np.abs(codes).max(1), np.full(27, 127))
    assert np.abs(codes * scales - embeddings).max() <= 0.5001 * scales.max()
    copy = build_model(read_llama2c(path))
    assert np.array_equal(copy.tok_embeddings.weight.detach().numpy().reshape(-1, 4), codes * scales)
    for name, weight in model.state_dict().items():
        step = weight.abs().max() / 127 if weight.dim() == 2 else 0
        assert (copy.state_dict()[name] - weight).abs().max() <= 0.5001 * step, name
    assert not copy.output.weight[0, :4].any()


def test_what_the_form_cannot_say_is_refused_by_name(tmp_path):
    for change, word in (({"rope_theta": 5e5}, "rope_theta is 500000.0"), ({"norm_eps": 1e-6}, "norm_eps"),
                         ({"head_dim": 6}, "head_dim is 6")):
        with pytest.raises(ValueError, match=word):
            write_llama2c(tmp_path / "x.bin", from_model(Transformer(replace(SMALL, **change))))
    with pytest.raises(ValueError, match="version 3 does not exist"):
        write_llama2c(tmp_path / "x.bin", from_model(Transformer(SMALL)), version=3)
    assert not (tmp_path / "x.bin").exists()


def test_a_file_of_any_other_length_is_refused_before_anything_is_allocated(tmp_path):
    path, whole = tmp_path / "x.bin", by_hand(model_of(SMALL), 0)
    for content in (b"", whole[:27], whole[:-1], whole + b"\0", whole[4:],
                    whole[:8] + b"\xff\xff\xff\x7f" + whole[12:]):
        path.write_bytes(content)
        assert not looks_like_llama2c(path)
        with pytest.raises(ValueError, match=str(path)):
            read_llama2c(path)


def test_stories260k_is_read_to_the_last_number(weights, tmp_path):
    model = build_model(read_llama2c(weights / "stories260K.bin"))
    assert model.config == preset("stories260k")
    ids = [1] + [row[0] for row in generate_tokens(model, [[1]], len(STORY_IDS) - 1)]
    assert ids == STORY_IDS
    with torch.no_grad():
        logits = model(torch.tensor([ids]))
    assert torch.allclose(logits[0, 0, :4], torch.tensor([-6.2229, 8.4043, -6.2237, -6.2225]), atol=1e-4)
    write_llama2c(tmp_path / "copy.bin", from_model(model))
    before_tables = 28 + 4 * model.config.n_parameters()  # tables differ in the last bit of some cosines
    ours, theirs = (tmp_path / "copy.bin").read_bytes(), (weights / "stories260K.bin").read_bytes()
    assert len(ours) == len(theirs) and ours[:before_tables] == theirs[:before_tables]


LLAMA2C = "minillama.checkpoint.llama2c"
MUTANTS = [
    Mutant(LLAMA2C, "for part in parts for layer in range(config.n_layers)",
           "for layer in range(config.n_layers) for part in parts",
           lambda: in_a_folder(test_a_file_laid_out_by_hand_is_read_number_by_number)),
    Mutant(LLAMA2C, "keepdim=True) / 127", "keepdim=True) / 128",
           lambda: in_a_folder(test_int8_groups_are_scaled_to_127_and_come_back_within_half_a_step)),
    Mutant(LLAMA2C, "if wanted != size:", "if wanted < size:",
           lambda: in_a_folder(test_a_file_of_any_other_length_is_refused_before_anything_is_allocated)),
]
