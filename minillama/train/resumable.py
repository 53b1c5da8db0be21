"""A run that may be killed at any moment and resumed: its steps, its checkpoints, its metrics, requests to stop.

The state is saved before the first step, every so many, where the run is asked to stop, and at the end. What was
recorded reaches the disk before a state says that it is done.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

from minillama.system.files import atomic_write, open_to_append
from minillama.system.interrupts import stop_requested
from minillama.system.terminal import tqdm
from minillama.train import data_parallel
from minillama.train.resume import read_metrics, read_state, write_metrics

METRICS_FILE = "metrics.jsonl"


class ResumableRun:
    """A run in progress: the number of finished steps and the history so far.

    What a kind of run adds: its `name`, `advance()` (one step: learn, record -> what the progress bar shows),
    `state_dict()`, `load_state_dict(state)`, `rate_words(steps before)` and, where it is `evaluated`, `evaluate()`.
    `signature`: the settings and data that a resumed run must share. Without a folder nothing is written.
    """

    name, total, unit = "run", "steps", "step"  # total: the setting that says how long the run is; unit: of its metrics
    state_file, evaluated = "state.pt", False
    needs: tuple[str, ...] = ("loss",)  # what each row of the metrics holds

    def __init__(self, config, folder, signature, end):
        self.config, self.signature, self.end = config, signature, end
        self.folder = None if folder is None else Path(folder)
        self.step, self.history, self.metrics = 0, [], None
        self.is_main = data_parallel.is_main_process()  # of several processes one writes

    def train(self, resume=False, progress=True):
        """All steps, from the start or from the last checkpoint -> the history."""
        if self.folder is None and resume:
            raise ValueError("resume=True needs the folder that holds the run")
        with stop_requested() as request:
            if self.folder is not None:
                self.resume(progress) if resume else self.start()
                data_parallel.wait_for_all()
            writes = self.folder is not None and self.is_main
            with open_to_append(self.folder / METRICS_FILE) if writes else contextlib.nullcontext() as self.metrics:
                self._steps(request, progress and self.is_main)
        return self.history

    def start(self):
        """A fresh folder; what a run left that was killed before its first checkpoint is overwritten."""
        if not self.is_main:
            return
        if (self.folder / self.state_file).exists():
            raise FileExistsError(f"{self.folder} already holds a run: go on with it (resume=True), or choose another "
                                  "folder")
        write_metrics(self.folder / METRICS_FILE, [])

    def resume(self, progress=False):
        """Go on from the last checkpoint: weights, optimizer and history as it left them."""
        state = read_state(self.folder / self.state_file, self.state(), self.total)
        done, asked, before = state[self.unit], self.signature[self.total], state["signature"][self.total]
        if done > self.end:
            raise ValueError(f"cannot resume: {self.total} is {asked}, but the run in {self.folder} has gone beyond "
                             f"that: use --{self.total} {before}, or begin anew in another --out")
        # the other processes keep no file: any entry says that the run is under way
        self.history = [{self.unit: done}]
        if self.is_main:
            path = self.folder / METRICS_FILE
            self.history = read_metrics(path, done, self.needs, self.unit, self._evaluated_at(done, before))
            write_metrics(path, self.history)  # without what came after the checkpoint
        self.load_state_dict(state)
        self.step = done
        if asked != before and progress and self.is_main:
            print(f"{self.folder}: {self.total} {before} -> {asked}, on the new schedule from {self.unit} {done} on: "
                  f"{self.rate_words(before)}", file=sys.stderr)

    def _evaluated_at(self, done, before):
        """Whether the run, of a total of `before`, recorded an evaluation at this step."""
        every = self.config.eval_every if self.evaluated else 0
        return self.evaluated and (done in (0, before) or every > 0 and done % every == 0)

    def _steps(self, request, progress):
        """All steps that are left, with evaluations and checkpoints on the way."""
        if self.step == 0 and not self.history:
            if self.evaluated:
                self.evaluate()
            self.save()
        with tqdm(initial=self.step, total=self.end, desc=self.name, unit=self.unit, disable=not progress) as bar:
            while self.step < self.end:
                bar.set_postfix_str(self.advance(), False)
                bar.update()
                if self.evaluated and self._due(self.config.eval_every):
                    self.evaluate()
                stop = data_parallel.mean(torch.tensor(float(bool(request)))) > 0  # one is asked: all stop here
                if self._due(self.config.checkpoint_every) or stop:
                    self.save()
                if stop:
                    raise request.stop(f"stopped after {self.unit} {self.step} of {self.end}", self.folder)

    def _due(self, every):
        return self.step == self.end or every and self.step % every == 0

    def record(self, row):
        """Into the history, and at once into the file."""
        self.history.append(row)
        if self.metrics:
            self.metrics.write(json.dumps(row) + "\n")
            self.metrics.flush()

    def save(self):
        """The checkpoint."""
        self.write_state(self.state())

    def write_state(self, state):
        """Replace the checkpoint. Metrics reach the disk first: it must never be ahead of them."""
        if self.metrics:
            os.fsync(self.metrics.fileno())
            with atomic_write(self.folder / self.state_file) as file:
                torch.save(state, file)

    def state(self):
        """All that a resumed run needs."""
        return {"kind": self.name, "signature": self.signature, self.unit: self.step, **self.state_dict()}
