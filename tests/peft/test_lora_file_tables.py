"""Tables at both ends beside an adapter (modules_to_save): both ways between minillama and peft, by stages, merged."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file
from test_lora import ALL, small_model, tokens, train_by_chance
from test_lora_file import peft_twin
from test_training_commands import SHORT, data

from minillama.checkpoint import load_model
from minillama.checkpoint.safetensors import read_safetensors, write_safetensors
from minillama.cli.training_commands import prepare
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.peft.lora_file import TABLES, load_lora, save_lora
from minillama.train.vocabulary import grow_vocabulary, train_vocabulary
from minillama.transformer import Transformer

FIXTURES = (model_folder, tokenizer_file, data)  # used here by name
BOTH = ["embed_tokens", "lm_head"]
FILE = "minillama.peft.lora_file"


def a_model(tied=False):
    torch.manual_seed(0)
    return Transformer(replace(small_model().config, tie_embeddings=tied)).eval()


def with_tables(model, words=BOTH):
    """An adapter on all linear layers, trained by chance, and so the tables named."""
    add_lora(model, LoRAConfig(rank=3, alpha=6, targets=ALL))
    train_by_chance(model)
    with torch.no_grad():
        for table in {model.get_submodule(TABLES[word]).weight for word in words}:
            table.requires_grad_().add_(torch.randn(table.shape) / 8)
    return model


@pytest.mark.parametrize(("words", "tied"), [(BOTH, False), (BOTH, True), (BOTH[:1], False), (BOTH[1:], False)])
def test_peft_loads_adapter_and_tables_bit_for_bit_to_the_same_logits(words, tied):
    """1e-5: logits of size 3, through two layers in another order of fp32 sums."""
    model = a_model(tied)
    with peft_twin(model) as (peft, theirs, folder):
        base = theirs(tokens()).logits.clone()
        save_lora(folder, with_tables(model, words))
        assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == words
        adapted = peft.PeftModel.from_pretrained(theirs, folder).eval()
        found = {name: p for name, p in adapted.named_parameters() if "modules_to_save" in name}
        assert len(found) == len(words)
        for word, table in zip(words, found.values(), strict=True):
            assert torch.equal(table, model.get_submodule(TABLES[word]).weight)
        ours, logits = model(tokens()), adapted(tokens()).logits
        assert (ours - logits).abs().max() < 1e-5 and (ours - base).abs().max() > 0.1
        again = a_model(tied)
        load_lora(folder, again)
        assert torch.equal(again(tokens()), ours)


@pytest.mark.parametrize("words", [BOTH, BOTH[:1], ["model.embed_tokens", "lm_head"]])
def test_we_load_pefts_adapter_and_tables_bit_for_bit_to_the_same_logits(words):
    model = a_model()
    with peft_twin(model) as (peft, theirs, folder):
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], modules_to_save=words,
            task_type="CAUSAL_LM")).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.normal_(std=0.3)
        adapted.save_pretrained(folder)
        load_lora(folder, model)
        assert (model(tokens()) - adapted(tokens()).logits).abs().max() < 1e-5
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                assert torch.equal(parameter, (model.output if "lm_head" in name else model.tok_embeddings).weight)


def test_loaded_tables_learn_on_and_are_saved_again():
    with tempfile.TemporaryDirectory() as folder:
        model = with_tables(a_model())
        save_lora(Path(folder, "1"), model)
        again = a_model()
        load_lora(Path(folder, "1"), again)
        assert again.tok_embeddings.weight.requires_grad and again.output.weight.requires_grad
        save_lora(Path(folder, "2"), again)
        first, second = (read_safetensors(Path(folder, name, "adapter_model.safetensors")) for name in "12")
        assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_tables_that_do_not_fit_are_refused_and_nothing_is_half_done():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_lora(folder, with_tables(a_model()))
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = read_safetensors(folder / "adapter_model.safetensors")
        head = "base_model.model.lm_head.weight"

        def refuse(match, model=None, words=BOTH, tensors=tensors):
            (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": words}))
            write_safetensors(folder / "adapter_model.safetensors", tensors)
            model = model or a_model()
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with pytest.raises(ValueError, match=match):
                load_lora(folder, model)
            assert not lora_layers(model) and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())

        grown = a_model()
        grow_vocabulary(grown, grown.config.vocab_size + 3)
        refuse("another base", grown)
        refuse("another base", tensors={name: t for name, t in tensors.items() if name != head})
        refuse("whole numbers", tensors={**tensors, head: tensors[head].int()})
        refuse("norm", words=[*BOTH, "norm"])
        refuse("modules_to_save", words="lm_head")
        refuse("modules_to_save", words=[["lm_head"]])
        refuse("no matrix of a LoRA", words=None)
        refuse("two tables are one", a_model(tied=True))
        refuse("two tables are one", a_model(tied=True), ["lm_head"],
               {name: t for name, t in tensors.items() if "embed" not in name})


def staged(method, model_folder, data, tmp_path, capsys):
    """Both stages on the command line -> the folder of the second's adapter, made on tmp_path / "1"."""
    common = ("--data", data, *SHORT)
    first = ("sft", "--model", model_folder, "--out", tmp_path / "1", "--method", "embeddings", *common)
    assert run(capsys, *first)[0] == 0
    code, said, err = run(capsys, "sft", "--model", tmp_path / "1", "--out", tmp_path / "2", "--method", method,
                          "--modules-to-save", *BOTH, *common)
    assert (code, said) == (0, "") and "held-out loss" in err
    return tmp_path / "2"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_both_stages_run_from_the_command_line_and_chat_takes_the_second(method, model_folder, data, tmp_path, capsys):
    adapter = staged(method, model_folder, data, tmp_path, capsys)
    base, tuned = load_model(tmp_path / "1")[0], load_model(tmp_path / "1")[0]
    load_lora(adapter, tuned)
    for table in ("tok_embeddings", "output"):
        assert not torch.equal(base.get_submodule(table).weight, tuned.get_submodule(table).weight)
    assert any(layer.B.any() for layer in lora_layers(tuned).values())
    bits = ["--load-4bit"] if method == "qlora" else []
    assert run(capsys, "chat", "--model", tmp_path / "1", "--adapter", adapter, *bits, "--max-new-tokens", "3",
               stdin="Count to 3.\n")[0] == 0


