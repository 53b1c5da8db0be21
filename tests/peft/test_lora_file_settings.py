"""adapter_config.json: what peft's releases write is read, and no variant that changes the model is taken for LoRA."""

import json
import random
from collections import Counter

import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant
from test_huggingface_settings import mutated
from test_lora import small_model, tokens, train_by_chance

from minillama.peft.lora import LoRAConfig, add_lora
from minillama.peft.lora_file import load_lora, save_lora

OLD = {"enable_lora": None, "merge_weights": False, "auto_mapping": None, "revision": None, "layers_to_transform": None,
       "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None, "loftq_config": {},
       "megatron_core": "megatron.core", "use_rslora": False, "use_dora": False, "layer_replication": None,
       "exclude_modules": None, "eva_config": None, "lora_bias": False, "corda_config": None, "init_lora_weights": True}
TARGETS = ["q_proj", "v_proj"]
VALUES = [None, True, False, 0, 1, 2, 3, 8, 0.5, 6.0, "", "none", "all", "pissa", "olora", "eva", "loftq", "gaussian",
          "all-linear", ".*_proj", "q_proj", [], [0], [0, 1], [7], TARGETS, ["q_proj"], {}, {"q_proj": 4}, {"a": None}]
FREE = {"task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "qalora_group_size", "megatron_core", "layers_pattern", "loftq_config", "eva_config", "merge_weights",
        "runtime_config", "lora_dropout"}  # dropout is for training


def an_adapter(folder):
    """Its settings, and a function that loads it with others: None or the logits."""
    model = small_model()
    add_lora(model, LoRAConfig(rank=3, alpha=6))
    save_lora(folder, train_by_chance(model))

    def logits_with(settings):
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        fresh = small_model()
        load_lora(folder, fresh)
        return fresh.eval()(tokens()).detach()

    return json.loads((folder / "adapter_config.json").read_text()), logits_with


def test_what_pefts_releases_write_is_read(tmp_path):
    peft = pytest.importorskip("peft", reason="the oracle of what peft writes")
    settings, logits_with = an_adapter(tmp_path)
    plain = logits_with(settings)
    written = peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM").to_dict()
    written = {name: sorted(value) if isinstance(value, set) else value for name, value in written.items()}
    for given in ({**settings, **OLD}, {**written, "peft_type": "LORA"},
                  {**settings, "target_modules": r".*\.[qv]_proj"},
                  {**settings, "layers_to_transform": [0, 1]}, {**settings, "target_modules": "all-linear"},
                  {**settings, "init_lora_weights": "gaussian"}):
        assert torch.equal(logits_with(given), plain)


def test_what_is_not_plain_lora_or_leaves_out_a_layer_is_refused_by_its_name(tmp_path):
    settings, logits_with = an_adapter(tmp_path)
    for name, value in (("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"), ("use_rslora", 1),
                        ("init_lora_weights", "loftq"), ("use_dora", "yes"), ("alora_invocation_tokens", [1, 2]),
                        ("arrow_config", {"top_k": 2}), ("rank_pattern", {"q_proj": 4}), ("exclude_modules", ["v"]),
                        ("trainable_token_indices", [3]), ("layers_to_transform", 0), ("layers_to_transform", [1]),
                        ("target_modules", ["q_proj"]), ("target_modules", r".*\.q_proj"), ("use_lily", True)):
        with pytest.raises(ValueError, match=rf"adapter_config.json: .*{name}.* (is|leave out) "):
            logits_with({**settings, name: value})


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.long)])
def test_no_mutated_setting_is_ignored_unless_it_is_harmless(count, tmp_path):
    settings, logits_with = an_adapter(tmp_path)
    plain, draw, outcomes = logits_with(settings), random.Random(18), Counter()
    own = {**OLD, **settings}
    harmless = {"init_lora_weights": ("gaussian", "eva"), "layers_to_transform": ([0, 1],),
                "target_modules": ("all-linear", ".*_proj")}
    for _ in range(count):
        name, value = mutated(draw, sorted(own), "use lora dora rank alpha config bias init pattern".split(), VALUES)
        try:
            outcome = "ignored" if torch.equal(logits_with({**settings, name: value}), plain) else "obeyed"
        except ValueError as error:
            outcome = "refused"
            assert "\n" not in str(error)
        outcomes[outcome] += 1
        if outcome == "ignored" and name not in FREE:
            assert not value or value == own.get(name) or value in harmless.get(name, ()), (name, value)
    assert outcomes["refused"] > count // 3 and outcomes["ignored"] > count // 20, outcomes


MUTANTS = [
    Mutant("minillama.peft.lora_file", "if not _is_target(name, targets) or (numbers", "if (numbers",
           lambda: in_a_folder(test_what_is_not_plain_lora_or_leaves_out_a_layer_is_refused_by_its_name)),
    Mutant("minillama.peft.lora_file", "check_known(config, path, \"adapter_config.json\")", "pass",
           lambda: in_a_folder(test_what_is_not_plain_lora_or_leaves_out_a_layer_is_refused_by_its_name)),
]
