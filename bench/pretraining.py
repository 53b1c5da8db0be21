"""Training tokens per second: forward, backward, clipping and AdamW in fp32, beside transformers and torch's AdamW.

The limit is the same number of multiplications and additions in large square matrix products, in the same rounds.
"""

import _rounds  # first: it speaks to OpenMP before torch loads
import torch
from _twin import transformers_twin

from minillama.attention import attention, torch_attention
from minillama.config import preset
from minillama.train.optimizer import AdamW
from minillama.train.pretrain import batch_losses
from minillama.train.training_run import train_step
from minillama.transformer import Transformer

LR, BETAS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


def our_step(model, batch):
    """A function that makes one update and returns the loss before it."""
    optimizer = AdamW(model.parameters(), LR, BETAS, weight_decay=WEIGHT_DECAY)
    return lambda: train_step(optimizer, batch_losses(model, [batch]), CLIP)[0].item()


def their_step(model, batch):
    """The same update by transformers and torch: fused AdamW, no decay of the norms' gains."""
    matrices, gains = ([p for p in model.parameters() if (p.dim() >= 2) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=batch[0], labels=batch[1], shift_labels=batch[1], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def flops_per_step(config, batch, length):
    """Six for each weight of a matrix and token (a multiplication and an addition, once forward and twice backward),
    and for attention 12 L H d T^2 / 2 a sequence: queries see half of the keys (arXiv 2205.14135, section 4)."""
    matrices = config.n_parameters() - config.vocab_size * config.dim - (2 * config.n_layers + 1) * config.dim
    attended = 6 * config.n_layers * config.n_heads * config.head_dim * length
    return batch * length * (6 * matrices + attended)


def multiply(flops, n=512):
    """Square matrix products of `flops` operations altogether."""
    a, b = torch.ones(n, n), torch.ones(n, n)

    def work():
        for _ in range(max(1, round(flops / (2 * n**3)))):
            torch.mm(a, b)

    return work


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    batch, length = (2, 32) if chosen.small else (16, 256)
    config = preset("nano", n_layers=2, vocab_size=256) if chosen.small else preset("nano")
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, length + 1), generator=random)
    tokens_and_targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    models = {}
    for attend in (attention, torch_attention):
        torch.manual_seed(0)
        models[attend.__name__] = Transformer(config, attend)
    steps = {name: our_step(model, tokens_and_targets) for name, model in models.items()}
    if _rounds.has_peer("transformers"):
        twin = transformers_twin(models["attention"], share=False).train()
        steps["peer"] = their_step(twin, tokens_and_targets)
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    for values in losses.values():
        if max(abs(a - b) for a, b in zip(values, losses["attention"], strict=True)) > 1e-4:
            raise SystemExit(f"the first losses differ, {losses}: nothing was timed")
    flops = flops_per_step(config, batch, length)
    times = _rounds.alternate({**steps, "limit": multiply(flops)}, chosen.rounds)
    speed = {name: [batch * length / t for t in values] for name, values in times.items()}
    size = f"{config.n_parameters() / 1e6:.1f} M weights, batch {batch} x {length}"
    _rounds.show([_rounds.Row(f"training step, fp32, attend={name}, against transformers and fused AdamW", size,
                              "tok/s", speed[name], speed.get("peer"), speed["limit"]) for name in models])


if __name__ == "__main__":
    main()
