"""Meta's own form: what we save comes back whole, in its dtype, with its shape."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from checkpoints import assert_same_weights

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.meta import params_of
from minillama.config import PRESETS, ModelConfig, RopeScaling, hidden_dim_rule, preset
from minillama.transformer import Transformer

ODD = ModelConfig(dim=24, n_layers=2, n_heads=6, n_kv_heads=3, vocab_size=37, head_dim=6, hidden_dim=23,
                  max_seq_len=50, norm_eps=1e-6, rope_theta=5e5, rope_scaling=RopeScaling(4.0, 1.0, 3.0, 32))


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    for config in (ODD, preset("tiny", vocab_size=40), replace(ODD, tie_embeddings=True, head_dim=4)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = Transformer(config).to(dtype)
            save_model(tmp_path, model)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                copy, tokenizer = load_model(tmp_path)
            assert tokenizer is None and copy.config == config
            assert copy.norm.weight.dtype == dtype
            assert_same_weights(model, copy)
            assert (copy.output.weight is copy.tok_embeddings.weight) == config.tie_embeddings


def test_any_feed_forward_width_survives_the_params_file():
    for dim in (1, 2, 5, 64, 96, 100, 4096):
        for hidden in (*range(1, 300), 4095, 4096, 4097, 11008, 28671, 28672):
            config = ModelConfig(dim, 1, 1, 8, head_dim=2, hidden_dim=hidden)
            params = params_of(config)
            assert hidden_dim_rule(dim, params["multiple_of"], params.get("ffn_dim_multiplier")) == hidden


def test_published_shapes_are_written_as_published():
    published = {"llama_7b": (256, None), "llama2_70b": (4096, 1.3), "llama3_8b": (1024, 1.3),
                 "stories260k": (4, None)}
    for name, words in published.items():
        params = params_of(PRESETS[name])
        assert (params["multiple_of"], params.get("ffn_dim_multiplier")) == words


def test_a_bad_folder_gets_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither params.json"):
        load_model(tmp_path)
    save_model(tmp_path, Transformer(ODD))
    good = json.loads((tmp_path / "params.json").read_text())
    for change, message in (({"n_layers": 3}, "layers.2.attention_norm.weight is missing"),
                            ({"n_layers": 10**9}, "n_layers is 1000000000 but there are 21 tensors"),
                            ({"vocab_size": 38}, r"tok_embeddings.weight has shape \[37, 24\]"),
                            ({"dim": "24"}, "dim is '24': expected a positive whole number"),
                            ({"norm_eps": -1}, "norm_eps is -1: expected a positive number")):
        (tmp_path / "params.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(good))
    (tmp_path / "consolidated.00.pth").write_bytes((tmp_path / "consolidated.00.pth").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut short"):
        load_model(tmp_path)
