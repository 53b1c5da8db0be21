"""Pretraining: predict the next token, step after step, in a run that may be killed at any moment and resumed.

A run's folder (`training_run`) holds, at the end, the model in Meta's form. A run that was killed and resumed ends with
the same weights and metrics, bit for bit, as one that was not: for the same machine, torch and number of threads,
because sums of floats depend on their order.
"""

from dataclasses import dataclass

import torch

from minillama.checkpoint import save_model
from minillama.checkpoint.convert import save_with_tokenizer
from minillama.config_checks import MOST, choice, device, number
from minillama.system.memory import require_device
from minillama.train import data_parallel
from minillama.train.mixture import batches_of, held_out_loss
from minillama.train.resume import settings_of
from minillama.train.sequence_loss import next_token_loss
from minillama.train.sharded_checkpoint import take_part_in_saving
from minillama.train.training_run import TrainingConfig, TrainingRun


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Everything that decides a run's result, besides the model and the data. Optimizer: LLaMA's (arXiv
    2302.13971, section 2.3), with a rate and a warm-up for models of less than a million parameters."""

    steps: int = number(600, 1, MOST)
    batch_size: int = number(8, 1, MOST)
    seq_len: int = number(96, 1, MOST)  # tokens of a sequence
    max_lr: float = number(4e-3, 1e-12, 10)
    warmup_steps: int = number(30, 0, MOST)
    weight_decay: float = number(0.1, 0, 10)
    eval_every: int = number(100, 0, MOST)
    eval_windows: int = number(64, 0, MOST)  # sequences of the held-out text; 0: all of it
    device: str = device()  # "cpu", "cuda", "cuda:1", "mps"
    dtype: str = choice("float32", "float32", "bfloat16")  # of the weights; the optimizer's are fp32


def pretrain(model, train_tokens, held_out_tokens, config, out_dir, resume=False, progress=True,
             tokenizer_path=None, tokenizer=None, facts=None, kind=None):
    """Train `model` in place on `train_tokens` (see `train.data`, `train.mixture`) -> the history, as in metrics.jsonl.

    The history is a list of {"step", "loss", "lr", "grad_norm", "seconds"} (loss: mean nats per token of the step's
    batch; grad_norm: before clipping; seconds: of this step alone) and, of evaluations, {"step", "held_out_loss"}; step
    counts finished updates. resume=True goes on from the last checkpoint in `out_dir`, if model, data and settings are
    those it had (`checkpoint_every` may differ, and `steps`: see `training_run`). facts: {name: plain value} of more
    that has to be the same, such as a command's other flags. The tokenizer, or a copy of its file, goes beside the
    model. kind: another run (`sharded`, `blank_infilling`).

    Raises ValueError where parts do not fit, FileExistsError and FileNotFoundError where `out_dir` holds a run and
    should not, or should and does not; FloatingPointError when the loss is no longer finite, the last checkpoint stays
    as it was. Ctrl-C, SIGTERM and SIGHUP finish the step, save, and raise `interrupts.Interrupted` (a
    KeyboardInterrupt) or `Terminated` (a SystemExit); a second one stops at once.
    """
    _check_fit(model, train_tokens, held_out_tokens, config)
    model.to(config.device, getattr(torch, config.dtype))
    kind = kind or PretrainRun
    history = kind(model, train_tokens, held_out_tokens, config, out_dir, facts).train(resume, progress)
    if not data_parallel.is_main_process():
        take_part_in_saving(model)
    elif tokenizer is None:
        save_model(out_dir, model, tokenizer_path)  # Meta's form, beside the run's own files
    else:
        save_with_tokenizer(out_dir, model, tokenizer)
    return history


def batch_losses(model, batches_of_step, processes=1):
    """Yield the losses of (tokens_BT, targets_BT) of equal size, each divided by their number: their sum is the mean
    cross-entropy, in fp32, over all of them, so that k batches of B sequences are one batch of k B. One of several
    processes yields its share of them, times the number of processes: of what each adds, the mean is taken."""
    for tokens_BT, targets_BT in data_parallel.shard(batches_of_step, model):
        yield next_token_loss(model, tokens_BT, targets_BT) / (len(batches_of_step) / processes)


class PretrainRun(TrainingRun):
    """A run of pretraining: batches drawn from a row of tokens, evaluated on another."""

    name = "pretrain"

    def __init__(self, model, train_tokens, held_out_tokens, config, out_dir, facts=None):
        data = {"train_tokens": train_tokens.fingerprint(), "held_out_tokens": held_out_tokens.fingerprint()}
        signature = {**(facts or {}), **settings_of(config), **settings_of(model.config), **data}
        super().__init__(model, config, out_dir, signature)
        self.held_out_tokens = held_out_tokens
        rows = config.batch_size * config.grad_accumulation
        self.batches = batches_of(train_tokens, rows, config.seq_len, config.seed)
        self.step_tokens = rows * config.seq_len

    def losses(self, step):
        tokens_BT, targets_BT = (ids.to(self.device) for ids in self.batches(step))
        size = self.config.batch_size
        batches = list(zip(tokens_BT.split(size), targets_BT.split(size), strict=True))
        return batch_losses(self.learner, batches, self.processes)

    def held_out_loss(self):
        return held_out_loss(self.model, self.held_out_tokens, self.config.seq_len, self.config.eval_windows,
                             self.config.batch_size)


def _check_fit(model, train_tokens, held_out_tokens, config):
    for name, tokens in (("train_tokens", train_tokens), ("held_out_tokens", held_out_tokens)):
        if tokens.vocab_size != model.config.vocab_size:
            raise ValueError(f"{name} have a vocabulary of {tokens.vocab_size} pieces, the model one "
                             f"of {model.config.vocab_size}: build the model with the data's")
    check_shape(model.config, config)


def check_shape(shape, config):
    """ValueError where a model of that shape cannot be trained so: too long sequences, no such device."""
    if config.seq_len > shape.max_seq_len:
        raise ValueError(f"seq_len {config.seq_len} is longer than the model's max_seq_len {shape.max_seq_len}")
    require_device(config.device)
