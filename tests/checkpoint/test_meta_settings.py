"""The settings of params.json, changed at random: no one that changes the model's shape or numbers is ignored."""

import random
from collections import Counter

import pytest
import torch
from mutants import Mutant
from test_huggingface_settings import mutated

from minillama.checkpoint.meta import config_from_params, params_of
from minillama.config import ModelConfig, RopeScaling

CONFIG = ModelConfig(32, 2, 4, 61, 2, hidden_dim=48, max_seq_len=32)
PLAIN = params_of(CONFIG)
TABLE = {"tok_embeddings.weight": torch.zeros(61, 32)}
OWN = {**PLAIN, "ffn_dim_multiplier": None, "hidden_dim": 48, "head_dim": 8, "rope_scaling": None, "quantization": None,
       "max_batch_size": 32, "vision_max_num_chunks": 4, "vision_chunk_size": -1, "moe": False, "lora_args": None,
       "sliding_window": None, "use_qk_norm": False, "causal": True, "quantization_args": None}
FREE = {"max_batch_size", "vision_max_num_chunks", "quantization"}
VALUES = [None, True, False, 0, 1, 2, 3, 4, 8, 32, 48, 61, -1, 0.5, 1.0, 2.5, 1e-5, 5e5, 1e400, 2**70, "", "1", "true",
          [], [1], {}, {"factor": 2.0}, {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                         "original_max_seq_len": 8192}]
WORDS = "dim layers heads kv norm eps rope theta scaled window bias vocab size ffn hidden multiplier moe qk".split()


def config_of(params):
    return config_from_params(params, "p", TABLE)


def test_metas_own_settings_are_read():
    llama31 = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 61, "norm_eps": 1e-5,
               "ffn_dim_multiplier": 1.3, "multiple_of": 16, "rope_theta": 500000.0, "use_scaled_rope": True}
    found = config_of(llama31)
    assert (found.rope_scaling, found.max_seq_len, found.rope_theta) == (RopeScaling(8.0), 131072, 5e5)
    assert found.hidden_dim == 112 and found.n_kv_heads == 2  # int(1.3 * int(8 * 32 / 3)) = 110, up to 16s


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_mutated_setting_is_ignored_unless_it_is_harmless(count):
    draw, outcomes, names = random.Random(18), Counter(), sorted(OWN)
    for _ in range(count):
        name, value = mutated(draw, names, WORDS, VALUES)
        try:
            outcome = "ignored" if config_of({**PLAIN, name: value}) == CONFIG else "obeyed"
        except ValueError as error:
            outcome = "refused"
            assert "\n" not in str(error) and len(str(error)) < 300
            assert name in PLAIN or name in str(error) or "head_dim" in str(error), (name, error)
        outcomes[outcome] += 1
        if outcome == "ignored" and name not in FREE:
            given = {"vocab_size": (-1, None), "hidden_dim": (48.0,)}.get(name, ())
            divides = name == "multiple_of" and 48 % value == 0  # the feed-forward's width stays what it is
            assert not value or value == OWN.get(name) or value in given or divides, (name, value)
    assert outcomes["refused"] > count // 2 and min(outcomes["obeyed"], outcomes["ignored"]) > count // 200, outcomes


MUTANTS = [
    Mutant("minillama.checkpoint.meta", 'check_known(params, path, "params.json")', "pass",
           lambda: test_no_mutated_setting_is_ignored_unless_it_is_harmless(600)),
]
