"""Laws of `sft --method`: what each writes, `generate`, `chat` and `merge` read, also by the adapter's folder alone."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from test_command_line import model_folder, run, tokenizer_file
from test_training_commands import SHORT, data

from minillama.checkpoint import load_model
from minillama.cli.model_arguments import load_from_args
from minillama.cli.training_commands import READ_BY
from minillama.peft.adapter_file import load_adapter
from minillama.peft.methods import METHODS

FIXTURES = (model_folder, tokenizer_file, data)
GENERATE = ("--prompt", "Count", "--temperature", "0", "--max-new-tokens", "6")
TYPES = {"prefix": "PREFIX_TUNING", "p-tuning-v2": "PREFIX_TUNING", "prompt": "PROMPT_TUNING", "p-tuning": "P_TUNING",
         "ia3": "IA3", "rslora": "LORA", "dora": "LORA"}


def sft(capsys, model, data, out, *words):
    code, said, err = run(capsys, "sft", "--model", model, "--data", data, "--out", out, *SHORT, *words)
    assert (code, said) == (0, ""), err
    return err


@pytest.mark.parametrize("name", [*METHODS, "p-tuning-v2", "rslora", "dora"])
def test_what_sft_learns_is_generated_with_and_merged_where_it_can_be(name, model_folder, data, tmp_path, capsys):
    out, whole = tmp_path / "out", tmp_path / "whole"
    sft(capsys, model_folder, data, out, "--method", name, "--max-lr", "0.3")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == TYPES.get(name, name.upper())
    assert (config.get("use_rslora", False), config.get("use_dora", False)) == (name == "rslora", name == "dora")
    base, plain = load_model(model_folder)[0].eval(), load_model(model_folder)[0].eval()
    load_adapter(out, base)
    tokens_BT = torch.arange(1, 12)[None]
    assert (base.eval()(tokens_BT) - plain(tokens_BT)).abs().max() > 1e-4
    beside = run(capsys, "generate", "--model", model_folder, "--adapter", out, *GENERATE)
    alone = run(capsys, "generate", "--model", out, *GENERATE)
    assert beside[:2] == alone[:2] and beside[0] == 0 and beside[1].startswith("Count")
    code, _, err = run(capsys, "merge", "--model", model_folder, "--adapter", out, "--out", whole)
    if METHODS.get(name.removesuffix("-v2"), (None, ""))[1]:
        assert code == 2 and len(err.splitlines()) == 1 and "cannot be merged: " in err and not whole.exists()
    else:
        assert code == 0
        assert run(capsys, "generate", "--model", whole, *GENERATE)[:2] == beside[:2]


@pytest.mark.parametrize(("name", "flags"), [
    ("prefix", "--load-4bit --encoder-width 5"), ("prompt", "--load-8bit --start-text Count"),
    ("p-tuning", "--load-4bit --lstm"), ("ia3", "--load-8bit"), ("dora", "--load-4bit"),
    ("adapter", "--load-8bit --bottleneck 3"), ("ladder", "--load-4bit --gradient-checkpointing"),
    ("bitfit", "--load-8bit --pack-length 48")])
def test_a_quantized_base_is_learned_over_and_found_again(name, flags, model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    sft(capsys, model_folder, data, out, "--method", name, *flags.split())
    code, said, err = run(capsys, "chat", "--model", out, "--max-new-tokens", "3", stdin="Count to 3.\n")
    assert code == 0 and "is loaded so" in err and "expect other answers" not in err
    if name in ("ia3", "dora"):
        code, _, err = run(capsys, "sft", "--model", out, "--data", data, "--out", tmp_path / "next", *SHORT)
        assert code == 2 and "learned over a quantized base" in err.splitlines()[-1] and "`merge`" in err


def test_a_second_adapter_is_learned_over_the_first_merged(model_folder, data, tmp_path, capsys):
    first, second, whole = tmp_path / "first", tmp_path / "second", tmp_path / "whole"
    sft(capsys, model_folder, data, first, "--method", "ia3", "--max-lr", "0.3")
    sft(capsys, first, data, second, "--max-lr", "0.3")
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)
    assert run(capsys, "merge", "--model", model_folder, "--adapter", first, "--out", whole)[0] == 0
    chained = run(capsys, "generate", "--model", second, *GENERATE)
    stepwise = run(capsys, "generate", "--model", whole, "--adapter", second, *GENERATE)
    assert chained[:2] == stepwise[:2] and chained[0] == 0


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_model_with_its_adapter_merged_in_can_learn_as_a_whole(name, model_folder, data, tmp_path, capsys):
    """As `reward` and `ppo` do with --model of an adapter's folder."""
    sft(capsys, model_folder, data, tmp_path / "out", "--method", name, "--max-lr", "0.3")
    given = Namespace(model=tmp_path / "out", dtype=None, device="cpu")
    assert all(parameter.requires_grad for parameter in load_from_args(given, whole=True)[0].parameters())


@pytest.mark.parametrize(("words", "said"), [
    ("--method ia3 --modules-to-save lm_head", "goes with --method lora"),
    ("--method bitfit --start-text x", "--start-text goes with --method prefix or prompt"),
    ("--method lora --virtual-tokens 4", "--virtual-tokens goes with --method prefix or prompt or p-tuning"),
    ("--method p-tuning-v2 --encoder-width 4", "--encoder-width goes with --method prefix or p-tuning"),
    ("--method prefix --lstm", "--lstm goes with --method p-tuning, not with prefix"),
    ("--method ia3 --rank 4", "--rank goes with --method lora or rslora or dora or qlora, not with ia3"),
    ("--method full --bottleneck 4", "--bottleneck goes with --method adapter or parallel-adapter or ladder"),
    ("--method prefix --start-text x --encoder-width 3", "encoder cannot begin as a text"),
    ("--method prompt --virtual-tokens 0", "--virtual-tokens is 0"), ("--method oft", "invalid choice: 'oft'")])
def test_what_does_not_fit_the_method_is_refused_first(words, said, model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    code, _, err = run(capsys, "sft", "--model", model_folder, "--data", data, "--out", out, *SHORT, *words.split())
    assert code == 2 and said in err.splitlines()[-1] and not out.exists()


def test_a_flag_that_stands_at_its_default_goes_with_every_method():
    written = (Path(__file__).parent / "flag_defaults.txt").read_text(encoding="utf-8").splitlines()
    assert all(f"sft --{name.replace('_', '-')} = {default!r}" in written for name, (default, _) in READ_BY.items())


def test_an_adapters_folder_names_its_base_or_says_what_to_give(model_folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    sft(capsys, model_folder, data, out, "--method", "prompt")
    code, _, err = run(capsys, "sft", "--model", out, "--data", data, "--out", tmp_path / "next", *SHORT)
    assert code == 2 and "prompt cannot be merged" in err.splitlines()[-1]
    code, _, err = run(capsys, "quantize", out, tmp_path / "small", "--nf4")
    assert code == 2 and "is an adapter" in err and "merge" in err
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nowhere"}))
    code, _, err = run(capsys, "generate", "--model", out, *GENERATE)
    assert code == 2 and "its base 'nowhere' is not here" in err and "--adapter" in err
