"""Memory of serving and tuning a LLaMA, from named terms: `run.py info llama_65b --method qlora --tokens 2048`.

Every term is a product of the model's shape, a number of bytes and a count; none belongs to one model or one method.
Activations are the least that backward needs (`activation_bytes`), so a training step's true peak is higher.
`python tools/memory_cost.py --articles` prints what articles say beside what the terms give.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minillama.config import PRESETS
from minillama.system.memory import activation_bytes, available_bytes, cache_bytes, weights_bytes

GB, LORA_RANK = 1e9, 8
FIGURES = Path(__file__).with_name("memory_figures.json")


class Method(NamedTuple):
    """How a model is held and what of it learns."""

    weights: str  # fp32, fp16 (or bf16), int8, nf4
    trained: str  # all, lora, none
    gradient: int = 2  # bytes for each trained number of the model itself
    master: int = 0  # bytes of an exact copy of each trained number


METHODS = {
    "serve": Method("fp16", "none"), "serve-fp32": Method("fp32", "none"), "serve-int8": Method("int8", "none"),
    "serve-nf4": Method("nf4", "none"), "full": Method("fp16", "all", master=4), "full-half": Method("fp16", "all"),
    "full-fp32": Method("fp32", "all", gradient=4), "lora": Method("fp16", "lora"),
    "lora-int8": Method("int8", "lora"), "qlora": Method("nf4", "lora")}
OPTIMIZERS = {"adamw": 8.0, "adamw-8bit": 2.0, "sgd": 0.0}  # bytes of state for each trained number; Adafactor: below


def lora_numbers(config, rank=LORA_RANK):
    """Numbers of an adapter on all seven linear layers of each block: rank (inputs + outputs)."""
    D, q, k, F = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim, config.hidden_dim
    return config.n_layers * rank * (2 * (D + q) + 2 * (D + k) + 3 * (D + F))


def factored_state(config):
    """Adafactor's state (arXiv 1804.04235): a mean for each row and each column of a matrix, each number of a norm."""
    D, q, k, F = config.dim, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim, config.hidden_dim
    block = 2 * (D + q) + 2 * (D + k) + 3 * (D + F) + 2 * D
    return 4 * (config.n_layers * block + (1 if config.tie_embeddings else 2) * (config.vocab_size + D) + D)


def score_bytes(config, rows, tokens, size):
    """What attention keeps without flash attention: a weight for each pair of tokens of each head and layer."""
    return size * config.n_layers * config.n_heads * rows * tokens * tokens


def terms(config, method, tokens=2048, batch=1, optimizer="adamw", recompute=False, flash=True, rank=LORA_RANK,
          size=2, adapter=4):
    """{term: bytes} of a method of METHODS at `batch` texts of `tokens`; activations in numbers of `size` bytes,
    an adapter and its gradients in numbers of `adapter` bytes."""
    kind = METHODS[method]
    found = {"weights": weights_bytes(config, kind.weights)}
    if kind.trained == "none":
        width = 4 if kind.weights == "fp32" else 2
        return {**found, "KV cache": cache_bytes(config, tokens, batch, width)}
    trained = config.n_parameters() if kind.trained == "all" else lora_numbers(config, rank)
    if kind.trained == "lora":
        found["adapter"] = adapter * trained
    found["gradients"] = (adapter if kind.trained == "lora" else kind.gradient) * trained
    if kind.master:
        found["exact copy"] = kind.master * trained
    state = factored_state(config) if optimizer == "adafactor" else OPTIMIZERS[optimizer] * trained
    found["optimizer"] = int(state)
    found["activations"] = activation_bytes(config, batch, tokens, size, vocabulary=False, recompute=recompute)
    if recompute:  # blocks are computed again one at a time
        found["activations"] += activation_bytes(replace(config, n_layers=1), batch, tokens, size, vocabulary=False)
    if not flash:
        layers = 1 if recompute else config.n_layers
        found["attention scores"] = score_bytes(config, batch, tokens, size) * layers // config.n_layers
    largest = max(config.dim * config.hidden_dim, config.dim * config.dim)
    found["buffers"] = 8 * batch * tokens * config.vocab_size + (2 * largest if kind.weights in ("int8", "nf4") else 0)
    return found


ADVICE = {"weights": "hold them in fewer bits (--method lora-int8, qlora or serve-nf4)",
          "KV cache": "serve fewer tokens at once (--tokens, --batch)",
          "optimizer": "train an adapter (--method lora), or --optimizer adamw-8bit",
          "gradients": "train an adapter (--method lora)", "exact copy": "train an adapter (--method lora)",
          "activations": "--recompute, or a lower --batch or --tokens",
          "attention scores": "flash attention (without --no-flash)", "buffers": "a lower --batch or --tokens"}


