"""Adapters and the base they were learned over: recorded, loaded again, warned of, merged into the right weights."""

import json
import re

import pytest
import torch
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file
from test_training_commands import SHORT, data

from minillama.checkpoint import load_model
from minillama.checkpoint.quantized import settings_to_json
from minillama.generate import generate_tokens
from minillama.parity.rounding import gamma
from minillama.peft.lora_file import learned_over, load_lora
from minillama.quant.int8 import Int8Linear
from minillama.quant.quantize_linears import dequantize_linears, quantization_of, quantize_linears
from minillama.sampling import Sampling

FIXTURES = (model_folder, tokenizer_file, data)  # of other tests, used here by name
IDS = torch.arange(1, 40)[None]


@pytest.fixture
def sft(data, tmp_path, capsys):
    """sft(model, *flags) -> (folder of the adapter, stderr); a rate at which 12 steps move the base's predictions."""
    def tuned(model, *flags):
        out = tmp_path / f"adapter{len(list(tmp_path.iterdir()))}"
        code, _, err = run(capsys, "sft", "--model", model, "--data", data, "--out", out, *SHORT, "--steps", "12",
                           "--max-lr", "0.03", *flags)
        assert code == 0, err
        return out, err

    return tuned


@torch.no_grad()
def learned(folder, adapter, kind, **settings):
    model = load_model(folder, "cpu", None, kind, **settings)[0].eval()
    load_lora(adapter, model)
    return model


def off(one, other):
    return (one(IDS) - other(IDS)).abs().max().item()


@torch.no_grad()
def rounded_once_more(model):
    """How far logits may move where every weight of a block is rounded once more and each product, of at most F terms,
    is summed in another order: 7 products a block one behind the other, each with gamma(F) of what it gives."""
    config = model.config
    return 7 * config.n_layers * gamma(config.hidden_dim) * model(IDS).abs().max().item()


@pytest.mark.parametrize(("flag", "kind"), [("--load-4bit", "nf4"), ("--load-8bit", "int8"), (None, None)])
def test_chat_loads_the_base_that_an_adapter_was_learned_over(flag, kind, model_folder, sft, capsys):
    adapter, err = sft(model_folder, *([flag] if flag else []))
    assert (f"--adapter {adapter} {flag} --template" if flag else f"--adapter {adapter} --template") in err
    name, base = learned_over(adapter)
    model = load_model(model_folder, "cpu", None, kind)[0]
    assert name == str(model_folder) and base == quantization_of(model) and (base and base["kind"]) == kind
    words = ("chat", "--model", model_folder, "--adapter", adapter, "--max-new-tokens", "8", "--temperature", "0")
    _, plain, err = run(capsys, *words, stdin="Count to 3.\n")
    _, same, _ = run(capsys, *words, *([flag] if flag else []), stdin="Count to 3.\n")
    said = f"was learned over {model_folder} in {kind}: {model_folder} is loaded so"
    assert plain == same and (said in err) == bool(kind)
    assert "expect other answers" not in err
    other = "--load-8bit" if kind == "nf4" else "--load-4bit"
    code, _, err = run(capsys, *words, other, stdin="Count to 3.\n")
    assert code == 0 and "expect other answers" in err and ("not quantized" if kind is None else f"kind {kind}") in err


@pytest.mark.parametrize("flag", ["--no-fit-scales", "--fit-scales"])
def test_the_settings_of_a_quantized_folder_and_its_very_bits_count(flag, model_folder, sft, tmp_path, capsys):
    few = tmp_path / "few"
    assert run(capsys, "quantize", model_folder, few, "--nf4", "--block-size", "32", flag)[0] == 0
    adapter, err = sft(few)
    assert "--load" not in err and learned_over(adapter)[1]["block_size"] == 32
    for model, same in ((few, True), (model_folder, flag == "--no-fit-scales")):
        code, _, err = run(capsys, "chat", "--model", model, "--adapter", adapter, "--max-new-tokens", "2", stdin="a\n")
        assert code == 0 and ("expect other answers" not in err) == same, err
    assert run(capsys, "merge", "--model", few, "--adapter", adapter, "--out", tmp_path / "whole")[0] == 0
    merged, wanted = load_model(tmp_path / "whole")[0].eval(), learned(few, adapter, None)
    assert off(merged, wanted) < rounded_once_more(wanted)


