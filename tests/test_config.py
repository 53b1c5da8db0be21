"""The shapes: published parameter counts to the last number, and impossible shapes refused."""

import dataclasses

import pytest
import torch
from mutants import Mutant

from minillama.config import PRESETS, ModelConfig, RopeScaling, hidden_dim_rule, preset
from minillama.transformer import Transformer

PUBLISHED = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_1_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
}
SMALL = dict(dim=12, n_layers=1, n_heads=2, vocab_size=5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_published_parameter_count(name):
    assert PRESETS[name].n_parameters() == PUBLISHED[name]


TWICE = {"llama2_7b", "llama2_13b", "llama3_1_8b"}  # the same widths again


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - TWICE))
def test_the_counting_formula_counts_the_model(name):
    with torch.device("meta"):  # shapes without memory
        model = Transformer(PRESETS[name])
    assert sum(weight.numel() for weight in model.parameters()) == PRESETS[name].n_parameters()


@pytest.mark.parametrize(("arguments", "hidden"), [
    # from the params.json of 7B, 13B, 33B, 65B, then 2-70B, 3-8B, 3.1-405B, 3.2-1B, 3.2-3B, stories260K
    ((4096, 256), 11008), ((5120, 256), 13824), ((6656, 256), 17920), ((8192, 256), 22016),
    ((8192, 4096, 1.3), 28672), ((4096, 1024, 1.3), 14336), ((16384, 4096, 1.2), 53248),
    ((2048, 256, 1.5), 8192), ((3072, 256, 1.0), 8192), ((64, 4), 172), ((1, 1), 2),
])
def test_the_hidden_width_follows_the_rule_of_the_published_code(arguments, hidden):
    assert hidden_dim_rule(*arguments) == hidden


def test_what_is_left_out_gets_the_usual_choice():
    config = ModelConfig(4096, 32, 32, 32000)
    assert (config.n_kv_heads, config.head_dim, config.hidden_dim) == (32, 128, 11008)
    assert ModelConfig(**SMALL, head_dim=4, hidden_dim=7).head_dim == 4, "what is given stays"


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_heads": 6, "n_kv_heads": 4}, r"n_kv_heads 4 does not divide n_heads 6: use one of \[1, 2, 3, 6\]"),
    ({"n_kv_heads": 3}, r"use one of \[1, 2\]"),
    ({"n_heads": 5}, "dim 12 is no multiple of n_heads 5"),
    ({"n_heads": 4}, "head_dim 3 is odd, and RoPE turns pairs: use 4"),
    ({"head_dim": 7}, "head_dim 7 is odd"),
    ({"dim": 0}, "dim is 0: it must be a whole number from 1 to"),
    ({"dim": 12.0}, "dim is 12.0: it must be a whole number"),
    ({"dim": True}, "dim is True"),
    ({"n_layers": -1}, "n_layers is -1"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"vocab_size": 2**60}, "vocab_size is 1152921504606846976"),
    ({"max_seq_len": 0}, "max_seq_len is 0"),
    ({"n_kv_heads": 0}, "n_kv_heads is 0"),
    ({"hidden_dim": 0}, "hidden_dim is 0"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0: it must be a number from 1e-30"),
    ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'"),
    ({"rope_theta": float("nan")}, "rope_theta is nan"),
    ({"rope_theta": float("inf")}, "rope_theta is inf"),
    ({"rope_scaling": {"factor": 8.0}}, "it must be RopeScaling"),
])
def test_an_impossible_shape_is_refused_with_the_possible_ones(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ModelConfig(**(SMALL | changes))


@pytest.mark.parametrize(("changes", "message"), [
    ({"factor": 0.0}, "factor is 0.0"),
    ({"original_max_seq_len": 0}, "original_max_seq_len is 0"),
    ({"low_freq_factor": 4.0}, "high_freq_factor 4.0 must be above low_freq_factor 4.0"),
])
def test_an_impossible_rope_scaling_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**changes)


def test_a_preset_is_found_by_name_and_may_be_changed():
    assert preset("tiny") is not None and preset("tiny", vocab_size=99).vocab_size == 99
    assert PRESETS["tiny"].vocab_size == 512, "the preset itself is untouched"
    wider = preset("tiny", dim=192, head_dim=None, hidden_dim=None)
    assert (wider.head_dim, wider.hidden_dim) == (48, 512)


def test_an_unknown_preset_is_refused_with_the_list():
    with pytest.raises(ValueError, match="no preset 'llama_8b'.*llama_7b.*llama3_8b.*nano"):
        preset("llama_8b")


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["tiny"].dim = 1


MUTANTS = [
    Mutant("minillama.config", "2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)",
           "4 * self.dim * self.head_dim * self.n_heads",
           lambda: test_published_sizes_have_their_published_parameter_count("llama3_8b")),
    Mutant("minillama.config", "(1 if self.tie_embeddings else 2)", "2",
           lambda: test_the_counting_formula_counts_the_model("stories260k")),
    Mutant("minillama.config", "tables + self.n_layers * block + self.dim", "tables + self.n_layers * block",
           lambda: test_published_sizes_have_their_published_parameter_count("llama_7b")),
    Mutant("minillama.config", "* int(2 * (4 * dim) / 3))", "* 4 * dim)",
           lambda: test_the_hidden_width_follows_the_rule_of_the_published_code((8192, 4096, 1.3), 28672)),
    Mutant("minillama.config", "hidden + multiple_of - 1)", "hidden + multiple_of)",
           lambda: test_the_hidden_width_follows_the_rule_of_the_published_code((3072, 256, 1.0), 8192)),
    Mutant("minillama.config", "if self.n_heads % self.n_kv_heads:", "if self.n_kv_heads > self.n_heads:",
           lambda: test_an_impossible_shape_is_refused_with_the_possible_ones(
               {"n_heads": 6, "n_kv_heads": 4}, "use one of")),
    Mutant("minillama.config", "if self.head_dim % 2:", "if False:",
           lambda: test_an_impossible_shape_is_refused_with_the_possible_ones({"head_dim": 7}, "odd")),
]
