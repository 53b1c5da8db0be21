"""Adapter files: there and back, damaged ones refused, and both ways between minillama and peft."""

import contextlib
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from test_lora import ALL, normal, small_model, tokens, train_by_chance
from test_pth import Attack

from minillama.checkpoint.names import rows_to_hf, state_dict_to_hf, to_hf
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.peft.adapter_file import load_adapter, save_adapter
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.peft.lora_file import load_lora, save_lora


def test_an_adapter_that_was_never_trained_is_not_saved(tmp_path):
    model = small_model()
    add_lora(model, LoRAConfig())
    with pytest.raises(ValueError, match="empty.*train it"):
        save_lora(tmp_path, model)
    with pytest.raises(ValueError, match="no adapter: add_lora"):
        save_lora(tmp_path, small_model())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_adapter_is_saved_where_it_is_the_outcome_and_changes_nothing(tmp_path):
    model = small_model()
    add_lora(model, LoRAConfig())
    save_adapter(tmp_path, model, "base", empty=True)
    load_adapter(tmp_path, again := small_model())
    assert torch.equal(again(tokens()), small_model()(tokens())) and lora_layers(again)


@pytest.mark.parametrize("targets", [("attention.wq", "attention.wv"), ALL, ("layers.1.attention.wk",)])
def test_a_saved_adapter_loads_to_identical_logits(targets, tmp_path):
    model = small_model()
    add_lora(model, LoRAConfig(rank=3, alpha=6, dropout=0.1, targets=targets))
    train_by_chance(model)
    save_lora(tmp_path, model)
    again = small_model()
    assert load_lora(tmp_path, again) == list(lora_layers(model))
    assert torch.equal(again(tokens()), model(tokens()))
    assert lora_layers(again).popitem()[1].config.dropout == 0.1


def test_the_bin_of_old_peft_is_read_and_the_safetensors_wins(tmp_path):
    model, path = small_model(), tmp_path / "adapter_model.bin"
    add_lora(model, LoRAConfig(rank=3))
    save_lora(tmp_path, train_by_chance(model))
    state = {name: tensor.clone() for name, tensor in read_safetensors(tmp_path / "adapter_model.safetensors").items()}
    torch.save({name: torch.zeros_like(tensor) for name, tensor in state.items()}, path)
    both, old = small_model(), small_model()
    with pytest.warns(UserWarning, match="adapter_model.safetensors is read, not adapter_model.bin"):
        load_lora(tmp_path, both)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(state, path)
    load_lora(tmp_path, old)
    assert torch.equal(both(tokens()), model(tokens())) and torch.equal(old(tokens()), model(tokens()))
    for content, match in ((Attack(tmp_path / "made"), "asks for more than tensors"), ({}, "holds a dict of nothing"),
                           ({**state, "x": torch.ones(2)}, "no matrix of a LoRA")):
        torch.save(content, path)
        with pytest.raises(ValueError, match=match):
            load_lora(tmp_path, small_model())
    path.unlink()
    with pytest.raises(ValueError, match="neither adapter_model.safetensors nor adapter_model.bin"):
        load_lora(tmp_path, small_model())
    assert not (tmp_path / "made").exists()


