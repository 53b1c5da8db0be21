"""The settings of a GGUF file: what llama.cpp and its relatives write loads, none that changes logits is ignored."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from checkpoints import in_a_folder, model_of
from mutants import Mutant
from test_gguf_blocks import package
from test_huggingface_settings import mutated

from minillama.checkpoint import gguf_llama
from minillama.checkpoint.gguf import read_gguf
from minillama.checkpoint.gguf_llama import write_gguf_llama
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig, RopeScaling

CONFIG = ModelConfig(32, 2, 4, 61, 2, hidden_dim=48, max_seq_len=32)
REAL = {  # what the programs that make such files write beside the shape
    "general.type": "model", "general.quantization_version": 2, "general.file_type": 15, "general.size_label": "7B",
    "general.sampling.top_k": 40, "llama.vocab_size": 61, "llama.tensor_data_layout": "Meta AI original pth",
    "llama.rope.scaling.type": "none", "llama.expert_count": 0, "llama.expert_used_count": 0, "llama.pooling_type": 0,
    "llama.attention.value_length": 8, "llama.attention.causal": True, "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}", "tokenizer.chat_template.tool_use": "", "split.count": 0,
    "quantize.imatrix.file": "a.dat", "quantize.imatrix.entries_count": 224, "mradermacher.quantized_by": "someone"}
HARMLESS = {"llama.rope.scaling.factor": 1.0, "llama.attention.scale": 8**-0.5, "llama.logit_scale": 1.0,
            "llama.residual_scale": 0.0, "llama.attention.sliding_window": 0, "llama.use_parallel_residual": False}
INERT = ("general.", "quantize.", "imatrix.", "mradermacher.", "tokenizer.", "split.", "llama.vocab_size",
         "llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned", "llama.decoder_start_token_id")
VALUES = [0, 1, 2, 4, 8, 32, 61, -1, 0.0, 1.0, 0.5, 2.0, 1e-5, 1e4, 5e5, float("nan"), True, False, "", "none",
          "linear", "yarn", "llama", "silu", [], [0, 0], [1, 1], [4, 4], ["a"]]


def file_of(folder, config=CONFIG):
    write_gguf_llama(folder / "model.gguf", from_model(model_of(config)))
    settings, tensors = read_gguf(folder / "model.gguf")
    factors = tensors.pop(gguf_llama.FREQUENCIES, None)
    named = {gguf_llama._to_meta(name, "p"): tensor for name, tensor in tensors.items()}
    return settings, lambda changed: gguf_llama._config(changed, named, factors, "p")


def test_what_other_programs_write_is_read(tmp_path):
    settings, read = file_of(tmp_path)
    assert read({**settings, **REAL}) == CONFIG
    for name, value in {**REAL, **HARMLESS}.items():
        assert read({**settings, name: value}) == CONFIG, name


def test_a_setting_that_changes_the_model_is_refused_by_its_name(tmp_path):
    settings, read = file_of(tmp_path)
    for name, value in (("rope.scaling.type", "yarn"), ("rope.scaling.factor", 4.0), ("rope.scale_linear", 2.0),
                        ("attention.sliding_window", 8), ("attention.scale", 1.0), ("attention.clamp_kqv", 8.0),
                        ("attention.value_length", 4), ("rope.dimension_count", 4), ("expert_count", 8),
                        ("logit_scale", 0.5), ("attention.causal", False), ("use_parallel_residual", True),
                        ("final_logit_softcapping", 30.0), ("swin_norm", True), ("rope.freq_base_swa", 1e4)):
        with pytest.raises(ValueError, match=f"^p: llama.{name} is "):
            read({**settings, f"llama.{name}": value})
    for name, value in (("tokenizer.ggml.lowercase", True), ("general.type", "adapter"), ("clip.use_gelu", True),
                        ("general.quantization_version", 1), ("minillama.rope_scaling.factor", 8.0)):
        with pytest.raises(ValueError, match=f"^p: {name} is "):
            read({**settings, name: value})
    scaled = replace(CONFIG, rope_scaling=RopeScaling(1.0))  # a table of ones
    settings, read = file_of(tmp_path, scaled)
    assert read(settings) == scaled
    with pytest.raises(ValueError, match="rope_freqs.weight is not what"):
        read({**settings, "minillama.rope_scaling.factor": 8.0})


def words_of(keys):
    """All settings that the gguf package has a name for, as a LLaMA's."""
    names = []
    for name, value in vars(keys).items():
        names += words_of(value) if isinstance(value, type) else [value] if not name.startswith("_") else []
    return [name.replace("{arch}", "llama").replace("{id}", "0") for name in names if isinstance(name, str)]


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_mutated_setting_is_ignored_unless_it_is_harmless(count, tmp_path):
    settings, read = file_of(tmp_path)
    draw, outcomes, own = random.Random(18), Counter(), {**REAL, **HARMLESS, **settings}
    names = sorted({*words_of(package().Keys), *own})
    for _ in range(count):
        name, value = mutated(draw, names, names, VALUES)
        try:
            outcome = "ignored" if read({**settings, name: value}) == CONFIG else "obeyed"
        except ValueError as error:
            outcome = "refused"
            assert "\n" not in str(error) and len(str(error)) < 300
            assert name in settings or str(error).startswith(f"p: {name[:80]} is"), (name, error)
        outcomes[outcome] += 1
        if outcome == "ignored" and not name.startswith(INERT):
            each = value if isinstance(value, list) else [value]
            usual = (0, 1, own.get(name)) if name in own or "scal" in name else (0, own.get(name))
            assert all(one in usual or (one == "linear" and "type" in name) for one in each), (name, value)
    assert outcomes["refused"] > count // 3 and outcomes["obeyed"] > 0 and outcomes["ignored"] > count // 100, outcomes


MUTANTS = [
    Mutant("minillama.checkpoint.gguf_llama", "check_known(settings, path, \"GGUF\", ", "dict(",
           lambda: in_a_folder(test_a_setting_that_changes_the_model_is_refused_by_its_name)),
    Mutant("minillama.checkpoint.gguf_llama", "(table == 1).all()) and not named", "(table == 1).all())",
           lambda: in_a_folder(test_a_setting_that_changes_the_model_is_refused_by_its_name)),
]
