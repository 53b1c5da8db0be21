"""Can warm-up be dropped? One small model in four forms: pre- and post-norm, each with and without it.

Eight layers that predict characters, trained by AdamW, without clipping, from weights that the depth does not shrink:
the setting in which post-norm needs a warm-up (arXiv 2002.04745). Its worth depends on depth, rate and number
of steps; this is one setting, not a survey. --record writes bench/warm_up.json after each seed; lesson 05 reads it.
"""

import datetime
import json
import math
import time

import _rounds  # first: it speaks to OpenMP before torch loads
import numpy as np
import torch
from torch import nn

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.corpus import mixture
from minillama.train.data import Batches, Tokens
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW
from minillama.train.perplexity import held_out_loss
from minillama.train.sequence_loss import next_token_loss
from minillama.train.training_run import train_step
from minillama.transformer import Block, Transformer

RECORD = _rounds.ROOT / "bench" / "warm_up.json"
LAYERS, DIM, BATCH, LENGTH, STEPS, WARMUP, LR = 8, 64, 8, 64, 120, 40, 2e-3
FORMS = {f"{norm}, {'warm-up' if steps else 'none'}": (norm, steps)
         for norm in ("pre-norm", "post-norm") for steps in (0, WARMUP)}


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + feed_forward(x)): the order of arXiv 1706.03762."""

    def forward(self, x_BTD, *read):
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, *read))
        return self.ffn_norm(x_BTD + self.feed_forward(x_BTD))


def build(norm, vocab_size, seed, layers=LAYERS):
    """A `Transformer` with its norms in that place; every matrix N(0, 1 / fan-in), as in the paper's comparison, where
    the library shrinks those that write into the stream by sqrt(2 L). Post-norm has no norm at its end."""
    torch.manual_seed(seed)
    config = ModelConfig(DIM, layers, 4, vocab_size, hidden_dim=8 * DIM // 3, max_seq_len=LENGTH)
    model = Transformer(config, torch_attention)
    if norm == "post-norm":
        model.layers = nn.ModuleList(PostNormBlock(config, torch_attention) for _ in model.layers)
        model.norm = nn.Identity()
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
    return model


def rows_of(seed, documents=2500):
    """(train, held out) `Tokens` of characters, and how many different ones there are."""
    texts = ["\n".join(document.text for document in mixture(seed, n, split))
             for n, split in ((documents, "train"), (200, "held-out"))]
    letters = sorted(set("".join(texts)))
    number = {letter: i for i, letter in enumerate(letters)}
    return [Tokens(np.array([number[letter] for letter in text]), len(letters)) for text in texts], len(letters)


def run(norm, warmup, seed, steps=STEPS, layers=LAYERS):
    """Held-out nats a character after the last step, the loss of every tenth step, and CPU seconds."""
    start, ((train, held_out), vocab_size) = time.process_time(), rows_of(seed)
    model, batches = build(norm, vocab_size, seed, layers), Batches(train, BATCH, LENGTH, seed)
    optimizer, losses = AdamW(model.parameters(), LR, (0.9, 0.95), weight_decay=0.0), []
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, LR, warmup)
        loss, _ = train_step(optimizer, [next_token_loss(model, *batches(step))], math.inf)
        losses.append(round(loss.item(), 4))
    return {"held_out": round(held_out_loss(model, held_out, LENGTH, 64), 4), "losses": losses[::10],
            "cpu_seconds": round(time.process_time() - start, 1)}


def main(argv=None):
    def add(parser):
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--record", action="store_true", help="write bench/warm_up.json")

    chosen, seeds = _rounds.options(__doc__, argv, add), []
    for seed in chosen.seeds:
        small = {"steps": 40, "layers": 2} if chosen.small else {}
        found = {name: run(norm, warmup, seed, **small) for name, (norm, warmup) in FORMS.items()}
        seeds.append({"seed": seed, **found})
        print(seed, {name: row["held_out"] for name, row in found.items()}, flush=True)
        if chosen.record and not small:
            record = {"date": datetime.date.today().isoformat(), "machine": _rounds.machine(), "layers": LAYERS,
                      "dim": DIM, "batch": BATCH, "length": LENGTH, "steps": STEPS, "warmup": WARMUP, "lr": LR,
                      "seeds": seeds}
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
