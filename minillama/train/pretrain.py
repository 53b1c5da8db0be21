"""Pretraining: predict the next token, step after step, in a run that may be killed at any moment and
taken up again.

A run's folder holds `metrics.jsonl` (one JSON object per step or evaluation), `training_state.pt`
(weights, optimizer, step, random state) and, at the end, the model in Meta's form. A run that was
killed and resumed ends with the same weights and metrics, bit for bit, as one that was not: for the
same machine, torch and number of threads, because sums of floats depend on their order.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from minillama.checkpoint import save_model
from minillama.files import atomic_write
from minillama.train.data import Batches
from minillama.train.held_out import held_out_loss
from minillama.train.optimizer import AdamW, clip_gradients, learning_rate
from minillama.train.resume import (
    ctrl_c,
    load_training_state,
    own_random_state,
    random_state,
    set_random_state,
    truncate_metrics,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAY_BE_ZERO = {"warmup_steps", "eval_every", "eval_windows", "checkpoint_every", "seed"}  # of the integers
STATE_FILE, METRICS_FILE = "training_state.pt", "metrics.jsonl"


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a run's result, besides the model and the data. Optimizer: LLaMA's (arXiv
    2302.13971, section 2.3), with a rate and a warm-up for models of less than a million parameters."""

    steps: int = 600  # optimizer updates
    batch_size: int = 8  # sequences in memory at once
    seq_len: int = 96  # tokens of a sequence
    grad_accumulation: int = 1  # batches whose gradients make one update
    max_lr: float = 4e-3
    min_lr_ratio: float = 0.1  # the last step's rate, as a part of max_lr
    warmup_steps: int = 30
    weight_decay: float = 0.1  # per unit of learning rate
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0  # largest norm of all gradients together; 0: no clipping
    eval_every: int = 100  # steps; 0: only before the first and after the last
    eval_windows: int = 64  # sequences of the held-out text; 0: all of it
    checkpoint_every: int = 100  # steps; 0: only before the first and after the last
    seed: int = 0  # order of the data, and dropout where a model has it
    device: str = "cpu"  # "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "float32"  # of the weights, "float32" or "bfloat16"; the optimizer's are fp32 in any case

    def __post_init__(self):
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name), field.type)
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps: "
                             f"use fewer, for instance {self.steps // 20}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)} (float16 underflows)")


def _check_field(name, value, kind):
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise TypeError(f"{name} is {value!r}: it must be of type {kind.__name__}")
    if kind is str:
        return
    least = 1 if kind is int and name not in MAY_BE_ZERO else 0
    most = 1 if name in ("beta1", "beta2", "min_lr_ratio") else 2**62
    if not least <= value <= most:
        raise ValueError(f"{name} is {value!r}: allowed are {least} to {most}")


def pretrain(model, train_tokens, held_out_tokens, config, out_dir, resume=False, progress=True,
             tokenizer_path=None):
    """Train `model` in place on `train_tokens` (see `train.data`) -> the history, as in metrics.jsonl.

    The history is a list of {"step", "loss", "lr", "grad_norm", "seconds"} (loss: mean nats per token
    of the step's batch; grad_norm: before clipping; seconds: of this step alone) and, of evaluations,
    {"step", "held_out_loss"}; step counts finished updates. resume=True goes on from the last
    checkpoint in `out_dir`.

    Raises ValueError where parts do not fit, FileExistsError and FileNotFoundError where `out_dir`
    holds a run and should not, or should and does not; FloatingPointError when the loss is no longer
    finite, leaving the last checkpoint as it was. Ctrl-C finishes the step, saves, and raises
    KeyboardInterrupt; a second one stops at once.
    """
    out_dir = Path(out_dir)
    _check_fit(model, train_tokens, held_out_tokens, config)
    model.to(config.device, DTYPES[config.dtype]).train()
    run = Run(model, train_tokens, held_out_tokens, config, out_dir)
    with own_random_state(config.seed, config.device), ctrl_c() as asked_to_stop:
        run.resume() if resume else run.start()
        with open(out_dir / METRICS_FILE, "a", encoding="utf-8", newline="") as run.metrics:
            run.train(asked_to_stop, progress)
        save_model(out_dir, model, tokenizer_path)  # Meta's form, beside the run's own files
    return run.history


def train_step(model, optimizer, batches_of_step, clip_norm):
    """One update from one or more (tokens_BT, targets_BT) of equal size -> tensor (loss, gradient norm).

    The loss is the mean cross-entropy, in fp32, over all of them: k batches of B sequences are one
    batch of k B.
    """
    optimizer.zero_grad()
    losses = []
    for tokens_BT, targets_BT in batches_of_step:
        logits_BTV = model(tokens_BT)
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()) / len(batches_of_step)
        loss.backward()
        losses.append(loss.detach())
    norm = clip_gradients(optimizer.parameters, clip_norm or math.inf)
    optimizer.step()
    return torch.stack([sum(losses), norm])


