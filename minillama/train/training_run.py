"""What all training here shares: step after step of AdamW, in a run that may be killed at any moment and taken up.

A run's folder holds `metrics.jsonl` (one JSON object per step or evaluation) and `training_state.pt` (the trained
weights, optimizer, step, random state). Only parameters with requires_grad are trained and saved: whole models, and
adapters on a frozen or quantized base, are the same run.

A resumed run may have another number of steps, a finished one too. The learning rate is a function of the step and
that number, so from where it stands it follows the schedule of the new number: it jumps, unless it is constant, and
what comes out does not depend on how often the run is stopped on the way.
"""

import json
import math
import os
import sys
import time
from functools import partial

import torch

from minillama.bounds import check_config
from minillama.files import atomic_write, open_to_append
from minillama.interrupts import stop_requested
from minillama.terminal import tqdm
from minillama.train import data_parallel
from minillama.train.optimizer import AdamW, clip_gradients, learning_rate
from minillama.train.paged_adamw import PagedAdamW
from minillama.train.resume import (
    check_total,
    crc_of,
    damaged,
    model_facts,
    own_random_state,
    random_state,
    read_state,
    set_random_state,
    truncate_metrics,
)

STATE_FILE, METRICS_FILE = "training_state.pt", "metrics.jsonl"


def check_training(config):
    """`check_config`, and the warm-up against the steps."""
    check_config(config)
    if config.warmup_steps >= config.steps:
        raise ValueError(f"warmup_steps {config.warmup_steps} leave nothing of {config.steps} steps: "
                         f"use fewer, for instance {config.steps // 20}")


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


