"""The ways to tune few parameters, side by side: what each adds, and whether that goes into the weights.

All freeze the base: what is trained is what requires a gradient, and is saved (`adapter_file`). LoRA and its kin have a
config and layers of their own (`lora`, `dora`); P-tuning v2 is a prefix, and a head where classes are asked for.
"""

from minillama.peft.adapter import add_adapters
from minillama.peft.bitfit import add_biases
from minillama.peft.ia3 import add_ia3, merge_ia3
from minillama.peft.ladder_side_tuning import add_ladder
from minillama.peft.lora import lora_layers, merge_lora, remove_lora
from minillama.peft.p_tuning import add_p_tuning
from minillama.peft.prefix_tuning import add_prefix
from minillama.peft.prompt_tuning import add_prompt

NO_WORDS = "virtual tokens are read beside a text, and are no weight of the model"
RELU = "between the two matrices of an adapter stands a relu"
METHODS = {  # name: (how it is added, why it cannot be merged or "" where it can). n and m are called size
    "prefix": (lambda model, size, h, lstm, ids: add_prefix(model, size, h, ids), NO_WORDS),
    "prompt": (lambda model, size, h, lstm, ids: add_prompt(model, size, ids), NO_WORDS),
    "p-tuning": (lambda model, size, h, lstm, ids: add_p_tuning(model, size, h or model.config.dim, lstm), NO_WORDS),
    "adapter": (lambda model, size, *_: add_adapters(model, size), RELU),
    "parallel-adapter": (lambda model, size, *_: add_adapters(model, size, parallel=True), RELU),
    "ladder": (lambda model, size, *_: add_ladder(model, size), "a ladder is a network beside the model"),
    "bitfit": (lambda model, *_: add_biases(model), "LLaMA's files have no place for a bias"),
    "ia3": (lambda model, *_: add_ia3(model), ""),
}


def add_method(model, name, size=8, h=0, lstm=False, ids=()):
    """Freeze the model and add what a method trains, in place. size: virtual tokens, or the inner width of adapters and
    ladder; h: the width of an encoder of virtual tokens; lstm: P-tuning's kind of it; ids: a text that prompt or prefix
    begin as. ValueError for a model that something was added to already."""
    if lora_layers(model) or getattr(model, "method", None):
        raise ValueError("the model has an adapter already: load the base anew, or merge the adapter first")
    METHODS[name][0](model, size, h, lstm, ids)
    model.method = name, len(ids) or size


def require_mergeable(name):
    """ValueError, with the reason, for a method that has no place in the weights; None stands for LoRA and its kin."""
    if name and METHODS[name][1]:
        raise ValueError(f"{name} cannot be merged: {METHODS[name][1]}; use it by --adapter")


def merge_method(model):
    """Fold what was added into the weights, and take it away. ValueError, with the reason, where that cannot be."""
    if not hasattr(model, "method"):
        merge_lora(model, keep_base=False)
        remove_lora(model)
    else:
        require_mergeable(model.method[0])
        merge_ia3(model)
        del model.method
