"""Laws of the terms of memory: counted on real models and optimizers, and held against what articles say."""

import memory_cost
import pytest
import torch
from memory_cost import METHODS, alpaca, articles, factored_state, lora_numbers, sentence, terms
from mutants import Mutant

from minillama.config import PRESETS, ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.transformer import Transformer

ODD = ModelConfig(20, 3, 2, 37, n_kv_heads=1, hidden_dim=28, max_seq_len=16)
RESIDUALS = {"fp32: 4": -0.04, "fp16: 2": -0.04, "int8: 1": 0.0, "4 bits": 0.10, "(2 + 8)": -0.04, "from": -0.05,
             "to": -0.07, "served in fp16": -0.01, "served in int8": 0.07, "13B on a CPU": -0.08, "7B on a CPU": -0.03,
             "above 780": 0.0, "exact copy": 0.0, "below 48": -0.05}


def test_the_adapter_is_as_large_as_the_library_makes_it():
    for rank in (1, 3):
        model = Transformer(ODD)
        add_lora(model, LoRAConfig(rank=rank, targets=("wq", "wk", "wv", "wo", "w1", "w2", "w3")))
        assert lora_numbers(ODD, rank) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("optimizer", "make"), [
    ("adamw", lambda ps: torch.optim.AdamW(ps)), ("adafactor", lambda ps: torch.optim.Adafactor(ps)),
    ("sgd", lambda ps: torch.optim.SGD(ps))])
def test_the_state_of_an_optimizer_is_as_large_as_pytorchs(optimizer, make):
    model = Transformer(ODD)
    made = make(model.parameters())
    model(torch.arange(5)[None]).sum().backward()
    made.step()
    state = [value for held in made.state.values() for name, value in held.items() if name != "step"]
    counted = sum(value.nbytes for value in state if torch.is_tensor(value))
    assert terms(ODD, "full-fp32", optimizer=optimizer)["optimizer"] == counted
    assert optimizer != "adafactor" or factored_state(ODD) == counted


def test_weights_and_gradients_are_bytes_times_numbers():
    N = ODD.n_parameters()
    found = terms(ODD, "full")
    assert found["weights"] == found["gradients"] == 2 * N and found["exact copy"] == 4 * N
    assert found["optimizer"] == 8 * N
    assert "exact copy" not in terms(ODD, "full-half") and set(terms(ODD, "serve")) == {"weights", "KV cache"}


def test_activations_grow_with_the_tokens_scores_with_their_square():
    short, long = (terms(ODD, "full", tokens=tokens, flash=False) for tokens in (64, 256))
    assert long["activations"] == 4 * short["activations"]
    assert long["attention scores"] == 16 * short["attention scores"] == 2 * 3 * 2 * 256 * 256
    again = terms(ODD, "full", tokens=256, flash=False, recompute=True)
    assert again["attention scores"] * ODD.n_layers == long["attention scores"]
    assert again["activations"] < long["activations"] and "attention scores" not in terms(ODD, "full")


def test_checkpointing_and_flash_attention_pay_for_four_times_the_length(capsys):
    rows = {row[:3]: row[3] for row in memory_cost.lengths()}
    assert len(rows) == 8
    for _, recompute, flash in rows:
        assert rows[2048, recompute, flash] > 3.999 * rows[512, recompute, flash]
    assert rows[2048, True, True] < rows[512, False, False]  # both together: four times the text in less
    for tokens in (512, 2048):
        assert rows[tokens, True, True] < rows[tokens, True, False] < rows[tokens, False, True]
        assert rows[tokens, False, True] < rows[tokens, False, False]
    memory_cost.main(["--articles"])
    assert "| 2,048 | yes | yes |" in capsys.readouterr().out


def test_every_figure_of_the_articles_has_its_residual():
    rows = articles()
    assert len(rows) == len(RESIDUALS)
    for (what, said, given, off, remark), (words, residual) in zip(rows, RESIDUALS.items(), strict=True):
        assert words in what and given == pytest.approx(said * (1 + off)) and remark
        assert off == pytest.approx(residual, abs=0.015), what
    honest = [remark for what, *_, remark in rows if "CPU" in what]
    assert all("no honest sum" in remark for remark in honest) and len(honest) == 2


def test_what_alpaca_cost_is_possible():
    found = alpaca()
    assert found["FLOPs, at most"] == pytest.approx(3.2e18, rel=0.02)
    assert 0.05 < found["share of the peak, at most"] < 0.5  # a run by hand reaches less than half of the peak
    assert found["dollars an hour"] == pytest.approx(4.17, abs=0.01) and 400 < found["tokens an example"] < 500


def test_the_sentence_says_whether_it_fits_what_is_most_and_what_to_change(capsys):
    found = terms(PRESETS["llama_65b"], "qlora")
    words = sentence("llama_65b", "qlora", found, 24e9)
    assert "does not fit into the 24.0 GB" in words and "the most is activations" in words and "--recompute" in words
    fits = sentence("llama_7b", "serve-nf4", terms(PRESETS["llama_7b"], "serve-nf4"), 8e9)
    assert "fits into the 8.0 GB" in fits and "to need less" not in fits
    memory_cost.main(["llama_65b", "--method", "qlora", "--tokens", "2048", "--free-gb", "48"])
    assert words.split(" and ")[0] in capsys.readouterr().out
    assert "not known" in sentence("llama_7b", "serve", terms(PRESETS["llama_7b"], "serve"), None)


@pytest.mark.parametrize("arguments", [["--method", "qlora"], ["llama_7b", "--method", "none"],
                                       ["llama_7b", "--method", "qlora", "--tokens", "0"], ["llama_8b"]])
def test_what_is_not_there_is_refused_in_a_line(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        memory_cost.main(arguments)
    assert error.value.code == 2 and capsys.readouterr().err


def test_every_method_and_preset_has_a_sum():
    for config in PRESETS.values():
        for method in METHODS:
            assert sum(terms(config, method).values()) > 0


MUTANTS = [
    Mutant("memory_cost", "rank * (2 * (D + q) + 2 * (D + k)", "rank * (2 * (D + q) + 2 * (D + q)",
           test_the_adapter_is_as_large_as_the_library_makes_it),
    Mutant("memory_cost", "config.n_heads * rows * tokens * tokens", "config.n_heads * rows * tokens",
           test_activations_grow_with_the_tokens_scores_with_their_square),
    Mutant("memory_cost", "found[\"exact copy\"] = kind.master", "found[\"exact copy\"] = 2",
           test_weights_and_gradients_are_bytes_times_numbers),
]