class Run:
    """A run in progress: its parts, the number of finished steps and the history so far."""

    def __init__(self, model, train_tokens, held_out_tokens, config, out_dir):
        self.model, self.held_out_tokens, self.config, self.out_dir = model, held_out_tokens, config, out_dir
        self.batches = Batches(train_tokens, config.batch_size * config.grad_accumulation, config.seq_len,
                               config.seed)
        self.optimizer = AdamW(model.parameters(), config.max_lr, (config.beta1, config.beta2), config.eps,
                               config.weight_decay)
        self.made_with = {**asdict(config), **asdict(model.config),
                          "train_tokens": train_tokens.fingerprint(),
                          "held_out_tokens": held_out_tokens.fingerprint()}
        self.tokens_per_step = config.batch_size * config.grad_accumulation * config.seq_len
        self.step, self.history, self.metrics = 0, [], None

    def start(self):
        """A fresh folder; what a run left that was killed before its first checkpoint is overwritten."""
        if (self.out_dir / STATE_FILE).exists():
            raise FileExistsError(f"{self.out_dir} already holds a run: go on with it (resume=True), or "
                                  "choose another folder")
        with atomic_write(self.out_dir / METRICS_FILE, "w"):
            pass

    def resume(self):
        """Take up weights, optimizer, random state and history where the last checkpoint left them."""
        state = load_training_state(self.out_dir / STATE_FILE)
        for name, ours in self.made_with.items():
            theirs = state["made_with"].get(name)
            if theirs != ours:
                raise ValueError(f"cannot resume: {name} is {ours!r}, but the run in {self.out_dir} has "
                                 f"{theirs!r}: use that, or begin anew in another folder")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"], self.config.device)
        self.step = state["step"]
        self.history = truncate_metrics(self.out_dir / METRICS_FILE, self.step)

    def train(self, asked_to_stop, progress):
        """All steps that are left, with evaluations and checkpoints on the way."""
        steps = self.config.steps
        if not self.history:
            self.evaluate()
            self.save()
        with tqdm(initial=self.step, total=steps, desc="pretrain", unit="step", disable=not progress) as bar:
            while self.step < steps:
                loss, seconds = self.advance()
                bar.set_postfix_str(f"loss {loss:.3f}, {self.tokens_per_step / seconds:,.0f} tokens/s", False)
                bar.update()
                if self._due(self.config.eval_every):
                    self.evaluate()
                if self._due(self.config.checkpoint_every) or asked_to_stop.is_set():
                    self.save()
                if asked_to_stop.is_set():
                    raise KeyboardInterrupt(f"stopped after step {self.step} of {steps}, saved in "
                                            f"{self.out_dir}: resume=True goes on")

    def advance(self):
        """One step: draw, learn, record -> (loss, seconds)."""
        start, config = time.perf_counter(), self.config
        self.optimizer.lr = learning_rate(self.step, config.steps, config.max_lr, config.warmup_steps,
                                          config.min_lr_ratio)
        tokens_BT, targets_BT = (ids.to(config.device) for ids in self.batches(self.step))
        parts = zip(tokens_BT.split(config.batch_size), targets_BT.split(config.batch_size), strict=True)
        result = train_step(self.model, self.optimizer, list(parts), config.clip_norm)
        loss, norm = result.tolist()  # the step's one wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}. The last "
                                     f"checkpoint in {self.out_dir} is untouched; begin anew with a max_lr "
                                     f"below {config.max_lr}")
        self.step += 1
        seconds = time.perf_counter() - start
        self.record(loss=loss, lr=self.optimizer.lr, grad_norm=norm, seconds=round(seconds, 6))
        return loss, seconds

    def evaluate(self):
        loss = held_out_loss(self.model, self.held_out_tokens, self.config.seq_len, self.config.eval_windows,
                             self.config.batch_size)
        self.record(held_out_loss=loss)

    def record(self, **values):
        """Into the history, and at once into the file."""
        self.history.append({"step": self.step, **values})
        self.metrics.write(json.dumps(self.history[-1]) + "\n")
        self.metrics.flush()

    def save(self):
        """The checkpoint. Metrics reach the disk first: it must never be ahead of them."""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        if not torch.stack([norm.float() for norm in norms]).isfinite().all():
            raise FloatingPointError(f"weights are no longer finite after step {self.step}. The last "
                                     f"checkpoint in {self.out_dir} is untouched; begin anew with a max_lr "
                                     f"below {self.config.max_lr}")
        os.fsync(self.metrics.fileno())
        state = {"step": self.step, "model": self.model.state_dict(),
                 "optimizer": self.optimizer.state_dict(),
                 "random": random_state(self.config.device), "made_with": self.made_with}
        with atomic_write(self.out_dir / STATE_FILE) as file:
            torch.save(state, file)

    def _due(self, every):
        return self.step == self.config.steps or every and self.step % every == 0


def _check_fit(model, train_tokens, held_out_tokens, config):
    for name, tokens in (("train_tokens", train_tokens), ("held_out_tokens", held_out_tokens)):
        if tokens.vocab_size != model.config.vocab_size:
            raise ValueError(f"{name} have a vocabulary of {tokens.vocab_size} pieces, the model one "
                             f"of {model.config.vocab_size}: build the model with the data's")
    if config.seq_len > model.config.max_seq_len:
        raise ValueError(f"seq_len {config.seq_len} is longer than the model's max_seq_len "
                         f"{model.config.max_seq_len}")
    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not present.get(torch.device(config.device).type, lambda: True)():
        raise ValueError(f"device {config.device!r} is not present on this machine: use device='cpu'")