def test_an_adapter_over_nf4_is_merged_into_what_it_was_learned_over_or_the_difference_is_told(
        model_folder, sft, tmp_path, capsys):
    adapter, _ = sft(model_folder, "--method", "qlora")
    wanted, texts = learned(model_folder, adapter, "nf4"), {}
    for into in ((), ("--into", "dequantized"), ("--into", "original")):
        out = tmp_path / f"merged{len(texts)}"
        words = ("merge", "--model", model_folder, "--adapter", adapter, "--out", out)
        code, _, texts[into] = run(capsys, *words, *into)
        same = off(load_model(out)[0].eval(), wanted) < rounded_once_more(wanted)
        assert code == 0 and same == (into != ("--into", "original"))
    assert "in nf4" in texts[()] and "predictions move" not in texts[()]
    told = float(re.search(r"learned over kind nf4, .* move by ([\d.]+) nats a token", texts["--into", "original"])[1])
    begin = [[load_model(model_folder)[1].bos_id]] * 8
    ids = torch.tensor([*zip(*generate_tokens(wanted, begin, 32, Sampling()), strict=True)])
    ids = torch.cat([torch.tensor(begin), ids], 1)
    with torch.no_grad():
        ours, theirs = (model(ids).double().log_softmax(-1).flatten(0, 1) for model in
                        (wanted, load_model(tmp_path / "merged2")[0].eval()))
    mean = torch.nn.functional.kl_div(theirs, ours, reduction="batchmean", log_target=True).item()
    assert mean > 1e-4 and told == pytest.approx(mean, rel=0.01, abs=1e-4)  # four digits are printed


def test_an_adapter_over_plain_weights_is_merged_into_them_without_a_word(model_folder, sft, tmp_path, capsys):
    adapter, _ = sft(model_folder)
    words = ("merge", "--model", model_folder, "--adapter", adapter, "--out", tmp_path / "merged")
    code, _, err = run(capsys, *words, "--into", "dequantized")
    assert code == 2 and "is quantized: leave --into out" in err and not (tmp_path / "merged").exists()
    code, _, err = run(capsys, *words)
    assert code == 0 and "learned over" not in err
    (adapter / "adapter_base.json").unlink()  # as peft writes it
    assert learned_over(adapter) is None
    code, _, err = run(capsys, "chat", "--model", model_folder, "--adapter", adapter, "--load-4bit", stdin="")
    assert code == 0 and "learned over" not in err


@pytest.mark.parametrize("text", ["{", "[]", '{"quantization": 5}', '{"quantization": {"kind": "nf5"}}'])
def test_a_damaged_record_of_the_base_is_named(text, tmp_path):
    (tmp_path / "adapter_base.json").write_text(text)
    with pytest.raises(ValueError, match="adapter_base.json|params.json"):
        learned_over(tmp_path)


def test_the_record_keeps_a_threshold_without_bound(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 6, bias=False))
    quantize_linears(model, kind="int8", threshold=float("inf"))
    text = json.dumps({"model": "x", "quantization": settings_to_json(quantization_of(model))}, allow_nan=False)
    (tmp_path / "adapter_base.json").write_text(text)
    assert learned_over(tmp_path) == ("x", quantization_of(model))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_dequantized_layers_hold_the_weights_that_were_computed_with(kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 6, bias=False), torch.nn.Linear(6, 64, bias=False))
    quantize_linears(model, kind=kind, **({"threshold": 1e-9} if kind == "int8" else {}))
    x, stored = torch.randn(5, 64), [layer.dequantize() for layer in model]
    wanted = model(x)  # int8: each column of x is an outlier, so nothing of x is rounded
    dequantize_linears(model, torch.float32)
    assert not any(isinstance(layer, Int8Linear) for layer in model) and quantization_of(model) is None
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(model, stored, strict=True))
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


MUTANTS = [
    Mutant("minillama.quant.quantize_linears", "layer.dequantize(dtype)", "2 * layer.dequantize(dtype)",
           lambda: test_dequantized_layers_hold_the_weights_that_were_computed_with("nf4")),
]
