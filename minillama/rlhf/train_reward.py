"""Training a reward model on pairs, starting from a language model's body."""

import copy
from dataclasses import dataclass

import torch

from minillama.bounds import MOST, check_config, number, seed
from minillama.rlhf.reward_model import RewardModel, pair_accuracy, preference_loss
from minillama.terminal import tqdm
from minillama.train.optimizer import AdamW, clip_gradients, learning_rate
from minillama.train.resume import own_random_state
from minillama.train.sequence_loss import encode_segments
from minillama.train.templates import question_answer


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is trained; the rate suits models of less than a million parameters."""

    epochs: int = number(1, 1, 1000)  # one: a second reading learns the labels' noise (2203.02155, app. C.2)
    batch_size: int = number(16, 1, MOST)  # pairs of one update
    max_lr: float = number(1e-3, 1e-12, 10)
    warmup_steps: int = number(10, 0, MOST)
    weight_decay: float = number(0.0, 0, 10)
    clip_norm: float = number(1.0, 1e-9, 1e9)
    seed: int = seed()  # order of the pairs and the head's first weights

    def __post_init__(self):
        check_config(self)


def train_reward(body, pairs, tokenizer, config=RewardConfig(), template=question_answer, progress=True):
    """A `RewardModel` on a copy of `body`, trained on `pairs` (`preferences.Pair`) -> (model, history).

    template(prompt, answer) gives the segments of the whole text, which must end in EOS: where the score
    is read. It has to be the policy's own. history: {"step", "loss", "accuracy"} of each batch, before
    it was learned.
    """
    encoded = encode_pairs(pairs, tokenizer, template, body.config.max_seq_len)
    steps = config.epochs * (len(encoded) // config.batch_size)
    if not steps:
        raise ValueError(f"{len(pairs)} pairs do not fill one batch of {config.batch_size}: give more, or "
                         "a smaller batch_size")
    with own_random_state(config.seed, "cpu"):
        model = RewardModel(copy.deepcopy(body).requires_grad_(), body.config.dim).eval()  # eval: no dropout
        order = torch.cat([torch.randperm(len(encoded))[:steps // config.epochs * config.batch_size]
                           for _ in range(config.epochs)]).tolist()
    model.to(body.tok_embeddings.weight.device)
    optimizer, history = AdamW(model.parameters(), eps=1e-8, weight_decay=config.weight_decay), []
    for step in tqdm(range(steps), desc="reward model", unit="step", disable=not progress):
        batch = [encoded[i] for i in order[step * config.batch_size:(step + 1) * config.batch_size]]
        optimizer.lr = learning_rate(step, steps, config.max_lr, min(config.warmup_steps, steps - 1))
        chosen, rejected = score_pairs(model, batch)
        loss = preference_loss(chosen, rejected)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(optimizer.parameters, config.clip_norm)
        optimizer.step()
        history.append({"step": step, "loss": loss.item(),
                        "accuracy": pair_accuracy(chosen.detach(), rejected.detach())})
    return model, history


def encode_pairs(pairs, tokenizer, template=question_answer, max_seq_len=None):
    """[(tokens of prompt and chosen answer, tokens of prompt and rejected answer), ...], lists of ids."""
    encoded = []
    for pair in pairs:
        sides = tuple(encode_segments(template(pair.prompt, answer), tokenizer).tokens
                      for answer in (pair.chosen, pair.rejected))
        longest = max(map(len, sides))
        if max_seq_len is not None and longest > max_seq_len:
            raise ValueError(f"a pair has {longest} tokens and the model reads {max_seq_len}: leave it out or "
                             f"shorten it. Its prompt begins {pair.prompt[:40]!r}")
        encoded.append(sides)
    return encoded


def score_pairs(model, encoded):
    """Scores of the chosen and of the rejected texts, (B,) each, in one forward pass."""
    rows = [side for sides in zip(*encoded, strict=True) for side in sides]
    chosen_and_rejected = model(*(x.to(model.head.weight.device) for x in padded(rows)))
    return chosen_and_rejected.chunk(2)


def padded(rows):
    """Lists of ids as one tensor, padded on the right, and which of it is real: int64 and bool, (B, T)."""
    T = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[0] * (T - len(row))] for row in rows])
    return tokens_BT, torch.arange(T) < torch.tensor([len(row) for row in rows])[:, None]


@torch.no_grad()
def held_out_scores(model, encoded, batch_size=128):
    """Scores of the better and of the worse text of every encoded pair, (P,) each."""
    parts = [score_pairs(model, encoded[i:i + batch_size]) for i in range(0, len(encoded), batch_size)]
    return tuple(torch.cat(side) for side in zip(*parts, strict=True))


def held_out_accuracy(model, encoded, batch_size=128):
    """Share of pairs that the model orders as their label does."""
    return pair_accuracy(*held_out_scores(model, encoded, batch_size))
