"""The settings of config.json: those of every family load, and none that changes the logits is ignored in silence."""

import json
import random
import warnings
from collections import Counter

import pytest
import torch
from checkpoints import model_of, transformers
from mutants import Mutant

from minillama.checkpoint import load_model
from minillama.checkpoint.huggingface import config_from_hf, config_to_hf, write_huggingface
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig

CONFIG = ModelConfig(32, 2, 4, 61, 2, hidden_dim=48, max_seq_len=32)
PLAIN = config_to_hf(CONFIG, torch.float32)
TOKENS = torch.arange(29)[None]
# What the families' own files say beside the shape, as they stand on the hub
COMMON = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
          "transformers_version": "4.31.0", "hidden_act": "silu", "tie_word_embeddings": False}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}
FAMILIES = {
    "llama 1": {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048, "pad_token_id": -1},
    "vicuna": {"_name_or_path": "vicuna-7b", "pad_token_id": 0, "max_length": 4096, "pretraining_tp": 1,
               "rope_scaling": None, "temperature": 0.9, "top_p": 0.6},
    "alpaca": {"_name_or_path": "llama-7b", "max_sequence_length": 2048, "pad_token_id": -1},
    "chinese-llama": {"_name_or_path": "chinese-llama-2-7b", "pad_token_id": 0, "pretraining_tp": 1,
                      "rope_scaling": None, "max_length": 4096},
    "llama 2": {"_name_or_path": "meta-llama/Llama-2-7b-hf", "pretraining_tp": 1, "rope_scaling": None},
    "llama 3": {"attention_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1, "rope_scaling": None,
                "rope_theta": 5e5},
    "llama 3.1": {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1,
                  "rope_scaling": LLAMA3, "rope_theta": 5e5, "eos_token_id": [128001, 128008, 128009]},
    "llama 3.2": {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1,
                  "head_dim": 8, "rope_scaling": {**LLAMA3, "factor": 32.0}, "tie_word_embeddings": True},
    "tinyllama": {"attention_bias": False, "pretraining_tp": 1, "rope_scaling": None, "rope_theta": 10000.0},
    "smollm2": {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
                "pretraining_tp": 1, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
                "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "tie_word_embeddings": True},
    "mistral 0.2": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6, "attention_dropout": 0.0},
    "unsloth": {"unsloth_version": "2024.9", "pad_token_id": 128004, "head_dim": 8, "rope_scaling": LLAMA3},
}
# PretrainedConfig.to_dict() of transformers 4.2x and 4.3x
OLD = {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
       "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {}, "chunk_size_feed_forward": 0,
       "is_encoder_decoder": False, "is_decoder": False, "cross_attention_hidden_size": None,
       "add_cross_attention": False, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0,
       "do_sample": False, "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
       "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
       "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
       "num_return_sequences": 1, "output_scores": False, "return_dict_in_generate": False,
       "forced_bos_token_id": None, "forced_eos_token_id": None, "remove_invalid_values": False,
       "exponential_decay_length_penalty": None, "suppress_tokens": None, "begin_suppress_tokens": None,
       "finetuning_task": None, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "tokenizer_class": None,
       "prefix": None, "sep_token_id": None, "decoder_start_token_id": None, "task_specific_params": None,
       "problem_type": None, "_name_or_path": "", "transformers_version": "4.35.0", "attention_bias": False,
       "attention_dropout": 0.0, "pretraining_tp": 1}
HARMLESS = {  # known, with the value under which they change nothing
    "attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "sliding_window": None,
    "attn_logit_softcapping": None, "final_logit_softcapping": 0, "query_pre_attn_scalar": 8, "num_experts": 0,
    "attention_multiplier": 8**-0.5, "partial_rotary_factor": 1.0, "logit_scale": 1, "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0, "logits_scaling": 1.0, "layer_types": ["full_attention"] * 2, "is_causal": True,
    "num_local_experts": 1, "rope_interleaved": False, "rope_scaling": {"type": "linear", "factor": 1.0}}