class TrainingRun:
    """A run in progress: its parts, the number of finished steps and the history so far.

    What a kind of training adds: its `name`, `losses(step)` (the losses whose sum is the step's), `held_out_loss()`
    and `made_with`, the settings and data that a resumed run must share. Without a folder nothing is written.
    """

    name, total = "train", "steps"  # total: the setting that says how long the run is
    state_file, evaluated, drops_out = STATE_FILE, True, True

    def __init__(self, model, config, folder, made_with, device):
        self.model, self.config, self.folder, self.device = model, config, folder, device
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        adamw = AdamW
        if getattr(config, "paged_optimizer", 0):
            adamw = partial(PagedAdamW, resident_bytes=config.paged_optimizer * 2**20, folder=folder)
        self.optimizer = adamw(self.trained.values(), config.max_lr, (config.beta1, config.beta2), config.eps,
                               config.weight_decay)
        self.made_with = {**made_with, **{name: value for name, value in model_facts(model, device).items()
                                          if name not in made_with}}
        self.measured = {}  # of the step's losses, for the metrics; `losses` may set it
        self.step, self.history, self.metrics = 0, [], None
        self.learner = data_parallel.learner_of(model)  # what `losses` calls
        self.leads, self.processes = data_parallel.leads(), data_parallel.rank_and_size()[1]
        self.step_tokens = 0  # read in a step, for the progress bar; `losses` may set it

    def train(self, resume=False, progress=True):
        """All steps, from the start or from the last checkpoint -> the history; the model is in training mode."""
        self.model.train(self.drops_out)
        with own_random_state(self.config.seed, self.device), stop_requested() as request:
            if self.folder is None:
                self._steps(request, progress)
                return self.history
            self.resume(progress) if resume else self.start()
            data_parallel.wait_for_all()
            if not self.leads:
                self._steps(request, False)
                return self.history
            with open_to_append(self.folder / METRICS_FILE) as self.metrics:
                self._steps(request, progress)
        return self.history

    def start(self):
        """A fresh folder; what a run left that was killed before its first checkpoint is overwritten."""
        if not self.leads:
            return
        if (self.folder / self.state_file).exists():
            raise FileExistsError(f"{self.folder} already holds a run: go on with it (resume=True), or "
                                  "choose another folder")
        with atomic_write(self.folder / METRICS_FILE, "w"):
            pass

    def resume(self, progress=False):
        """Take up weights, optimizer, random state and history where the last checkpoint left them."""
        path = self.folder / self.state_file
        state = read_state(path, self.state(), self.total)
        done, end, asked = state["step"], self.config.steps, self.made_with[self.total]
        changed = check_total(self.total, asked, state, done, end, self.folder)
        every, ended = self.config.eval_every, done == state["made_with"][self.total]
        evaluated = self.evaluated and (ended or done == 0 or every > 0 and done % every == 0)
        # the other processes keep no file: any entry says that the run is under way
        self.history = (truncate_metrics(self.folder / METRICS_FILE, done, evaluated=evaluated) if self.leads
                        else [{"step": done}])
        try:
            set_random_state(state["random"], self.device)
        except RuntimeError:
            raise damaged(path, "'random' is no state of random numbers") from None
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["model"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = done
        if changed and progress and self.leads:
            before = next((row["lr"] for row in reversed(self.history) if "lr" in row), 0.0)
            print(f"{changed}, on the new schedule from step {done} on: the learning rate goes from {before:.3g} to "
                  f"{self.rate():.3g}", file=sys.stderr)

    def rate(self):
        """The learning rate of the next step."""
        config = self.config
        return learning_rate(self.step, config.steps, config.max_lr, config.warmup_steps, config.min_lr_ratio)

    def _steps(self, request, progress):
        """All steps that are left, with evaluations and checkpoints on the way."""
        steps = self.config.steps
        if self.step == 0 and not self.history:
            self.evaluate()
            self.save()
        with tqdm(initial=self.step, total=steps, desc=self.name, unit="step", disable=not progress) as bar:
            while self.step < steps:
                loss, seconds = self.advance()
                bar.set_postfix_str(f"loss {loss:.3f}, {self.step_tokens / seconds:,.0f} tokens/s", False)
                bar.update()
                if self._due(self.config.eval_every):
                    self.evaluate()
                stop = data_parallel.mean(torch.tensor(float(bool(request)))) > 0  # one is asked: all stop here
                if self._due(self.config.checkpoint_every) or stop:
                    self.save()
                if stop:
                    raise request.stop(f"stopped after step {self.step} of {steps}", self.folder)

    def advance(self):
        """One step: draw, learn, record -> (loss, seconds)."""
        start, self.optimizer.lr = time.perf_counter(), self.rate()
        result = train_step(self.optimizer, self.losses(self.step), self.config.clip_norm)
        loss, norm = result.tolist()  # the step's one wait for the device
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(f"step {self.step + 1}: loss {loss}, gradient norm {norm}. {self._way_out()}")
        self.step += 1
        seconds = time.perf_counter() - start
        self.record(loss=loss, lr=self.optimizer.lr, grad_norm=norm, seconds=round(seconds, 6), **self.measured)
        return loss, seconds

    def evaluate(self):
        if self.evaluated:
            self.record(held_out_loss=self.held_out_loss())

    def record(self, **values):
        """Into the history, and at once into the file."""
        self.history.append({"step": self.step, **values})
        if self.metrics:
            self.metrics.write(json.dumps(self.history[-1]) + "\n")
            self.metrics.flush()

    def save(self):
        """The checkpoint. Metrics reach the disk first: it must never be ahead of them."""
        norms = torch._foreach_norm([p.detach() for p in self.trained.values()])
        if not torch.stack([norm.float() for norm in norms]).isfinite().all():
            raise FloatingPointError(f"weights are no longer finite after step {self.step}. {self._way_out()}")
        if self.folder is None or not self.leads:
            return
        os.fsync(self.metrics.fileno())
        with atomic_write(self.folder / self.state_file) as file:
            torch.save(self.state(), file)

    def state(self):
        """All that a resumed run needs, as views of what is trained."""
        return {"kind": self.name, "step": self.step, "model": {name: p.detach() for name, p in self.trained.items()},
                "optimizer": self.optimizer.state_dict(), "random": random_state(self.device),
                "made_with": self.made_with}

    def _way_out(self):
        spared = f"The last checkpoint in {self.folder} is untouched; begin" if self.folder else "Begin"
        return f"{spared} anew with a max_lr below {self.config.max_lr}"

    def _due(self, every):
        return self.step == self.config.steps or every and self.step % every == 0


def frozen_fingerprint(model):
    """CRC-32 of all that training does not change, 0 if that is nothing: tells a resumed run that it is the same
    base, whatever its dtype or quantization."""
    return crc_of(tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.requires_grad)