def test_merge_writes_adapter_and_tables_into_the_model(model_folder, data, tmp_path, capsys):
    adapter, out = staged("lora", model_folder, data, tmp_path, capsys), tmp_path / "whole"
    assert run(capsys, "merge", "--model", tmp_path / "1", "--adapter", adapter, "--out", out)[0] == 0
    beside, merged = load_model(tmp_path / "1")[0].eval(), load_model(out)[0].eval()
    load_lora(adapter, beside)
    for table in ("tok_embeddings", "output"):
        assert torch.equal(beside.get_submodule(table).weight, merged.get_submodule(table).weight)
    tokens_BT = torch.arange(1, 12)[None]
    assert (merged(tokens_BT) - beside(tokens_BT)).abs().max() < 1e-5


def test_tables_that_learn_already_are_refused(model_folder, data, tmp_path, capsys):
    code, _, err = run(capsys, "sft", "--model", model_folder, "--data", data, "--out", tmp_path / "x", *SHORT,
                       "--method", "full", "--modules-to-save", "lm_head")
    assert code == 2 and not (tmp_path / "x").exists()
    assert "--modules-to-save goes with --method lora" in err.splitlines()[-1]
    with pytest.raises(ValueError, match="output cannot learn whole and by an adapter"):
        prepare(a_model(), arguments(targets=["output"]))


def arguments(**changes):
    return SimpleNamespace(**{"method": "lora", "seed": 0, "device": "cpu", "rank": 3, "alpha": 6, "dropout": 0.0,
                              "targets": ALL, "modules_to_save": BOTH, **changes})


def test_the_command_trains_what_the_second_stage_names():
    """`--modules-to-save embed_tokens lm_head` is `train_vocabulary(model, alone=False)`."""
    model, wanted = a_model(), a_model()
    prepare(model, arguments())
    add_lora(wanted, LoRAConfig(3, 6, targets=ALL))
    train_vocabulary(wanted, alone=False)
    learned = [{name for name, p in each.named_parameters() if p.requires_grad} for each in (model, wanted)]
    assert learned[0] == learned[1] and "output.weight" in learned[0]


def ours_to_peft():
    test_peft_loads_adapter_and_tables_bit_for_bit_to_the_same_logits(BOTH, False)


def refusals():
    test_tables_that_do_not_fit_are_refused_and_nothing_is_half_done()


MUTANTS = [
    Mutant(FILE, '"modules_to_save": tables or None', '"modules_to_save": None', ours_to_peft),
    Mutant(FILE, '.weight.requires_grad_().copy_(tensor)', '.weight.copy_(tensor)',
           test_loaded_tables_learn_on_and_are_saved_again),
    Mutant(FILE, '.weight.requires_grad_().copy_(tensor)', '.weight.requires_grad_()',
           lambda: test_we_load_pefts_adapter_and_tables_bit_for_bit_to_the_same_logits(BOTH)),
    Mutant(FILE, "tensor is None or tensor.shape != wanted", "tensor is None", refusals),
    Mutant(FILE, "if ends and model.config.tie_embeddings and", "if False and", refusals),
    Mutant(FILE, "len(ends) == 2 and torch.equal(*ends)", "len(ends) == 2", refusals),
    Mutant("minillama.cli.training_commands", "model.get_submodule(table).weight.requires_grad_()", "pass",
           test_the_command_trains_what_the_second_stage_names),
]