def test_what_families_and_versions_write_is_read():
    for name, words in FAMILIES.items():
        settings = {**PLAIN, **COMMON, **words}
        assert config_from_hf(settings).rope_theta == words.get("rope_theta", 1e4), name
        assert config_from_hf({**OLD, **settings}) == config_from_hf(settings), name
    for name, value in HARMLESS.items():
        assert config_from_hf({**PLAIN, name: value}) == CONFIG, name


def test_what_the_installed_transformers_writes_is_read():
    oracle = transformers()
    shape = {name: PLAIN[name] for name in PLAIN if name.startswith(("hidden_size", "inter", "num_", "max_", "vocab"))}
    for config in (oracle.LlamaConfig(**shape), oracle.MistralConfig(**shape, sliding_window=None)):
        for text in (config.to_json_string(use_diff=False), config.to_json_string()):
            found = config_from_hf(json.loads(text))
            assert (found.dim, found.n_kv_heads, found.norm_eps, found.rope_theta) == (32, 2, 1e-6, 1e4)
    with pytest.raises(ValueError, match="sliding_window is 4096"):  # MistralConfig's, where the file has none
        config_from_hf({**PLAIN, "model_type": "mistral", "max_position_embeddings": 32768})


def test_a_setting_that_changes_the_model_is_refused_by_its_name():
    for name, value in (("sliding_window", 8), ("layer_types", ["full_attention", "sliding_attention"]),
                        ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), ("logit_scale", 0.5),
                        ("query_pre_attn_scalar", 16), ("attention_multiplier", 1.0), ("embedding_multiplier", 12.0),
                        ("residual_multiplier", 0.2), ("partial_rotary_factor", 0.5), ("num_local_experts", 8),
                        ("is_causal", False), ("rope_interleaved", True), ("head_dim", 0), ("rope_theta", "1e4"),
                        ("attention_sink_size", 4), ("Hidden_act", "gelu"), ("auto_map", {"AutoConfig": "x.Y"})):
        with pytest.raises(ValueError, match=f"^config.json: {name} is "):
            config_from_hf({**PLAIN, name: value})
    for rope, word in (({"type": "linear", "factor": 2}, "linear.*factor"), ({"rope_type": "yarn"}, "yarn"),
                       ({"type": "dynamic", "factor": 4.0}, "dynamic.*factor"), ({"type": "linear"}, "linear.*factor"),
                       ({"rope_type": "longrope", "factor": 1}, "longrope"), ({**LLAMA3, "mscale": 2}, "mscale"),
                       ({"rope_type": "default", "type": "linear", "factor": 8}, "'default' and type 'linear' differ"),
                       ({"rope_theta": 5e5}, "rope_theta is 10000.0 and, in the RoPE settings, 500000.0"),
                       ({"full_attention": {"rope_theta": 1e4}}, "full_attention"), ({"factor": 2.0}, "factor")):
        for where in ("rope_scaling", "rope_parameters"):
            with pytest.raises(ValueError, match=word):
                config_from_hf({**PLAIN, where: rope})
    with pytest.raises(ValueError, match="expected .* in one of them, or the same in both"):
        config_from_hf({**PLAIN, "rope_parameters": {"rope_type": "default"}, "rope_scaling": LLAMA3})


