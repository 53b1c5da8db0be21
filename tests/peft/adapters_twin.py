"""Run by test_adapter_twin in a process of its own, behind the folder of the `adapters` package: an older transformers.

adapters_twin.py FOLDER M: FOLDER holds a config.json, the base under Hugging Face's names (base.safetensors), texts
(texts.safetensors) and adapters of inner width M under the package's names (adapter and parallel-adapter.safetensors).
Written for each of CASES: CASE-result.safetensors, the logits, the gradients of their mean square, and how many numbers
the package trains. FOLDER/ours is an adapter as we save it: the package's logits with it are those of the case FILES.
FOLDER/theirs: the adapter as the package saves it.
"""

import sys
from pathlib import Path

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

CASES = ("adapter", "parallel-adapter", "parallel-adapter as it is")
FILES = "adapter from our files"


def base_model(folder):
    """The base as the package sees it, ready for adapters."""
    config = LlamaConfig.from_pretrained(folder, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(load_file(folder / "base.safetensors"))
    adapters.init(model)
    return model


def adapted(folder, name, m):
    """The package's model with the adapter of the folder in it, and {name: parameter} of what it trains."""
    model = base_model(folder)
    config = model.config
    kind = DoubleSeqBnConfig if name == "adapter" else ParBnConfig
    model.add_adapter("ours", config=kind(reduction_factor=config.hidden_size // m, non_linearity="relu", scaling=1.0))
    model.train_adapter("ours")
    model.eval()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = load_file(folder / f"{name}.safetensors")
    if set(tensors) != set(trained):
        raise SystemExit(f"names differ: {sorted(set(tensors) ^ set(trained))}")
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[name])
    return model, trained


def put_norm_before(model):
    """Let a parallel adapter read what the feed-forward layer reads; the package's reads the stream before the norm."""
    for layer in model.model.layers:
        norm = layer.post_attention_layernorm
        layer.output_adapters.adapters["ours"].adapter_down.register_forward_pre_hook(
            lambda module, given, norm=norm: (norm(given[0]),))


def main(folder, m):
    for case in CASES:
        model, trained = adapted(folder, case.split()[0], m)
        if case == "parallel-adapter":
            put_norm_before(model)
        logits = model(load_file(folder / "texts.safetensors")["texts"]).logits
        logits.square().mean().backward()
        if case == "adapter":
            model.save_adapter(str(folder / "theirs"), "ours", with_head=False)
        found = {"logits": logits.detach(), **{name: parameter.grad for name, parameter in trained.items()}}
        found["trained"] = torch.tensor(sum(parameter.numel() for parameter in trained.values()))
        save_file(found, folder / f"{case}-result.safetensors")
    model = base_model(folder)
    model.load_adapter(str(folder / "ours"), set_active=True, with_head=False)
    logits = model(load_file(folder / "texts.safetensors")["texts"]).logits
    save_file({"logits": logits.detach()}, folder / f"{FILES}-result.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
