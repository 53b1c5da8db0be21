"""Adapters in series in the `adapters` package's files: its names and ours are the same numbers, other kinds are
refused. That the package itself reads and writes them so stands in test_adapter_twin, where it can be installed."""

import json

import pytest
import torch
from mutants import Mutant
from tuned_models import small_model, tokens, trained, tuned

from minillama.checkpoint.names import to_hf
from minillama.peft.adapter_file import load_adapter, method_of, save_adapter
from minillama.peft.adapters_package import SERIES, kind_of

CONFIG, TENSORS = "adapter_config.json", "pytorch_adapter.bin"


def package_folder(path, model, m, **changed):
    """What the package saves for that adapter: its fields alone, and names with those that the user gave it."""
    dim = model.config.dim
    fields = {**SERIES, "original_ln_after": True, "dropout": 0.0, "reduction_factor": dim / m, **changed}
    path.mkdir(exist_ok=True)
    (path / CONFIG).write_text(json.dumps({
        "config": fields, "hidden_size": dim, "model_class": "LlamaForCausalLM", "model_name": "", "name": "mine",
        "model_type": "llama", "version": "adapters.1.3.0"}))
    places = {"self_attn.o_proj": "attention_adapters", "mlp.down_proj": "output_adapters"}
    tensors = {}
    for key, parameter in trained(model).items():
        layer, side, kind = key.rsplit(".", 2)
        block, name = to_hf(layer).split(".", 3)[:3], ".".join(to_hf(layer).split(".")[3:])
        part = "adapter_down.0" if side == "down" else "adapter_up"
        tensors[f"{'.'.join(block)}.{places[name]}.adapters.mine.{part}.{kind}"] = parameter.detach().clone()
    torch.save(tensors, path / TENSORS)
    return tensors


@pytest.mark.parametrize("m", [1, 4, 5])
def test_an_adapter_of_the_package_is_ours_number_for_number(m, tmp_path):
    model = tuned("adapter", m)
    package_folder(tmp_path, model, m + 0.5)  # the whole part of D / factor is m
    assert method_of(tmp_path)[0] == "adapter"
    load_adapter(tmp_path, again := small_model())
    assert torch.equal(again(tokens()), model(tokens())) and again.method == ("adapter", m)


@pytest.mark.parametrize("m", [1, 4, 5, 7])
def test_what_we_save_is_what_the_package_would(m, tmp_path):
    model = tuned("adapter", m)
    (tmp_path / "ours").mkdir()
    save_adapter(tmp_path / "ours", model, "base")
    wanted = package_folder(tmp_path / "theirs", model, m)
    found = torch.load(tmp_path / "ours" / TENSORS, weights_only=True)
    assert {key.replace("minillama", "mine") for key in found} == set(wanted)
    assert all(torch.equal(found[key.replace("mine", "minillama")], tensor) for key, tensor in wanted.items())
    config = json.loads((tmp_path / "ours" / CONFIG).read_text())
    assert config["name"] == "minillama" and config["hidden_size"] // config["config"]["reduction_factor"] == m
    for name in ("peft_type", "size"):  # what the package does not know
        del config[name]
    (tmp_path / "ours" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "ours" / "adapter_model.safetensors").unlink()
    load_adapter(tmp_path / "ours", again := small_model())
    assert torch.equal(again(tokens()), model(tokens()))


@pytest.mark.parametrize(("field", "value"), [
    ("is_parallel", True), ("non_linearity", "swish"), ("scaling", 4.0), ("mh_adapter", False), ("ln_before", True),
    ("original_ln_before", True), ("use_gating", True), ("phm_layer", True), ("leave_out", [0]),
    ("inv_adapter", "nice"), ("reduction_factor", {"default": 4}), ("reduction_factor", -1),
    ("residual_before_ln", False)])
def test_another_kind_of_bottleneck_is_refused_by_its_field(field, value, tmp_path):
    package_folder(tmp_path, tuned("adapter", 4), 4, **{field: value})
    fresh = small_model()
    with pytest.raises(ValueError, match=rf"{CONFIG}.*{field}"):
        load_adapter(tmp_path, fresh)
    assert not hasattr(fresh, "method")


def test_damaged_tensors_are_refused_with_their_name(tmp_path):
    tensors = package_folder(tmp_path, tuned("adapter", 4), 4)
    first = next(iter(tensors))
    other = "model.layers.0.invertible_adapters.adapters.mine.adapter_up.bias"
    for changed, said in (({first: tensors[first] * float("nan")}, "NaN"), ({first: tensors[first].long()}, "whole"),
                          ({other: torch.ones(2)}, "no tensor"), ({"lm_head.weight": torch.ones(2)}, "no tensor"),
                          ({first: tensors[first][:, :-1]}, "another base")):
        torch.save({**tensors, **changed}, tmp_path / TENSORS)
        with pytest.raises(ValueError, match=said):
            load_adapter(tmp_path, small_model())
    torch.save({key: tensors[key] for key in list(tensors)[1:]}, tmp_path / TENSORS)
    with pytest.raises(ValueError, match="another base"):
        load_adapter(tmp_path, small_model())
    (tmp_path / TENSORS).unlink()
    with pytest.raises(ValueError, match="no pytorch_adapter.bin is beside"):
        load_adapter(tmp_path, small_model())


def test_other_settings_are_not_taken_for_the_packages():
    assert [kind_of(config) for config in ({}, {"config": 3}, {"config": {}}, {"config": {"reduction_factor": 2}})] == [
        None, None, None, "ADAPTER"]


def _ours(m=4):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_what_we_save_is_what_the_package_would(m, Path(folder))


def _theirs():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_an_adapter_of_the_package_is_ours_number_for_number(4, Path(folder))


MODULE = "minillama.peft.adapters_package"
MUTANTS = [
    Mutant(MODULE, "D / (m + 0.5)", "D / m + 1", lambda: _ours(5)),
    Mutant(MODULE, '"attention.wo": "attention_adapters", "feed_forward.w2": "output_adapters"',
           '"attention.wo": "output_adapters", "feed_forward.w2": "attention_adapters"', _ours),
    Mutant(MODULE, '{"down": "adapter_down.0", "up": "adapter_up"}', '{"down": "adapter_up", "up": "adapter_down.0"}',
           _ours),
    Mutant(MODULE, "config_path) // factor)", "config_path) / factor) + 1", _theirs),
]
