"""Laws of `info`: what it says about this machine is what the libraries themselves say."""

import json
import re

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint import open_weights, save_model
from minillama.checkpoint.huggingface import write_huggingface
from minillama.checkpoint.weights import from_model
from minillama.cli import info
from minillama.cli.command_line import main
from minillama.cli.info import describe, devices
from minillama.config import PRESETS, ModelConfig
from minillama.kernels import built_backends
from minillama.system.memory import GIB, available_bytes, weights_bytes
from minillama.tokenizer import default_backend, train_bpe
from minillama.transformer import Transformer


def test_versions_backends_and_threads_are_the_real_ones():
    text = describe()
    assert torch.__version__ in text and f"threads: {torch.get_num_threads()}" in text
    assert f"tokenizer backend: {default_backend()}" in text
    assert f"kernel backends built: {', '.join(built_backends())}" in text
    assert devices()[0] == "cpu" and any("cuda" in name for name in devices()) == torch.cuda.is_available()


def test_a_star_stands_where_a_size_fits_and_nowhere_else():
    free, text = available_bytes(), describe()
    for name in [name for name in PRESETS if "b" in name]:
        cells = re.search(rf"^{name} +(.*)$", text, flags=re.M)[1]
        found = re.findall(r"([\d.]+)( \*)?", cells)
        for (shown, star), kind in zip(found, ("fp16", "int8", "nf4"), strict=True):
            needed = weights_bytes(PRESETS[name], kind)
            assert float(shown) == round(needed / GIB, 1)
            if free is None or abs(needed - free) > 0.1 * free:  # the free memory moves between two looks
                assert bool(star) == (free is not None and needed < free), (name, kind)


def test_each_line_has_its_place_and_unknown_memory_is_said(monkeypatch):
    monkeypatch.setattr(info, "available_bytes", lambda: int(7.25 * GIB))
    lines = describe().splitlines()
    names = ["minillama", "python", "kernel backends built:", "tokenizer backend:", "threads:", "devices:",
             "memory free: 7.2 GiB", "", "weights of the published sizes"]
    assert all(line.startswith(name) for line, name in zip(lines, names, strict=False)) and lines[7] == ""
    assert lines[9].split() == ["fp16", "int8", "nf4"] and len(lines) == 10 + sum("b" in name for name in PRESETS)
    assert {len(line) for line in lines[9:]} == {44}, "the columns stand under their heads"
    monkeypatch.setattr(info, "available_bytes", lambda: None)
    assert "memory free: unknown" in describe() and " *" not in describe().split("free memory:")[1]
    monkeypatch.setattr(info, "available_bytes", lambda: 0)
    assert "memory free: 0.0 GiB" in describe() and " *" not in describe().split("free memory:")[1]


