"""A PPO run in its folder: `ppo_state.pt`, from which it goes on, and `metrics.jsonl`, a line for each iteration.

The state is saved before the first iteration, every so many, where the run is asked to stop, and at the end. What was
recorded is on the disk before a state says that it is done.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

from minillama.files import atomic_write, open_to_append
from minillama.train.resume import check_total, crc_of, model_facts, read_state, settings_of, truncate_metrics

STATE_FILE, METRICS_FILE = "ppo_state.pt", "metrics.jsonl"
TOTAL = "iterations"


def made_with(policy, reward_model, config, facts):
    """{name: plain value} of all that a run depends on, before its first iteration."""
    judge = model_facts(reward_model, "cpu")
    policy_facts = model_facts(policy, policy.tok_embeddings.weight.device)
    return {**(facts or {}), **settings_of(config), **policy_facts, "reward_kernels": judge["kernels"],
            "reward_model": crc_of(reward_model.state_dict().values())}


class RunFolder:
    """Where the run `ppo` is kept; without a folder nothing is. `history` holds what it has recorded."""

    def __init__(self, folder, ppo, made_with):
        self.folder, self.ppo, self.made_with = folder and Path(folder), ppo, made_with
        self.history, self.metrics = [], None

    @contextlib.contextmanager
    def opened(self, resume, progress):
        """Begin the run or take it up; inside, rows are recorded. ValueError, FileExistsError and FileNotFoundError as
        in `pretrain`."""
        if self.folder is None:
            if resume:
                raise ValueError("resume=True needs the folder that holds the run")
            yield self
            return
        path = self.folder / STATE_FILE
        if resume:
            self._resume(path, progress)
        elif path.exists():
            raise FileExistsError(f"{self.folder} already holds a run: go on with it (resume=True), or choose another "
                                  "folder")
        else:
            with atomic_write(self.folder / METRICS_FILE, "w"):
                pass
        with open_to_append(self.folder / METRICS_FILE) as self.metrics:
            if not resume:
                self.save()
            yield self

    def state(self):
        """All that a resumed run needs, as views of what is trained."""
        return {"kind": "ppo", "made_with": self.made_with, **self.ppo.state_dict()}

    def add(self, row):
        """Record an iteration, in the file at once."""
        self.history.append(row)
        if self.metrics:
            self.metrics.write(json.dumps(row) + "\n")
            self.metrics.flush()

    def save(self):
        """The state; metrics reach the disk first."""
        if self.metrics:
            os.fsync(self.metrics.fileno())
            with atomic_write(self.folder / STATE_FILE) as file:
                torch.save(self.state(), file)

    def _resume(self, path, progress):
        state, new = read_state(path, self.state(), TOTAL), self.made_with[TOTAL]
        done, old = state["iteration"], state["made_with"][TOTAL]
        changed = check_total(TOTAL, new, state, done, new, self.folder)
        self.history = truncate_metrics(self.folder / METRICS_FILE, done, needs=("score", "kl"), unit="iteration")
        self.ppo.load_state_dict(state)
        if changed and progress:
            print(f"{changed}, on the new schedule from iteration {done} on: the learning rates go from "
                  f"{max(0, 1 - (done - 1) / old):.0%} to {1 - done / new:.0%} of --lr and --value-lr", file=sys.stderr)