def test_damaged_or_foreign_adapter_files_are_refused(tmp_path):
    model = small_model()
    add_lora(model, LoRAConfig(rank=3))
    save_lora(tmp_path, train_by_chance(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = read_safetensors(tmp_path / "adapter_model.safetensors")
    first = next(iter(tensors))

    def refuse(match, config=config, tensors=tensors):
        (tmp_path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
        fresh = small_model()
        with pytest.raises(ValueError, match=match):
            load_lora(tmp_path, fresh)
        assert not lora_layers(fresh)  # nothing half done

    refuse("JSON", "{")
    refuse("not a LoRA", {**config, "peft_type": "IA3"})
    refuse("lack A or B or m", {**config, "use_dora": True})
    refuse("bias", {**config, "bias": "all"})
    refuse("another base", {**config, "r": 4})
    refuse("alpha", {**config, "lora_alpha": math.nan})
    refuse("holds no adapter", tensors={})
    refuse("lack A or B", tensors={name: t for name, t in tensors.items() if name != first})
    refuse("no matrix of a LoRA", tensors={**tensors, "lm_head.weight": torch.zeros(2, 2)})
    refuse("another base", tensors={**tensors, first: torch.zeros(3, 31)})
    refuse("known", tensors={**tensors, "base_model.model.model.layers.0.x.lora_A.weight": torch.zeros(3, 32)})


def close(ours, theirs):
    """Within 64 fp32 steps of the largest number: the same sums in another order, through two layers there and back."""
    return float((ours - theirs).detach().abs().max()) <= 64 * 2**-24 * float(theirs.detach().abs().max())


@contextlib.contextmanager
def peft_twin(model):
    """transformers' LlamaForCausalLM with the same weights, and the peft library."""
    peft = pytest.importorskip("peft", reason="peft is the oracle of LoRA's forward, gradients and files")
    transformers = pytest.importorskip("transformers", reason="transformers holds the model that peft adapts")
    c = model.config
    config = transformers.LlamaConfig(
        hidden_size=c.dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, vocab_size=c.vocab_size,
        num_key_value_heads=c.n_kv_heads, intermediate_size=c.hidden_dim, rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tie_embeddings, attn_implementation="eager")
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(state_dict_to_hf(model.state_dict(), c.n_heads, c.n_kv_heads))
    with tempfile.TemporaryDirectory() as folder:
        yield peft, theirs, Path(folder)


def test_peft_loads_our_adapter_to_the_same_logits():
    """All seven kinds of layer, grouped queries, 37 positions: 2e-6 is a few fp32 steps of logits below
    2."""
    model = small_model()
    with peft_twin(model) as (peft, theirs, folder):
        base = theirs(tokens()).logits
        assert close(model(tokens()), base)
        add_lora(model, LoRAConfig(rank=4, alpha=8, targets=ALL))
        train_by_chance(model)
        save_lora(folder, model)
        adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
        ours = model(tokens())
        assert not torch.allclose(ours, base, atol=0.05)
        assert close(ours, adapted(tokens()).logits)


def test_peft_loads_our_adapter_of_one_layer_alone():
    model = small_model()
    with peft_twin(model) as (peft, theirs, folder):
        add_lora(model, LoRAConfig(rank=4, targets=("layers.1.attention.wk",)))
        save_lora(folder, train_by_chance(model))
        adapted = peft.PeftModel.from_pretrained(theirs, folder)
        assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 1
        assert close(model(tokens()), adapted.eval()(tokens()).logits)


def test_we_load_pefts_adapter_to_the_same_logits_and_gradients():
    model = small_model()
    with peft_twin(model) as (peft, theirs, folder):
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(
            r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        adapted.save_pretrained(folder / "bin", safe_serialization=False)
        assert (folder / "bin" / "adapter_model.bin").exists()
        load_lora(folder / "bin", old := small_model())
        adapted.save_pretrained(folder)
        load_lora(folder, model)
        ours, logits = model(tokens()), adapted(tokens()).logits
        assert close(ours, logits) and torch.equal(old(tokens()), ours)
        weights = normal(*logits.shape, seed=4) / logits.numel() ** 0.5
        (ours * weights).sum().backward()
        (logits * weights).sum().backward()
        theirs = dict(adapted.named_parameters())
        for path, module in lora_layers(model).items():
            name = "base_model.model." + to_hf(path)
            B = rows_to_hf(path, module.B.grad, 4, 2)
            assert close(module.A.grad, theirs[f"{name}.lora_A.default.weight"].grad)
            assert close(B, theirs[f"{name}.lora_B.default.weight"].grad)


FILE = "minillama.peft.lora_file"


def in_a_folder(law, *arguments):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            law(*arguments, Path(folder))
    return run


MUTANTS = [
    Mutant(FILE, "B = rows_to_hf(path, layer.B.detach(), model.config.n_heads, model.config.n_kv_heads)",
           "B = layer.B.detach()", test_peft_loads_our_adapter_to_the_same_logits),
    Mutant(FILE, "layer.B.detach(), model.config.n_heads, model.config.n_kv_heads)",
           "layer.B.detach(), model.config.n_heads, model.config.n_heads)",
           test_peft_loads_our_adapter_to_the_same_logits),
    Mutant(FILE, 'tensor if part == "A" else rows_to_meta(layer, tensor, *heads)', 'tensor',
           test_we_load_pefts_adapter_to_the_same_logits_and_gradients),
    Mutant(FILE, '"lora_alpha": config.alpha,', '"lora_alpha": config.scaling,',
           in_a_folder(test_a_saved_adapter_loads_to_identical_logits, ALL)),
    Mutant(FILE, "return [to_hf(path) for path in layers]", "pass", test_peft_loads_our_adapter_of_one_layer_alone),
    Mutant(FILE, "if not (empty or any(bool(layer.B.any()) for layer in layers.values())):", "if False:",
           in_a_folder(test_an_adapter_that_was_never_trained_is_not_saved)),
]