def test_every_device_that_torch_can_use_is_named(monkeypatch):
    for cuda, mps, named in ((False, False, ["cpu"]), (True, False, ["cpu", "cuda (H200)"]),
                             (False, True, ["cpu", "mps"])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices() == named


def test_a_checkpoint_is_described_by_what_it_stores(tmp_path):
    """32 * 96 weights in the table and again in the head; each layer 4 * 32 * 32 + 3 * 32 * 40, and its two norms."""
    shape = ModelConfig(32, 2, 4, 96, hidden_dim=40, max_seq_len=64)
    save_model(tmp_path / "a", Transformer(shape))
    count = 2 * 32 * 96 + 2 * (4 * 32 * 32 + 3 * 32 * 40 + 2 * 32) + 32
    assert info.examine_checkpoint(tmp_path / "a")[0].splitlines() == [
        f"{tmp_path / 'a'}: {count:,} parameters in float32",
        "dim 32, n_layers 2, n_heads 4, n_kv_heads 4, hidden_dim 40, vocab_size 96, max_seq_len 64",
        f"all together 32.00 bits a weight, {4 * count / 2**20:,.1f} MiB",
        "settings obeyed: dim, ffn_dim_multiplier, max_seq_len, multiple_of, n_heads, n_kv_heads, n_layers, norm_eps, "
        "objective, rope_theta, tie_embeddings, use_scaled_rope, vocab_size", "tokenizer: none",
        *(f"{names}: no, no tokenizer: put its tokenizer.model or tokenizer.json beside it"
          for names in ("generate", "chat, sft", "pretrain", "reward")),
        "quantize: yes", *(f"convert --to {form}: yes" for form in ("meta", "hf", "gguf", "llama2c"))]


def test_what_a_downloaded_folder_will_be_good_for_is_told_beforehand(tmp_path):
    """A Hugging Face folder with a setting of each kind, added tokens, rows without a token and a template."""
    model = Transformer(ModelConfig(32, 2, 4, 300, hidden_dim=40, max_seq_len=64, norm_eps=1e-6))
    write_huggingface(tmp_path, from_model(model))
    train_bpe(["the cat and the hat"] * 20, 280).save(tmp_path / "tokenizer.model")
    told = {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>", "add_bos_token": False,
            "chat_template": "{{ 1 }}",
            "added_tokens_decoder": {"280": {"content": "<|end|>", "special": True},
                                     "281": {"content": "<tool>", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    lines = info.examine_checkpoint(tmp_path)[0].splitlines()
    assert [line for line in lines if line.startswith("settings ignored: ")][0].count("hidden_act") == 1
    for line in ("tokenizer: 282 pieces", "a text begins with: no token in front; it ends at: '<|end|>' (280)",
                 "special tokens: 3, added words of the text: 1, rows without a token: 18",
                 "template: the model's own chat_template", "generate: yes", "chat, sft: yes", "pretrain: yes",
                 "reward: yes", "convert --to gguf: yes",
                 "convert --to llama2c: no, unknown, begin and end have the ids 0, 1 and 280: llama2.c has them fixed "
                 "at 0, 1 and 2"):
        assert line in lines, line
    config = json.loads((tmp_path / "config.json").read_text()) | {"sliding_window": 8, "soft_cap\n": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = info.examine_checkpoint(tmp_path)[0].splitlines()
    assert "refused: sliding_window is 8: LLaMA's is None" in lines and not any(": yes" in line for line in lines)
    assert any(line.startswith("refused: soft_cap") and "is not known here" in line for line in lines)
    assert lines[-1].startswith("taken by no command")
    with pytest.raises(ValueError, match="sliding_window is 8"):
        open_weights(tmp_path)


def test_the_exit_code_of_info_says_whether_something_is_refused(tmp_path, capsys):
    write_huggingface(tmp_path, from_model(Transformer(ModelConfig(32, 2, 4, 300, hidden_dim=40, max_seq_len=64))))
    train_bpe(["the cat and the hat"] * 20, 280).save(tmp_path / "tokenizer.model")

    def code_of(**files):
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        code, said = main(["info", str(tmp_path)]), capsys.readouterr().out
        assert (code == 1) == ("\nrefused: " in said) == ("\ntaken by no command" in said), said
        return code

    good = json.loads((tmp_path / "config.json").read_text())
    assert code_of() == 0 and code_of(tokenizer_config={"clean_up_tokenization_spaces": True}) == 0
    assert code_of(tokenizer_config={"boss": 1}) == 1 and code_of(tokenizer_config={"eos_token": "<none>"}) == 1
    assert code_of(tokenizer_config={}, generation_config={"suppress_tokens": [4]}) == 1
    assert code_of(generation_config={}) == 0 and code_of(config={**good, "logit_scale": 0.5}) == 1
    assert code_of(config={**good, "hidden_size": "x"}) == 2 and main(["info"]) == 0


MUTANTS = [
    Mutant("minillama.cli.info", "needed < free", "needed > free",
           test_a_star_stands_where_a_size_fits_and_nowhere_else),
]