def test_a_head_beside_a_tied_config_is_told_and_kept(tmp_path):
    model = model_of(CONFIG)
    write_huggingface(tmp_path, from_model(model))
    (tmp_path / "config.json").write_text(json.dumps({**PLAIN, "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="config.json ties the output head .* that head is used"):
        copy, _ = load_model(tmp_path)
    assert torch.equal(copy(TOKENS), model(TOKENS)) and not copy.config.tie_embeddings
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(tmp_path)[0].config.tie_embeddings  # a copy: nothing to tell


FREE = {*OLD, *COMMON, *(name for words in FAMILIES.values() for name in words), "name_or_path"}
FREE -= {*HARMLESS, *PLAIN} - {"architectures", "torch_dtype"}  # what is left has no influence, but for these:
FREE -= {"is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size", "pruned_heads"}
KNOWN = sorted({*PLAIN, *HARMLESS, *FREE, "is_encoder_decoder", "pruned_heads", "rope_parameters"})
VALUES = [None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 61, 0.5, 1.0, 2.5, 1e-5, 1e-4, 5e5, 1e400, "", "1",
          "true", "silu", "gelu", "llama", "yarn", [], [1], [0, 0], ["full_attention"], {},
          {"factor": 2.0}, {"rope_type": "default"}, {"type": "linear", "factor": 2.0},
          {"rope_theta": 5e5}, {"rope_type": "llama3"}, LLAMA3]
WORDS = ("attention attn logit rope scale scaling factor window sliding softcap bias norm eps theta head mlp embedding "
         "residual multiplier expert gate cap sink temperature chunk layer type partial rotary clip").split()


def spelled(draw, name):
    """Another spelling of a setting's name, as a slip or another program would have it."""
    head, _, tail = name.partition("_")
    return draw.choice([name.upper(), name.title(), name.replace("_", "-"), name.replace("_", ""), name + "s",
                        "_" + name, "text_config." + name, f"{tail}_{head}", head + tail.title(), name[1:]])


def mutated(draw, names, words, values=VALUES):
    """(name, value) to be set: of a known name, of another spelling of it, or of a name made of such words."""
    kind = draw.random()
    if kind < 0.4:
        return draw.choice(names), draw.choice(values)
    if kind < 0.7:
        return spelled(draw, draw.choice(names)), draw.choice(values)
    return "_".join(draw.sample(words, draw.randint(1, 3))), draw.choice(values)


def outcome_of(name, value):
    """What becomes of PLAIN with this setting: "refused" (in one line), "obeyed" (another shape), "ignored"."""
    try:
        config = config_from_hf({**PLAIN, name: value}, "p")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        assert name in PLAIN or name in str(error) or name.startswith("rope_"), (name, error)
        return "refused"
    return "ignored" if config == CONFIG else "obeyed"


def is_harmless(name, value):
    """Whether the setting is one of no influence, or says what PLAIN means anyway, or nothing."""
    if name in FREE or value in ({"rope_type": "default"}, {"rope_theta": 1e4}):
        return True
    own = {**PLAIN, **HARMLESS}.get(name)
    values = value if isinstance(value, list) and value else [value]
    return all(not one or one == own or [one, one] == own for one in values)


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_mutated_setting_is_ignored_unless_it_is_harmless(count):
    draw, outcomes = random.Random(18), Counter()
    for _ in range(count):
        name, value = mutated(draw, KNOWN, WORDS)
        outcome = outcome_of(name, value)
        outcomes[outcome] += 1
        if outcome == "ignored":
            assert is_harmless(name, value), (name, value)
    assert outcomes["refused"] > count // 2 and min(outcomes["obeyed"], outcomes["ignored"]) > count // 200, outcomes


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_what_is_loaded_has_the_logits_of_transformers(count, tmp_path):
    """Whatever config.json becomes: it is refused, or the model computes what transformers computes of the folder."""
    oracle, draw, loaded = transformers(), random.Random(5), 0
    oracle.logging.set_verbosity_error()
    write_huggingface(tmp_path, from_model(model_of(CONFIG)))
    for _ in range(count):
        name, value = mutated(draw, KNOWN, WORDS)
        settings = {**PLAIN, "model_type": draw.choice(["llama", "mistral"]), name: value}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model, _ = load_model(tmp_path)
            except ValueError:
                continue
        tokens = TOKENS[:, :model.config.max_seq_len]
        try:
            with torch.no_grad():
                theirs = oracle.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(
                    tokens, use_cache=False, output_attentions=False, output_hidden_states=False, return_dict=True)
        except Exception:  # it checks the types of words that change nothing; what it refuses it does not compute
            continue
        loaded += 1
        assert (model(tokens) - theirs.logits).abs().max() < 1e-4, (name, value)
    assert loaded > count // 10


MUTANTS = [
    Mutant("minillama.checkpoint.huggingface",
           "check_known(settings, path, \"config.json\", ", "dict(",
           lambda: test_no_mutated_setting_is_ignored_unless_it_is_harmless(600)),
]
