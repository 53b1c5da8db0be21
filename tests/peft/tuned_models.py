"""Small models with something added by each method, for the tests of `minillama.peft`."""

import torch
from test_lora import ALL, small_model, tokens
from test_lora_file import close, peft_twin

from minillama.peft.adapter_file import load_adapter, save_adapter
from minillama.peft.dora import DoRALinear
from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora
from minillama.peft.methods import METHODS, add_method
from minillama.quant.quantize_linears import quantize_linears
from minillama.train.vocabulary import train_vocabulary

__all__ = ["EVERY", "attach", "changed", "close", "disturb", "same_in_peft", "small_model", "tokens", "trained",
           "tuned"]
EVERY = ("full", "embeddings", "lora", "rslora", "dora", "qlora", *METHODS, "p-tuning-v2")  # what sft --method takes


def trained(model):
    """{name: parameter} of what training changes."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def disturb(model, seed=5):
    """Add normal numbers of a tenth to all that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def attach(model, name, size=5, **options):
    """Add what `sft --method` adds, in place."""
    if name == "qlora":
        quantize_linears(model)
    if name in ("lora", "rslora", "dora", "qlora"):
        add_lora(model, LoRAConfig(size, 2.0 * size, 0.0, ALL, name == "rslora"),
                 DoRALinear if name == "dora" else LoRALinear)
    elif name == "embeddings":
        train_vocabulary(model)
    elif name != "full":
        add_method(model, "prefix" if name == "p-tuning-v2" else name, size, **options)


def tuned(name, size=5, seed=0, change=True, **options):
    """A small model with what the method adds; with `change`, as after some training."""
    attach(model := small_model(seed), name, size, **options)
    return disturb(model) if change else model


def changed(model):
    """How far the logits are from the base's."""
    return float((model(tokens()) - small_model()(tokens())).detach().abs().max())


def same_in_peft(name, config, **options):
    """Both ways: peft reads what we write, we read what peft writes, to the same logits; and as many numbers learn.
    Logits of a soft prompt's own places, which peft gives and we do not, stay out.

    config: peft -> its configuration of the same method; options: of `add_method`.
    """
    ours = tuned(name, 5, **options)
    with peft_twin(small_model()) as (peft, theirs, folder):
        save_adapter(folder, ours)
        read = peft.PeftModel.from_pretrained(theirs, folder).eval()
        assert changed(ours) > 0.05 and close(ours(tokens()), read(tokens()).logits[:, -37:])
    with peft_twin(small_model()) as (peft, theirs, folder):
        made = peft.get_peft_model(theirs, config(peft)).eval()
        disturb(made)
        assert made.get_nb_trainable_parameters()[0] == sum(map(torch.numel, trained(ours).values()))
        made.save_pretrained(folder)
        load_adapter(folder, again := small_model())
        assert changed(again) > 0.05 and close(again(tokens()), made(tokens()).logits[:, -37:])
