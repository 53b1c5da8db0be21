"""Checkpoints that others quantized get one line that says so, from the settings or from the tensors alone."""

import json

import pytest
import torch
from checkpoints import in_a_folder, model_of
from mutants import Mutant

from minillama.checkpoint import load_model, open_weights, save_model
from minillama.checkpoint.foreign_quantization import refuse_quantized
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.checkpoint.weights import from_model
from minillama.config import ModelConfig

CONFIG = ModelConfig(dim=24, n_layers=1, n_heads=3, vocab_size=31, hidden_dim=40, max_seq_len=16)
UP = "model.layers.0.mlp.up_proj."
INT, BYTE, FP8 = (torch.zeros(3, 3, dtype=dtype) for dtype in (torch.int32, torch.uint8, torch.float8_e4m3fn))
SCALE = torch.ones(3)


@pytest.mark.parametrize(("entry", "words"), [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq .bits 4"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq .bits 4"),
    ({"quantization_config": {"load_in_8bit": True, "load_in_4bit": False}}, "bitsandbytes .load_in_8bit True"),
    ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "fp8 .fmt e4m3"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
    ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "modelopt .quant_algo NVFP4"),
    ({"compression_config": {"format": "pack-quantized"}}, "compressed-tensors .format pack-quantized"),
    ({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, "MLX .bits 4"),
    ({"quantization_config": {"quant_method": ["odd\n"]}}, "odd"), ({"quantization_config": 8}, "8, as")])
def test_an_entry_of_the_settings_is_told_before_any_tensor_is_read(entry, words, tmp_path):
    write_huggingface(tmp_path, from_model(model_of(CONFIG)))
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | entry))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"quantized by .*{words}.* take the original") as refused:
        open_weights(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_entry_that_is_empty_or_switched_off_is_none():
    for entry in ({}, {"quantization_config": None}, {"quantization_config": {}},
                  {"quantization_config": {"quant_method": "b", "load_in_4bit": False, "load_in_8bit": False}}):
        refuse_quantized("config.json", entry, {})


@pytest.mark.parametrize(("extra", "word"), [
    ({UP + "qweight": INT, UP + "qzeros": INT, UP + "scales": SCALE}, "GPTQ or AWQ"),
    ({UP + "weight": BYTE, UP + "weight.absmax": SCALE, UP + "weight.quant_map": SCALE}, "bitsandbytes"),
    ({UP + "weight": BYTE.to(torch.int8), UP + "SCB": SCALE}, "bitsandbytes"),
    ({UP + "weight": FP8}, "float8_e4m3fn"), ({UP + "weight": FP8, UP + "weight_scale_inv": SCALE}, "FP8"),
    ({UP + "weight": BYTE, UP + "weight_scale": FP8, UP + "weight_scale_2": SCALE}, "NVFP4"),
    ({UP + "weight_blocks": BYTE, UP + "weight_scales": BYTE}, "MXFP4"),
    ({UP + "weight_packed": INT, UP + "weight_scale": SCALE}, "compressed-tensors"),
    ({UP + "weight": BYTE, UP + "weight_scales": SCALE}, "EETQ"), ({UP + "W_q": BYTE, UP + "scale": SCALE}, "HQQ"),
    ({UP + "weight": INT, UP + "scales": SCALE, UP + "biases": SCALE}, "MLX"), ({UP + "weight": BYTE}, "uint8")])
def test_tensors_of_a_quantized_model_are_told_without_an_entry(extra, word, tmp_path):
    write_huggingface(tmp_path, from_model(model_of(CONFIG)))
    path = tmp_path / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in read_safetensors(path).items() if name != UP + "weight"}
    write_safetensors(path, state | extra, {"format": "pt"})
    with pytest.raises(ValueError, match=f"quantized by {word}"):
        open_weights(tmp_path)


def test_no_tensor_of_a_plain_model_is_taken_for_a_quantized_one():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        names = ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight", UP + "weight",
                 *model_of(CONFIG).state_dict()]
        refuse_quantized("x", {}, dict.fromkeys(names, torch.ones(2, dtype=dtype)))


def test_metas_own_quantized_folders_are_told(tmp_path):
    save_model(tmp_path, model_of(CONFIG))
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(params | {"quantization_args": {"scheme": "8da4w"}}))
    with pytest.raises(ValueError, match="quantized by Meta .scheme 8da4w"):
        open_weights(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(params))
    state = model_of(CONFIG).state_dict()
    state["layers.0.feed_forward.w1.weight"] = state["layers.0.feed_forward.w1.weight"].to(torch.float8_e4m3fn)
    torch.save(state, tmp_path / "consolidated.00.pth")
    with pytest.raises(ValueError, match="quantized by float8"):
        load_model(tmp_path)


def test_dtypes_that_torch_lacks_are_told(tmp_path):
    write_huggingface(tmp_path, from_model(model_of(CONFIG)))
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content.replace(b'"F32"', b'"F4" ', 1))
    with pytest.raises(ValueError, match="has dtype 'F4'.*quantized"):
        open_weights(tmp_path)


FOREIGN = "minillama.checkpoint.foreign_quantization"
MUTANTS = [
    Mutant(FOREIGN, 'f"{ending}$"', 'f"^{ending}$"', lambda: in_a_folder(lambda folder: (
        test_tensors_of_a_quantized_model_are_told_without_an_entry({UP + "qweight": SCALE}, "GPTQ", folder)))),
    Mutant(FOREIGN, 'is given.get("load_in_4bit") is False', "is True",
           test_an_entry_that_is_empty_or_switched_off_is_none),
]
