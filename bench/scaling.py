"""Toy scaling: small LLaMAs of five sizes at four budgets of FLOPs, on a corpus whose entropy is known.

Every document is new to the model, stands in a row of its own and is counted whole, so that what a model pays above
the documents' own information is its own fault: excess = held-out loss - entropy, in nats a token. The law that
the fitted budgets give has then to predict four times the largest of them. --record writes bench/scaling.json after
each seed; lesson 16 reads it.
"""

import datetime
import json
import math
import time

import _rounds  # first: it speaks to OpenMP before torch loads
import torch

from lessons.scaling_law import fit, loss_of
from minillama.attention import torch_attention
from minillama.collate import IGNORE, pad_rows
from minillama.config import ModelConfig
from minillama.corpus import mixture
from minillama.tokenizer import train_bpe
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW
from minillama.train.training_run import train_step
from minillama.transformer import Transformer

RECORD = _rounds.ROOT / "bench" / "scaling.json"
PIECES, LAYERS, BATCH, HELD_OUT = 512, 2, 4, 200
DIMS, BUDGETS = (8, 12, 16, 24, 32), (2.5e9, 5e9, 1e10, 2e10)  # width of the model; FLOPs of 6 N D
FAR, FAR_DIMS = 4 * BUDGETS[-1], (16, 24)  # not fitted: what the fit has to predict
LR, LR_DIM, WARMUP = 6e-3, 64, 0.1  # the rate falls with the root of the width; a tenth of the steps warms up


def config_of(dim):
    """A LLaMA of two layers, feed-forward 8/3 of the width, heads of 16 numbers or of the whole width."""
    heads = dim // 16 if dim % 16 == 0 else 1
    return ModelConfig(dim, LAYERS, heads, PIECES, hidden_dim=8 * dim // 3, max_seq_len=256)


def multiplied(config):
    """N: the weights that a token is multiplied by, that is all but the table of embeddings, which is looked up."""
    return config.n_parameters() - config.vocab_size * config.dim


def batches(tokenizer, seed, tokens):
    """Rows of BATCH new documents each, padded, until `tokens` have been learned: a list of (inputs, targets)."""
    made, learned, found = 0, 0, []
    while learned < tokens:
        documents = mixture(1000 * seed + made, 1000)
        made += 1
        rows = [tokenizer.encode(document.text, bos=True, eos=True) for document in documents]
        for at in range(0, len(rows), BATCH):
            if learned >= tokens:
                break
            found.append(padded(rows[at:at + BATCH]))
            learned += sum(len(row) - 1 for row in rows[at:at + BATCH])
    return found, learned


def padded(rows):
    """(inputs, targets), (B, T): each row's tokens but the last, and all but the first; padding teaches nothing."""
    return pad_rows([row[:-1] for row in rows]), pad_rows([row[1:] for row in rows], IGNORE)


def nats(model, rows, reduction):
    """Sum, or mean, of the nats of the targets of one padded batch."""
    inputs, targets = rows
    return torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORE,
                                             reduction=reduction)


def train_point(tokenizer, held_out, seed, dim, budget):
    """One model at one budget: its N, D, held-out loss and CPU seconds."""
    start, config = time.process_time(), config_of(dim)
    N = multiplied(config)
    rows, D = batches(tokenizer, seed, budget / (6 * N))
    torch.manual_seed(seed)
    model = Transformer(config, torch_attention)
    optimizer = AdamW(model.parameters(), LR, (0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(rows):
        optimizer.lr = learning_rate(step, len(rows), LR * math.sqrt(LR_DIM / dim), int(WARMUP * len(rows)))
        train_step(optimizer, [nats(model, batch, "mean")], 1.0)
    loss = held_out_nats(model, held_out)
    return {"seed": seed, "dim": dim, "budget": budget, "N": N, "D": D, "steps": len(rows), "loss": round(loss, 5),
            "cpu_seconds": round(time.process_time() - start, 1)}


def held_out_nats(model, held_out):
    """Mean nats a token over the held-out documents."""
    with torch.no_grad():
        total = sum(nats(model, batch, "sum").item() for batch in held_out)
    return total / sum((targets != IGNORE).sum().item() for _, targets in held_out)


def seed_of_points(seed, dims=DIMS, budgets=BUDGETS, far_dims=FAR_DIMS, far=FAR):
    """All points of a seed, the entropy of its held-out documents, and what the fit predicts."""
    tokenizer = train_bpe([document.text for document in mixture(seed, 2500)], PIECES)
    documents = mixture(seed, HELD_OUT, "held-out")
    rows = [tokenizer.encode(document.text, bos=True, eos=True) for document in documents]
    held_out = [padded(rows[at:at + 50]) for at in range(0, HELD_OUT, 50)]
    entropy = math.log(2) * sum(document.bits for document in documents) / sum(len(row) - 1 for row in rows)
    points = []
    for budget, sizes in [*((budget, dims) for budget in budgets), (far, far_dims)]:
        for dim in sizes:
            points.append(train_point(tokenizer, held_out, seed, dim, budget))
            print(json.dumps(points[-1]), flush=True)
    return {"seed": seed, "entropy": round(entropy, 5), "points": points}


def judge(record):
    """[for each point beyond the fitted budgets: the excess measured, that of the fit, that of the nearest fitted
    point, of the same size at the largest budget]; the law it rests on comes first."""
    near = [point for point in record["points"] if point["budget"] < FAR]
    entropy = record["entropy"]
    law = fit(*zip(*((p["N"], p["D"], p["loss"]) for p in near), strict=True), E=entropy)
    found = []
    for point in record["points"]:
        if point["budget"] == FAR:
            nearest = max(near, key=lambda p, q=point: (p["N"] == q["N"], p["budget"]))
            found.append({"N": point["N"], "measured": point["loss"] - entropy,
                          "fit": loss_of(law, point["N"], point["D"]) - entropy, "nearest": nearest["loss"] - entropy})
    return law, found


def main(argv=None):
    def add(parser):
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--record", action="store_true", help="write bench/scaling.json")

    chosen = _rounds.options(__doc__, argv, add)
    small = {"dims": (16, 24), "budgets": (1e9,), "far_dims": (24,), "far": 2e9} if chosen.small else {}
    seeds = []
    for seed in chosen.seeds:
        seeds.append(seed_of_points(seed, **small))
        if chosen.record and not small:
            record = {"date": datetime.date.today().isoformat(), "machine": _rounds.machine(), "layers": LAYERS,
                      "batch": BATCH, "pieces": PIECES, "far": FAR, "seeds": seeds}
            RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if not small:
            law, found = judge(seeds[-1])
            print(f"seed {seed}: {law}")
            for row in found:
                print({key: round(value, 4) for key, value in row.items()})


if __name__ == "__main__":
    main()
