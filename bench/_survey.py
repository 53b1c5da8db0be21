"""Numbers that surveys of tuning quote, from what the methods add to models that hold no numbers (the meta device)."""

import math

SECTION = """## The numbers that surveys quote

Counted from what each method adds to LLaMA 7B on the meta device, where a model has shapes and no numbers:

{table}

- "Prefix tuning trains 0.1 %": at 7B that is a prefix of {prefix_tokens} virtual tokens.
- "P-tuning trains 0.65 %" names neither model nor length. At 7B with 20 tokens it is {mlp:.2%} with an encoder of three
  linear layers, {lstm:.1%} with an LSTM; what is kept in the end, the vectors alone, is {bare:.4%}.
- "11 B against 20 k": full tuning of T5-XXL changes {t5:,} weights, a prompt of 5 tokens {prompt:,} numbers. Its
  shape is published; it is no model of ours.
- "Above 780 GB against 48 GB": full tuning of 65B in 16 bits takes 2 bytes a weight, 2 a gradient and 8 of Adam's
  averages, {full_gb:.0f} GB. Its weights in NF4 take {qlora_gb:.1f} GB together with adapters of rank 64 on every
  layer, at 16 bytes for each of their numbers. Activations come on top of both.
"""
T5_XXL = {"vocab": 32128, "dim": 4096, "hidden": 10240, "heads": 64, "layers": 24, "buckets": 32}  # of T5 1.1


def shape(name):
    """A model of that preset without numbers."""
    import torch

    from minillama.config import preset
    from minillama.transformer import Transformer

    with torch.device("meta"):
        return Transformer(preset(name))


def trained(name, size=8, model="llama_7b", **options):
    """How many numbers the method trains in a preset."""
    import torch

    from minillama.peft.lora import LoRAConfig, add_lora
    from minillama.peft.methods import add_method

    made = shape(model)
    with torch.device("meta"):
        if name == "lora":
            add_lora(made, LoRAConfig(size, **options))
        else:
            add_method(made, name, size, **options)
    return sum(p.numel() for p in made.parameters() if p.requires_grad)


def prefix_tokens_of(share, model="llama_7b"):
    """The least length of a prefix that trains that share of a preset."""
    from minillama.config import preset

    one = trained("prefix", 1, model)
    return math.ceil(share * preset(model).n_parameters() / one)


def t5_parameters(vocab, dim, hidden, heads, layers, buckets):
    """Weights of a T5 1.1 (arXiv 2002.05202): attention of 4 D^2 in each block and 4 more in the decoder's for the
    encoder's text, a gated feed-forward layer of 3 D F, gains of norms, a table of relative positions a side, and a
    head of its own beside the embedding table."""
    blocks = layers * (4 * dim**2 + 3 * dim * hidden + 2 * dim) + layers * (8 * dim**2 + 3 * dim * hidden + 3 * dim)
    return blocks + 2 * (dim + buckets * heads) + 2 * vocab * dim


def gigabytes_65b():
    """(full tuning in 16 bits, QLoRA with rank 64 on all linear layers but the head), without activations."""
    from minillama.config import preset
    from minillama.system.memory import weights_bytes

    big = preset("llama_65b")
    adapters = trained("lora", 64, "llama_65b", targets=("attention.*", "feed_forward.*"))
    return (2 + 2 + 8) * big.n_parameters() / 1e9, (weights_bytes(big, "nf4") + 16 * adapters) / 1e9


ROWS = (  # what, method, size, options
    ("LoRA, rank 8 on q and v", "lora", 8, {}), ("prefix of 20", "prefix", 20, {}),
    ("prompt of 20", "prompt", 20, {}), ("P-tuning of 20, MLP", "p-tuning", 20, {}),
    ("P-tuning of 20, LSTM", "p-tuning", 20, {"lstm": True}), ("adapters, width 64", "adapter", 64, {}),
    ("BitFit", "bitfit", 8, {}), ("IA3", "ia3", 8, {}), ("ladder, width 64", "ladder", 64, {}))


def counts():
    """{what: (trained parameters, share of 7B)}"""
    from minillama.config import preset

    whole, found = preset("llama_7b").n_parameters(), {}
    for what, name, size, options in ROWS:
        count = trained(name, size, **options)
        found[what] = count, count / whole
    return found


def section():
    """The page's part."""
    found, (full_gb, qlora_gb) = counts(), gigabytes_65b()
    rows = [["method at LLaMA 7B", "trained parameters", "share"], ["---"] * 3]
    rows += [[what, f"{count:,}", f"{share:.4%}"] for what, (count, share) in found.items()]
    bare = found["prompt of 20"][1]
    return SECTION.format(table="\n".join("| " + " | ".join(row) + " |" for row in rows),
                          prefix_tokens=prefix_tokens_of(1e-3), mlp=found["P-tuning of 20, MLP"][1],
                          lstm=found["P-tuning of 20, LSTM"][1], bare=bare, t5=t5_parameters(**T5_XXL),
                          prompt=5 * T5_XXL["dim"], full_gb=full_gb, qlora_gb=qlora_gb)
