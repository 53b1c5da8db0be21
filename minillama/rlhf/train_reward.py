"""Training a reward model on pairs, starting from a language model's body."""

import copy
from dataclasses import asdict, dataclass

import torch

from minillama.collate import pad_rows, real_tokens
from minillama.config_checks import MOST, check_config, number, seed
from minillama.rlhf.reward_model import RewardModel, pair_accuracy, preference_loss
from minillama.train.resume import crc_of_texts, own_random_state, settings_of
from minillama.train.sequence_loss import encode_segments
from minillama.train.sharded import share_of
from minillama.train.templates import question_answer
from minillama.train.training_run import TrainingConfig, TrainingRun

STATE_FILE = "reward_state.pt"


@dataclass(frozen=True)
class RewardConfig:
    """How a reward model is trained; the rate suits models of less than a million parameters."""

    epochs: int = number(1, 1, 1000)  # one: a second reading learns the labels' noise (2203.02155, app. C.2)
    batch_size: int = number(16, 1, MOST)  # pairs of one update
    max_lr: float = number(1e-3, 1e-12, 10)
    warmup_steps: int | None = number(None, 0, MOST)  # None: 10, fewer where there are not many more steps
    weight_decay: float = number(0.0, 0, 10)
    label_smoothing: float = number(0.0, 0, below=0.5)  # share of pairs whose label may be wrong (`preference_loss`)
    clip_norm: float = number(1.0, 1e-9, 1e9)
    checkpoint_every: int = number(100, 0, MOST)  # steps; 0: only before the first and after the last
    seed: int = seed()  # order of the pairs and the head's first weights

    def __post_init__(self):
        check_config(self)


def train_reward(body, pairs, tokenizer, config=RewardConfig(), template=question_answer, progress=True, folder=None,
                 resume=False, facts=None, kind=None):
    """A `RewardModel` on a copy of `body`, trained on `pairs` (`preferences.Pair`) -> (model, history).

    template(prompt, answer) gives the segments of the whole text, which must end in EOS: where the score
    is read. It has to be the policy's own. history: a row of each step (1, 2, ...) with "loss" and "accuracy" of its
    batch before it was learned, and what `pretrain` records. folder: where the run is kept; resume, facts and kind
    as in `pretrain`, where of the settings `epochs` may differ.
    """
    encoded = encode_pairs(pairs, tokenizer, template, body.config.max_seq_len)
    epoch = steps_of(config, len(pairs)) // config.epochs
    facts = {**(facts or {}), "pairs": crc_of_texts(pairs), "pair_tokens": crc_of_texts(encoded)}
    with own_random_state(config.seed, "cpu"):
        model = RewardModel(copy.deepcopy(body).requires_grad_(), body.config.dim)
        order = torch.cat([torch.randperm(len(encoded))[:epoch * config.batch_size]
                           for _ in range(config.epochs)]).tolist()
    model.to(body.tok_embeddings.weight.device)
    run = (kind or RewardRun)(model, encoded, order, config, folder, facts)
    return model, run.train(resume, progress)


class RewardRun(TrainingRun):
    """A run of training on pairs, in evaluation mode: no dropout."""

    name, total, state_file, evaluated, drops_out = "reward", "epochs", STATE_FILE, False, False

    def __init__(self, model, encoded, order, config, folder, facts):
        steps = len(order) // config.batch_size
        warmup = min(10, steps - 1) if config.warmup_steps is None else config.warmup_steps
        settings = asdict(config) | {"steps": steps, "warmup_steps": warmup, "eval_every": 0}
        self.label_smoothing = settings.pop("label_smoothing")
        del settings["epochs"]
        super().__init__(model, TrainingConfig(**settings), folder, {**facts, **settings_of(config)})
        self.encoded, self.order = encoded, order

    def losses(self, step):
        size = self.config.batch_size
        batch = [self.encoded[i] for i in self.order[step * size:(step + 1) * size]]
        chosen, rejected = score_pairs(self.model, share_of(batch, self.learner))
        self.step_tokens = sum(len(side) for pair in batch for side in pair)
        self.measured = {"accuracy": pair_accuracy(chosen.detach(), rejected.detach())}
        yield preference_loss(chosen, rejected, label_smoothing=self.label_smoothing)


def steps_of(config, pairs):
    """How many updates so many pairs make; ValueError where there is none, or the warm-up is longer."""
    steps = config.epochs * (pairs // config.batch_size)
    if not steps:
        raise ValueError(f"batch_size {config.batch_size} is not filled once by {pairs} pairs: lower it, or give more")
    if config.warmup_steps is not None and config.warmup_steps >= steps:
        raise ValueError(f"warmup_steps {config.warmup_steps} leave nothing of {pairs} pairs' {steps} steps: use fewer")
    return steps


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
    device = model.head.weight.device
    return model(pad_rows(rows, device=device), real_tokens(rows, device=device)).chunk(2)


@torch.no_grad()
def held_out_scores(model, encoded, batch_size=128):
    """Scores of the better and of the worse text of every encoded pair, (P,) each."""
    parts = [score_pairs(model, encoded[i:i + batch_size]) for i in range(0, len(encoded), batch_size)]
    return tuple(torch.cat(side) for side in zip(*parts, strict=True))


def held_out_accuracy(model, encoded, batch_size=128):
    """Share of pairs that the model orders as their label does."""
    return pair_accuracy(*held_out_scores(model, encoded, batch_size))
