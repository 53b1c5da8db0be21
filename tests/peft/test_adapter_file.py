"""Folders of every method: there and back, and damaged or foreign ones refused with nothing half done."""

import json

import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant
from tuned_models import small_model, tokens, tuned

from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.peft.adapter_file import load_adapter, save_adapter
from minillama.peft.methods import METHODS

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_adapter_loads_to_identical_logits_and_saves_to_the_same_bytes(name, tmp_path):
    model = tuned(name)
    save_adapter(tmp_path, model, "base")
    load_adapter(tmp_path, again := small_model())
    assert torch.allclose(again(tokens()), model(tokens()), rtol=0, atol=1e-6)
    (tmp_path / "again").mkdir()
    save_adapter(tmp_path / "again", again, "base")
    for file in (CONFIG, TENSORS):
        if (name, file) != ("p-tuning", CONFIG):  # a prompt, without its encoder
            assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"] == "base"


def test_the_file_of_a_text_holds_as_many_tokens_as_the_text(tmp_path):
    save_adapter(tmp_path, tuned("prompt", 8, ids=[3, 60, 7]))
    assert json.loads((tmp_path / CONFIG).read_text())["num_virtual_tokens"] == 3
    load_adapter(tmp_path, small_model())


@pytest.mark.parametrize("name", METHODS)
def test_damaged_or_foreign_files_are_refused_and_the_model_stays_as_it_was(name, tmp_path):
    save_adapter(tmp_path, tuned(name))
    config = json.loads((tmp_path / CONFIG).read_text())
    tensors = {key: tensor.clone() for key, tensor in read_safetensors(tmp_path / TENSORS).items()}
    first = next(iter(tensors))

    def refuse(match, config=config, tensors=tensors):
        (tmp_path / CONFIG).write_text(json.dumps(config))
        write_safetensors(tmp_path / TENSORS, tensors)
        fresh = small_model()
        with pytest.raises(ValueError, match=match):
            load_adapter(tmp_path, fresh)
        assert fresh.virtual_tokens is None and set(fresh.state_dict()) == set(small_model().state_dict())

    refuse("peft_type", {**config, "peft_type": "OFT"})
    refuse("never_heard_of", {**config, "never_heard_of": 3})
    refuse("another base", tensors={**tensors, first: tensors[first][..., None]})
    refuse("another base", tensors={**tensors, "x": torch.ones(2)})
    for broken in (float("nan"), float("-inf")):
        refuse("holds NaN, an infinite number or whole .*again", tensors={**tensors, first: tensors[first] + broken})
    refuse("whole numbers: .*damaged", tensors={**tensors, first: tensors[first].long()})
    if "size" in config and name != "bitfit":
        refuse("another base", {**config, "size": 10**9})  # which no memory holds, not even in planning
    refuse("another base|no file|holds", tensors={key: t for key, t in tensors.items() if key != first} or {
        "x": torch.ones(1)})
    if name == "ia3":
        refuse("feedforward_modules", {**config, "feedforward_modules": ["k_proj"]})


@pytest.mark.parametrize(("field", "value", "has"), [("num_layers", 3, 2), ("token_dim", 48, 32)])
def test_a_config_that_tells_another_shape_is_refused_by_its_name(field, value, has, tmp_path):
    """peft writes them; the model's own, and 16 for the width of keys in groups, are taken."""
    save_adapter(tmp_path, tuned("prefix"))
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=f"{field} is {value}, this model has {has}: it was made for another base"):
        load_adapter(tmp_path, small_model())
    for width in (32, 16):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "num_layers": 2, "token_dim": width}))
        load_adapter(tmp_path, small_model())


refusals = test_damaged_or_foreign_files_are_refused_and_the_model_stays_as_it_was
MUTANTS = [
    Mutant("minillama.peft.lora_file", "t.is_floating_point() and ", "",
           lambda: in_a_folder(lambda folder: refusals("ia3", folder))),
    Mutant("minillama.peft.adapter_file", "config_path, 1), 2**16)", "config_path, 1), 2**60)",
           lambda: in_a_folder(lambda folder: refusals("ladder", folder))),
    Mutant("minillama.peft.lora_file", "and t.float().isfinite().all()", "",
           lambda: in_a_folder(lambda folder: refusals("ia3", folder))),
    Mutant("minillama.peft.adapter_file", "    if found != wanted:", "    if False:",
           lambda: in_a_folder(lambda folder: refusals("bitfit", folder))),
    Mutant("minillama.peft.adapter_file", "check_known(config, config_path, f\"adapter_config.json of {form}\")",
           "pass",
           lambda: in_a_folder(lambda folder: refusals("prompt", folder))),
    Mutant("minillama.peft.adapter_file", "not in (None, *fitting):", "in ():", lambda: in_a_folder(
        lambda folder: test_a_config_that_tells_another_shape_is_refused_by_its_name("num_layers", 3, 2, folder))),
]
