"""A run of pretraining that takes a tenth of a second, whole or broken off, for the tests of `train`."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant
from torch.nn import functional as F

from minillama.config import ModelConfig
from minillama.train.data import Tokens
from minillama.train.pretrain import PretrainConfig, pretrain
from minillama.transformer import Transformer

V = 13
SHAPE = ModelConfig(16, 1, 2, V, hidden_dim=24, max_seq_len=8, tie_embeddings=True)
CONFIG = PretrainConfig(steps=11, batch_size=3, seq_len=7, max_lr=1e-2, warmup_steps=2, eval_every=4, eval_windows=3,
                        checkpoint_every=3, seed=5)


@pytest.fixture
def one_thread():
    """Sums of floats depend on how they are shared out among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_model(shape=SHAPE, dropout=0.0):
    torch.manual_seed(1)
    model = Transformer(shape)
    if dropout:
        model.norm.register_forward_hook(lambda part, _, x: F.dropout(x, dropout, part.training))
    return model


def a_row(n=400, seed=0, step=3):
    """Counting in threes, with every fifth token random: something to learn, something not."""
    ids = np.arange(n) * step % V
    ids[::5] = np.random.default_rng(seed).integers(0, V, len(ids[::5]))
    return Tokens(ids.astype(np.uint16), V)


TRAIN, HELD_OUT = a_row(), a_row(60, seed=9, step=4)  # told apart by their steps


def run(folder, config=CONFIG, model=None, resume=False):
    model = a_model() if model is None else model
    return model, pretrain(model, TRAIN, HELD_OUT, config, folder, resume=resume, progress=False)


def without_times(history):
    return [{key: value for key, value in values.items() if key != "seconds"} for values in history]


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class Killed(Exception):
    pass


def kill_after(passes, model):
    """Have `model` raise `Killed` when it is to train on one batch more than `passes`."""
    left = [passes]

    def count(part, _):
        left[0] -= part.training
        if left[0] < 0:
            raise Killed

    model.register_forward_pre_hook(count)
    return model


def killed_after(forward_passes, dropout=0.2):
    """A model that dies in its n-th forward pass of training."""
    return kill_after(forward_passes, a_model(dropout=dropout))


def mutant_of_run(old, new, law, module="pretrain"):
    def in_a_folder():
        with tempfile.TemporaryDirectory() as folder:
            law(Path(folder))

    return Mutant(f"minillama.train.{module}", old, new, in_a_folder)