def sentence(name, method, found, free):
    """Whether it fits, what takes the most, and what to change: one sentence."""
    total, most = sum(found.values()), max(found, key=found.get)
    fits = "the free memory is not known" if free is None else (
        f"{'fits' if total < free else 'does not fit'} into the {free / GB:.1f} GB that are free here")
    change = "" if free is not None and total < free else f"; to need less: {ADVICE.get(most, 'a smaller model')}"
    return (f"{name} by {method} needs at least {total / GB:.1f} GB and {fits}: the most is {most}, "
            f"{found[most] / GB:.1f} GB{change}.")


def articles(path=FIGURES):
    """[(what, what the article says in GB, what the terms give, residual as a part of what it says, remark)].

    A row of the file names a preset, settings of `terms`, the terms that are counted (all, if none is named) and a
    factor; what no honest sum gives has a remark that says so."""
    rows = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        found = terms(PRESETS[row["model"]], row["method"], **row.get("settings", {}))
        total = sum(found[name] for name in row.get("terms", found))
        if row.get("per_billion"):
            total = total / PRESETS[row["model"]].n_parameters() * GB
        rows.append((row["what"], row["said"], total / GB, total / GB / row["said"] - 1, row["remark"]))
    return rows


def alpaca(config=PRESETS["llama_7b"], examples=52_002, limit=512, epochs=3, devices=8, hours=3):
    """What Alpaca's figures imply: FLOPs (6 N D, every example as long as its limit), the most that this is of the
    312 TFLOP/s of an A100 in bf16, dollars an hour of one A100 below which the run costs 100, and tokens of
    text-davinci-003 (0.02 dollars a thousand) for each example that 500 dollars buy."""
    flops = 6 * config.n_parameters() * examples * limit * epochs
    return {"FLOPs, at most": flops, "share of the peak, at most": flops / (devices * hours * 3600 * 312e12),
            "dollars an hour": 100 / (devices * hours), "tokens an example": 500 / 0.02 * 1000 / examples}


def lengths(config=PRESETS["llama_13b"], batch=4):
    """[(tokens, checkpointing, flash attention, bytes that grow with the text)]: Vicuna's step from 512 to 2,048."""
    rows = []
    for tokens in (512, 2048):
        for recompute in (False, True):
            for flash in (False, True):
                found = terms(config, "full", tokens, batch, recompute=recompute, flash=flash)
                grows = sum(found.get(name, 0) for name in ("activations", "attention scores", "buffers"))
                rows.append((tokens, recompute, flash, grows))
    return rows


def table(rows):
    """The rows as a Markdown table."""
    lines = ["| what | an article says, GB | the terms give, GB | residual | remark |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {what} | {said:g} | {given:.2f} | {off:+.0%} | {remark} |"
                              for what, said, given, off, remark in rows])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="run.py info", description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", choices=list(PRESETS), metavar="MODEL", help=", ".join(PRESETS))
    parser.add_argument("--method", choices=list(METHODS), default="serve")
    parser.add_argument("--tokens", type=int, default=2048, help="of a text (default 2048)")
    parser.add_argument("--batch", type=int, default=1, help="texts at once (default 1)")
    parser.add_argument("--rank", type=int, default=LORA_RANK, help=f"of an adapter (default {LORA_RANK})")
    parser.add_argument("--optimizer", choices=[*OPTIMIZERS, "adafactor"], default="adamw")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--no-flash", action="store_true", help="keep the scores of attention")
    parser.add_argument("--free-gb", type=float, help="memory of another machine (default: what is free here)")
    parser.add_argument("--articles", action="store_true", help="what articles say, beside what the terms give")
    chosen = parser.parse_args(argv)
    if chosen.articles:
        print(table(articles()))
        print("\nVicuna 13B, 4 texts: what grows with their length\n")
        print("| tokens | checkpointing | flash attention | GB |\n|---|---|---|---|")
        for tokens, recompute, flash, grows in lengths():
            print(f"| {tokens:,} | {'yes' if recompute else 'no'} | {'yes' if flash else 'no'} | {grows / GB:.1f} |")
        print("\nAlpaca: " + ", ".join(f"{name} {value:.3g}" for name, value in alpaca().items()))
        return
    if chosen.model is None:
        parser.error("which model? One of: " + ", ".join(PRESETS))
    for name in ("tokens", "batch", "rank"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} {getattr(chosen, name)}: must be at least 1")
    found = terms(PRESETS[chosen.model], chosen.method, chosen.tokens, chosen.batch, chosen.optimizer,
                  chosen.recompute, not chosen.no_flash, chosen.rank)
    for name, value in found.items():
        print(f"{name:18}{value / GB:10.2f} GB")
    free = available_bytes() if chosen.free_gb is None else chosen.free_gb * GB
    print(sentence(chosen.model, chosen.method, found, free))


if __name__ == "__main__":
    main()
