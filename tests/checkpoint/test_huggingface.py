"""Hugging Face's form, against transformers itself: what either writes, the other reads, with the same logits."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from checkpoints import (
    assert_same_logits,
    assert_same_weights,
    in_a_folder,
    logits_of_transformers,
    model_of,
    transformers,
)
from mutants import Mutant

from minillama.checkpoint import huggingface, load_model, open_weights
from minillama.checkpoint.huggingface import config_from_hf, config_to_hf, write_huggingface
from minillama.checkpoint.llama2c import read_llama2c
from minillama.checkpoint.safetensors import read_safetensors
from minillama.checkpoint.weights import build_model, from_model
from minillama.config import PRESETS, ModelConfig, RopeScaling

GROUPED = ModelConfig(dim=48, n_layers=2, n_heads=6, n_kv_heads=2, vocab_size=61, hidden_dim=80, max_seq_len=64,
                      norm_eps=1e-5, rope_theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16))
SHAPES = [GROUPED, replace(GROUPED, head_dim=12, rope_scaling=None, rope_theta=1e4),
          replace(GROUPED, tie_embeddings=True, n_kv_heads=6, norm_eps=1e-6)]


def test_transformers_loads_what_we_write_and_agrees(tmp_path):
    tokens = torch.arange(61)[None]
    for config in SHAPES:
        model = model_of(config)
        write_huggingface(tmp_path, from_model(model))
        with torch.no_grad():
            assert_same_logits(model(tokens), logits_of_transformers(tmp_path, tokens))


def test_we_load_what_transformers_writes_and_agree(tmp_path):
    oracle, tokens = transformers(), torch.arange(61)[None]
    for config in SHAPES:
        settings = {k: v for k, v in config_to_hf(config, torch.float32).items() if k != "torch_dtype"}
        torch.manual_seed(1)
        theirs = oracle.LlamaForCausalLM(oracle.LlamaConfig(**settings, initializer_range=0.2)).eval()
        for size in ("1GB", "20KB"):  # one file; an index and several
            folder = tmp_path / f"{SHAPES.index(config)}-{size}"
            theirs.save_pretrained(folder, max_shard_size=size)
            assert (len(list(folder.glob("*.safetensors"))) == 1) == (size == "1GB")
            model, _ = load_model(folder)
            assert model.config == config
            with torch.no_grad():
                assert_same_logits(model(tokens), theirs(tokens).logits)


def test_stories260k_gives_the_logits_of_transformers_at_256_positions(weights, tmp_path):
    from minillama.generate import generate_tokens

    model = build_model(read_llama2c(weights / "stories260K.bin"))
    ids = torch.tensor([[1] + [row[0] for row in generate_tokens(model, [[1]], 255)]])
    write_huggingface(tmp_path, from_model(model))
    with torch.no_grad():
        ours, theirs = model(ids), logits_of_transformers(tmp_path, ids)
    assert ours.shape == (1, 256, 512)
    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_every_published_shape_survives_config_json():
    for name, config in PRESETS.items():
        assert config_from_hf(config_to_hf(config, torch.bfloat16)) == config, name


def test_settings_are_read_as_old_and_new_transformers_write_them():
    base = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 8,
            "intermediate_size": 32}
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    plain = config_from_hf(base)
    assert (plain.n_kv_heads, plain.head_dim, plain.norm_eps, plain.max_seq_len) == (4, 16, 1e-6, 2048)
    old = config_from_hf({**base, "rope_theta": 5e5, "rope_scaling": llama3})
    new = config_from_hf({**base, "rope_parameters": {**llama3, "rope_theta": 5e5}})
    assert old == new and old.rope_theta == 5e5 and old.rope_scaling == RopeScaling(32.0)
    assert config_from_hf({**base, "rope_scaling": None, "head_dim": None}) == plain
    assert config_from_hf({**base, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}) == plain
    for change, message in (({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
                            ({"attention_bias": True}, "attention_bias is True"),
                            ({"model_type": "qwen3"}, "model_type 'qwen3'"),
                            ({"sliding_window": 4096, "model_type": "mistral"}, "sliding_window is 4096"),
                            ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
                            ({"num_key_value_heads": 3}, "n_kv_heads 3 does not divide"),
                            ({"vocab_size": True}, "vocab_size is True")):
        with pytest.raises(ValueError, match=message):
            config_from_hf({**base, **change})


def test_shards_with_an_index_hold_the_same_model(tmp_path, monkeypatch):
    model = model_of(GROUPED)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    write_huggingface(tmp_path, from_model(model))
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    copy, _ = load_model(tmp_path)
    assert_same_weights(model, copy)
    if importlib.util.find_spec("transformers"):
        tokens = torch.arange(61)[None]
        with torch.no_grad():
            assert_same_logits(copy(tokens), logits_of_transformers(tmp_path, tokens))


def test_pickled_weights_of_old_releases_are_read(tmp_path):
    model = model_of(GROUPED)
    write_huggingface(tmp_path, from_model(model))
    state = {name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "model.safetensors").items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    copy, _ = load_model(tmp_path)
    assert_same_weights(model, copy)


def test_of_several_forms_the_one_that_transformers_takes_is_read_and_said(tmp_path):
    model, other = model_of(GROUPED), model_of(GROUPED, seed=1)
    write_huggingface(tmp_path, from_model(other))
    (tmp_path / "model.safetensors").rename(tmp_path / "stale.safetensors")
    names = dict.fromkeys(read_safetensors(tmp_path / "stale.safetensors"), "stale.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    torch.save({name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "stale.safetensors").items()},
               tmp_path / "pytorch_model.bin")
    write_huggingface(tmp_path, from_model(model))
    with pytest.warns(UserWarning, match="model.safetensors is read, not model.safetensors.index.json or pytorch_mod"):
        assert_same_weights(model, load_model(tmp_path)[0])
    if importlib.util.find_spec("transformers"):
        tokens = torch.arange(61)[None]
        with torch.no_grad():
            assert_same_logits(model(tokens), logits_of_transformers(tmp_path, tokens))


def test_an_index_that_lies_gets_one_clear_line(tmp_path):
    model = model_of(GROUPED)
    write_huggingface(tmp_path, from_model(model))
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path.parent / "outside.safetensors").write_bytes(b"")
    good = dict.fromkeys(read_safetensors(tmp_path / "a.safetensors"), "a.safetensors")
    for change, message in (({"lm_head.weight": "../outside.safetensors"}, "file beside it"),
                            ({"lm_head.weight": str(tmp_path / "a.safetensors")}, "expected a .safetensors"),
                            ({"lm_head.weight": "model.safetensors.index.json"}, "expected a .safetensors"),
                            ({"lm_head.weight": "b.safetensors"}, "b.safetensors is missing"),
                            ({"ghost.weight": "a.safetensors"}, "ghost.weight is not in a.safetensors"),
                            ({"lm_head.weight": 7}, "must map")):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**good, **change}}))
        with pytest.raises(ValueError, match=message):
            open_weights(tmp_path)
    del good["model.norm.weight"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": good}))
    with pytest.raises(ValueError, match="norm.weight is missing"):
        open_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
        open_weights(tmp_path)


HF = "minillama.checkpoint.huggingface"
MUTANTS = [
    Mutant(HF, "rows_to_hf(name, rows, config.n_heads, config.n_kv_heads)", "rows",
           lambda: in_a_folder(test_transformers_loads_what_we_write_and_agrees)),
    Mutant(HF, "rows_to_meta(name, rows, *heads)", "rows_to_meta(name, rows, heads[0], heads[0])",
           lambda: in_a_folder(test_we_load_what_transformers_writes_and_agree)),
    Mutant(HF, '"rms_norm_eps", path, 1e-6', '"rms_norm_eps", path, 1e-5',
           test_settings_are_read_as_old_and_new_transformers_write_them),
    Mutant(HF, 'return {**rope, "rope_theta": inside}', 'return {**rope, "rope_theta": theta}',
           test_settings_are_read_as_old_and_new_transformers_write_them),
    Mutant(HF, "Path(file).name != file or ", "", lambda: in_a_folder(test_an_index_that_lies_gets_one_clear_line)),
]
