"""What all training here shares: step after step of AdamW, in a run that may be resumed (`resumable`).

A run's folder holds `metrics.jsonl` (one JSON object per step or evaluation) and `training_state.pt` (the trained
weights, optimizer, step, random state). Only parameters with requires_grad are trained and saved: whole models, and
adapters on a frozen or quantized base, are the same run.

A resumed run may have another number of steps, a finished one too. The learning rate is a function of the step and
that number, so from where it stands it follows the schedule of the new number: it jumps, unless it is constant, and
what comes out does not depend on how often the run is stopped on the way.
"""

import math
import time
from dataclasses import dataclass
from functools import partial

import torch

from minillama.config_checks import MOST, check_config, number, seed
from minillama.train import data_parallel
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW, clip_gradients
from minillama.train.paged_adamw import PagedAdamW
from minillama.train.resumable import ResumableRun
from minillama.train.resume import damaged, model_facts, own_random_state, random_state, set_random_state

STATE_FILE = "training_state.pt"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What decides a run's result, besides the model and the data, whatever it learns."""

    steps: int = number(least=1, most=MOST)  # optimizer updates
    batch_size: int = number(least=1, most=MOST)  # rows in memory at once
    grad_accumulation: int = number(1, 1, MOST)  # batches whose gradients make one update
    max_lr: float = number(least=1e-12, most=10)
    min_lr_ratio: float = number(0.1, 0, 1)  # the last step's rate, as a part of max_lr
    warmup_steps: int = number(least=0, most=MOST)
    weight_decay: float = number(least=0, most=10)  # per unit of learning rate
    beta1: float = number(0.9, 0, below=1)
    beta2: float = number(0.95, 0, below=1)
    eps: float = number(1e-8, 1e-30, 1)
    clip_norm: float = number(1.0, 1e-9, 1e9, or_zero=True)  # largest norm of all gradients together; 0: no clipping
    eval_every: int = number(least=0, most=MOST)  # steps; 0: only before the first and after the last
    checkpoint_every: int = number(100, 0, MOST)  # steps; 0: only before the first and after the last
    seed: int = seed()  # order of the data, and dropout where a model has it

    def __post_init__(self):
        check_config(self)
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps: "
                             f"use fewer, for instance {self.steps // 20}")


def train_step(optimizer, losses, clip_norm):
    """One update from losses that are computed one after another and count together as their sum
    -> tensor (loss, gradient norm before clipping)."""
    optimizer.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total = total + loss.detach()
    total = data_parallel.mean(total)
    norm = clip_gradients(optimizer.parameters, clip_norm or math.inf)
    optimizer.step()
    return torch.stack([total, norm])


class TrainingRun(ResumableRun):
    """A run of AdamW on what requires a gradient, with a warm-up and a cosine.

    What a kind of training adds: its `name`, `losses(step)` (the losses whose sum is the step's), `held_out_loss()`
    and the settings and data of its `signature`.
    """

    name, state_file, evaluated, drops_out = "train", STATE_FILE, True, True
    learner_of = staticmethod(data_parallel.learner_of)

    def __init__(self, model, config, folder, signature):
        super().__init__(config, folder, {**signature, **model_facts(model)}, config.steps)
        self.learner = self.learner_of(model)  # what `losses` calls
        self.model, self.device = model, next(model.parameters()).device
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        adamw = AdamW
        if getattr(config, "paged_optimizer", 0):
            adamw = partial(PagedAdamW, resident_bytes=config.paged_optimizer * 2**20, folder=folder)
        self.optimizer = adamw(self.trained.values(), config.max_lr, (config.beta1, config.beta2), config.eps,
                               config.weight_decay)
        self.measured = {}  # of the step's losses, for the metrics; `losses` may set it
        self.processes = data_parallel.rank_and_size()[1]
        self.step_tokens = 0  # read in a step, for the progress bar; `losses` may set it

    def train(self, resume=False, progress=True):
        """All steps -> the history; the model is in training mode, and random numbers follow the seed."""
        self.model.train(self.drops_out)
        with own_random_state(self.config.seed, self.device):
            return super().train(resume, progress)

    def rate(self):
        """The learning rate of the next step."""
        config = self.config
        return learning_rate(self.step, config.steps, config.max_lr, config.warmup_steps, config.min_lr_ratio)

    def rate_words(self, before):
        """What a new number of steps makes of the learning rate."""
        last = next((row["lr"] for row in reversed(self.history) if "lr" in row), 0.0)
        return f"the learning rate goes from {last:.3g} to {self.rate():.3g}"

    def advance(self):
        """One step: draw, learn, record -> loss and speed in words."""
        start, self.optimizer.lr = time.perf_counter(), self.rate()
        result = train_step(self.optimizer, self.losses(self.step), self.config.clip_norm)
        loss, norm = result.tolist()  # the step's one wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}. "
                                     + self._recovery_hint())
        self.step += 1
        seconds = time.perf_counter() - start
        self.record({"step": self.step, "loss": loss, "lr": self.optimizer.lr, "grad_norm": norm,
                     "seconds": round(seconds, 6), **self.measured})
        return f"loss {loss:.3f}, {self.step_tokens / seconds:,.0f} tokens/s"

    def evaluate(self):
        self.record({"step": self.step, "held_out_loss": self.held_out_loss()})

    def save(self):
        """The checkpoint, of weights that are finite."""
        norms = torch._foreach_norm([p.detach() for p in self.trained.values()])
        if not torch.stack([norm.float() for norm in norms]).isfinite().all():
            raise FloatingPointError(f"weights are no longer finite after step {self.step}. {self._recovery_hint()}")
        super().save()

    def state_dict(self):
        """All that a resumed run needs, as views of what is trained."""
        return {"model": {name: p.detach() for name, p in self.trained.items()},
                "optimizer": self.optimizer.state_dict(), "random": random_state(self.device)}

    def load_state_dict(self, state):
        """Go on from a saved state."""
        try:
            set_random_state(state["random"], self.device)
        except RuntimeError:
            raise damaged(self.folder / self.state_file, "'random' is no state of random numbers") from None
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    def _recovery_hint(self):
        spared = f"The last checkpoint in {self.folder} is untouched; begin" if self.folder else "Begin"
        return f"{spared} anew with a max_lr below {self.config.max_lr}"
