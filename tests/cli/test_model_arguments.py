"""What a command refuses before it loads a weight: devices, kernels, adapters, tokenizers, and sizes beyond memory."""

import json
import sys
from argparse import Namespace

import pytest
import torch
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file  # noqa: F401  (fixtures)
from torch.nn import functional as F

from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.cli import generation_commands, model_arguments
from minillama.cli.model_arguments import choose_kernels, load_from_args, open_model
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.peft.lora_file import save_lora
from minillama.quant.quantize_linears import quantization_of
from minillama.system.memory import activation_bytes, require_device
from minillama.transformer import Transformer

SHAPES = [ModelConfig(48, 3, 6, 97, 3, hidden_dim=80, max_seq_len=64), ModelConfig(32, 2, 4, 300, max_seq_len=64)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Count to {n}.", "output": "one " * n}) + "\n"
                            for n in range(1, 41)))
    return path


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {n}?", "chosen": "So.", "rejected": "No."}) + "\n"
                            for n in range(40)))
    return path


def saved_bytes(model, tokens_BT):
    """What autograd keeps in a forward pass, weights apart, and the logits' gradient: counted tensor by tensor."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits_BTV = model(tokens_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values()) + logits_BTV.nbytes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_of_a_step_is_below_what_autograd_keeps_and_not_far_below(shape, recompute):
    model = use_kernels(Transformer(shape), "torch")
    model.gradient_checkpointing = recompute
    kept = saved_bytes(model, torch.randint(shape.vocab_size, (3, 29)))
    assert kept / 2 < activation_bytes(shape, 3, 29, recompute=recompute) <= kept


def test_a_device_that_is_not_there_is_named():
    for device in ("cuda:99",) if torch.cuda.is_available() else ("cuda:99", "cuda"):
        with pytest.raises(ValueError, match=f"device '{device}' is not present on this machine"):
            require_device(device)
    require_device("cpu")


@pytest.mark.parametrize(("words", "said"), [
    ("generate --kernels cudda", "kernels 'cudda' are not known"), ("chat --kernels cudda", "kernels 'cudda'"),
    ("chat --adapter {tmp}", "adapter_config.json"), ("merge --adapter {tmp} --out {tmp}/o", "adapter_config.json"),
    ("generate --device cuda", "device 'cuda' is not present"),
    ("sft --data {data} --out {tmp}/o --kernels x", "kernels"),
    ("sft --data {data} --out {tmp}/o --targets attention.wx", "'attention.wx' matches none of the"),
    ("sft --data {data} --out {tmp}/o --targets output", "tied to the embedding table"),
    ("sft --data {data} --out {tmp}/o --method full --load-4bit", "in nf4 cannot change as a whole"),
    ("sft --data {data} --out {tmp}/o --batch-size 1000000000", "lower --batch-size"),
    ("sft --data {data} --out {tmp}/o --grad-accumulation 1000000000", "lower --batch-size or --grad-accumulation"),
    ("sft --data {data} --out {tmp}/o --template chatml", "im_start"),
    ("reward --pairs {pairs} --out {tmp}/o --batch-size 41", "--batch-size 41 is not filled once"),
    ("reward --pairs {pairs} --out {tmp}/o --batch-size 8 --warmup-steps 4", "pairs' 4 steps: use fewer"),
    ("ppo --prompts {pairs} --reward {tmp} --out {tmp}/o --batch-size 1000000000 --kl-horizon 1e12", "lower --batch"),
    ("ppo --prompts {pairs} --reward {tmp} --out {tmp}/o --pretraining-weight 1", "without a text to mix in")])
def test_what_cannot_be_is_refused_before_a_weight_is_loaded(model_folder, data, pairs, tmp_path,  # noqa: F811
                                                             monkeypatch, capsys, words, said):
    if "--device cuda" in words and torch.cuda.is_available():
        pytest.skip("has an NVIDIA GPU")
    monkeypatch.setattr("minillama.checkpoint.build_model", lambda *_, **__: pytest.fail("weights were loaded"))
    command, *rest = words.format(tmp=tmp_path, data=data, pairs=pairs).split()
    code, out, err = run(capsys, command, "--model", model_folder, *rest)
    assert code == 2 and said in err.splitlines()[-1] and "Traceback" not in err
    assert out == "" and not (tmp_path / "o").exists()


@pytest.mark.parametrize(("flags", "said"), [
    (("--seq-len", "257"), "--seq-len 257 is longer"), (("--batch-size", "1000000000"), "lower --batch-size"),
    (("--kernels", "no"), "kernels 'no'"), (("--device", "cuda:99"), "device 'cuda:99' is not present"),
    (("--grad-accumulation", "1000000000"), "lower --batch-size or --grad-accumulation")])
def test_pretrain_refuses_before_it_tokenises(tokenizer_file, tmp_path, monkeypatch, capsys, flags, said):  # noqa: F811
    monkeypatch.setattr("minillama.train.data.write_train_and_held_out", lambda *_: pytest.fail("tokenised"))
    (tmp_path / "text.txt").write_text("To be or not to be. " * 50)
    code, out, err = run(capsys, "pretrain", "--text", tmp_path / "text.txt", "--tokenizer", tokenizer_file, "--out",
                         tmp_path / "o", *flags)
    assert code == 2 and said in err.splitlines()[-1] and not (tmp_path / "o").exists()


def test_a_base_is_loaded_with_the_settings_that_its_adapter_was_learned_over(model_folder, tmp_path, capsys):  # noqa: F811
    model = load_model(model_folder, quantize="nf4", block_size=32)[0]
    for name in add_lora(model, LoRAConfig(2)):
        torch.nn.init.ones_(model.get_submodule(name).B)
    save_lora(tmp_path, model, base_model="the base")
    given = Namespace(model=model_folder, adapter=tmp_path, dtype=None, device="cpu")
    found, tokenizer = load_from_args(given)
    assert quantization_of(found) == quantization_of(model) and tokenizer.vocab_size == found.config.vocab_size
    err = capsys.readouterr().err
    assert f"learned over the base in nf4: {model_folder} is loaded so" in err and "expect other" not in err
    given.load_8bit = True
    assert quantization_of(load_from_args(given)[0])["kind"] == "int8"
    assert "expect other answers, or give --model the base" in capsys.readouterr().err
    given.load_8bit = False
    assert quantization_of(load_from_args(given, whole=True)[0]) is None, "a whole model is never quantized"


def chosen(capsys, **given):
    """(the backend that --kernels auto, unless `given` says another, stands for; what stderr says)."""
    arguments = Namespace(**({"kernels": "auto", "device": "cpu"} | given))
    choose_kernels(arguments)
    return arguments.kernels, capsys.readouterr().err


def memory_asked_for(device, cut, folder):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_arguments, "require_memory", lambda needed, *_: asked.append(needed))
        open_model(Namespace(model=folder, adapter=None, dtype=None, device=device, kernels="torch",
                             tensor_parallel=cut))
    return asked[0]


def test_a_model_cut_over_gpus_needs_room_for_a_part_in_each_and_on_a_cpu_for_all(model_folder):  # noqa: F811
    whole = memory_asked_for("cpu", 1, model_folder)
    assert whole > 0 and memory_asked_for("cpu", 4, model_folder) == whole
    assert [memory_asked_for("meta", cut, model_folder) for cut in (1, 4)] == [whole, whole // 4]


def test_auto_is_the_fastest_that_is_built_and_a_line_says_which(capsys, monkeypatch):
    built = "cpu" in kernels.built_backends()
    assert chosen(capsys)[0] == ("cpu" if built else "torch")
    assert chosen(capsys, device="cuda") == ("torch", "kernels: torch (PyTorch's own on cuda)\n")
    assert chosen(capsys, kernels="reference") == ("reference", ""), "a name that was given is not told again"
    monkeypatch.setattr(kernels, "built_backends", lambda: ("reference",))
    monkeypatch.setattr(kernels, "_load_operators", lambda: "minillama._ops was never compiled")
    monkeypatch.setattr("shutil.which", lambda tool: tool == "apk" or None)
    name, told = chosen(capsys)
    assert name == "torch" and told.count("\n") == 1 and told.startswith("kernels: torch (")
    for words in ("minillama._ops was never compiled", kernels.BUILD, "about twice as long"):
        assert words in told
    assert sys.platform == "darwin" or "sudo apk add g++" in told


@pytest.mark.parametrize("file", ["training_state.pt", "ppo_state.pt"])
def test_a_run_that_is_resumed_keeps_the_kernels_it_was_begun_with_or_refuses(file, tmp_path, capsys, monkeypatch):
    torch.save({"kind": "train", "signature": {"kernels": "torch"}}, tmp_path / file)
    run_in = {"out": str(tmp_path), "resume": True}
    assert chosen(capsys, **run_in) == ("torch", f"kernels: torch (the run in {tmp_path} was begun with them)\n")
    assert chosen(capsys, **run_in, kernels="reference")[0] == "reference", "what differs is for the run to say"
    fresh = chosen(capsys)[0]
    assert chosen(capsys, out=str(tmp_path), resume=False)[0] == fresh
    torch.save({"kind": "train", "signature": {"kernels": "cpu"}}, tmp_path / file)
    monkeypatch.setattr(kernels, "built_backends", lambda: ("reference",))
    with pytest.raises(RuntimeError, match="backend 'cpu' is not built here"):
        chosen(capsys, **run_in)
    for damaged in ({"signature": {"kernels": "no"}}, {"signature": None}, {}):
        torch.save(damaged, tmp_path / file)
        assert chosen(capsys, **run_in)[0] == "torch"
    (tmp_path / file).write_bytes(b"damaged")
    assert chosen(capsys, **run_in)[0] == "torch"


def test_a_run_begun_before_auto_goes_on_with_the_backend_in_its_state(model_folder, data, tmp_path, capsys):  # noqa: F811
    sft = ("sft", "--model", model_folder, "--data", data, "--out", tmp_path / "o", "--warmup-steps", "0")
    code, _, err = run(capsys, *sft, "--steps", "1", "--kernels", "torch")
    assert code == 0, err
    code, _, err = run(capsys, *sft, "--steps", "2", "--resume")
    assert code == 0 and "kernels: torch (the run in" in err
    code, _, err = run(capsys, *sft, "--steps", "3", "--resume", "--kernels", "reference")
    assert code == 2 and "kernels is 'reference', but the run in" in err and "use --kernels torch" in err


@pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
def test_where_the_engine_does_not_decode_a_line_says_why(model_folder, tmp_path, capsys):  # noqa: F811
    model = load_model(model_folder)[0]
    for name in add_lora(model, LoRAConfig(2)):
        torch.nn.init.ones_(model.get_submodule(name).B)
    save_lora(tmp_path, model, base_model=str(model_folder))
    for flags, why in (((), ""), (("--adapter", tmp_path), "it has a layer that is a LoRALinear\n")):
        for backend in ("torch", "cpu"):
            err = run(capsys, "generate", "--model", model_folder, *flags, "--max-new-tokens", "1",
                      "--kernels", backend)[2]
            said = f"PyTorch decodes, not the compiled engine: {why}"
            assert (said in err) == (backend == "cpu" and bool(why)), err


def test_chat_against_an_adapters_folder_loads_it_over_its_own_base(model_folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    seen, scores_TV = [], []
    for n, folder in enumerate(("first", "second")):
        model = load_model(model_folder)[0].eval()
        torch.manual_seed(n)
        for name in add_lora(model, LoRAConfig(2)):
            torch.nn.init.normal_(model.get_submodule(name).B)
        (tmp_path / folder).mkdir()
        save_lora(tmp_path / folder, model, base_model=str(model_folder))
        scores_TV.append(use_kernels(model, "torch")(torch.tensor([[5, 9, 7]]))[0])
    monkeypatch.setattr(generation_commands, "serve", lambda models, *_: seen.extend(models))
    for words in (("--model", model_folder), ("--model", tmp_path / "first"),
                  ("--model", model_folder, "--adapter", tmp_path / "first")):
        code, _, err = run(capsys, "chat", "--web", "--record", tmp_path / "page.html", *words, "--against",
                           tmp_path / "second", "--kernels", "torch")
        assert code == 0, err
    for loaded, wanted_TV in zip(seen[1:], [scores_TV[1], *scores_TV, *scores_TV], strict=True):
        assert loaded.factors and torch.equal(loaded.model(torch.tensor([[5, 9, 7]]))[0], wanted_TV)
    assert not seen[0].factors and [loaded.name for loaded in seen[1:4]] == ["second", "first", "second"]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", None])
def test_the_kv_cache_is_kept_in_the_dtype_that_is_asked_for(name, model_folder, capsys, monkeypatch):  # noqa: F811
    found = []
    monkeypatch.setattr(generation_commands, "generate_text",
                        lambda model, *_, **__: found.append(model.cache_dtype) or iter(()))
    flag = ("--cache-dtype", name) if name else ()
    code, _, err = run(capsys, "generate", "--model", model_folder, *flag)
    assert code == 0, err
    assert found == [name and getattr(torch, name)]


def _estimate(recompute=False):
    test_the_estimate_of_a_step_is_below_what_autograd_keeps_and_not_far_below(SHAPES[1], recompute)


MUTANTS = [
    Mutant("minillama.system.memory", "3 * config.hidden_dim + 2 * config.dim", "9 * config.hidden_dim", _estimate),
    Mutant("minillama.system.memory", "8 * config.vocab_size * vocabulary", "0", lambda: _estimate(True)),
    Mutant("minillama.system.memory", "(asked.index or 0) >= count", "False", test_a_device_that_is_not_there_is_named),
]
