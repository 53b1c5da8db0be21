"""Pretraining against a bare loop with PyTorch's optimizer; interrupted runs are in test_resume.py."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_run import (
    CONFIG,
    HELD_OUT,
    TRAIN,
    Killed,
    V,
    a_model,
    killed_after,
    mutant_of_run,
    one_thread,
    run,
    same_weights,
)
from torch.nn import functional as F

from minillama.checkpoint import load_model
from minillama.train.data import Batches, Tokens
from minillama.train.optimizer import AdamW
from minillama.train.perplexity import held_out_loss
from minillama.train.pretrain import PretrainConfig, batch_losses, pretrain
from minillama.train.training_run import train_step

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def bare_loop(model, config):
    """The same training, written with PyTorch's AdamW, clipping and loss in one breath."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
         {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}],
        betas=(config.beta1, config.beta2), eps=config.eps, foreach=True)
    batches, losses = Batches(TRAIN, config.batch_size, config.seq_len, config.seed), []
    for step in range(config.steps):
        done = (step + 1 - config.warmup_steps) / (config.steps - config.warmup_steps)
        rate = (step + 1) / config.warmup_steps if step < config.warmup_steps else (
            config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = config.max_lr * rate
        tokens_BT, targets_BT = batches(step)
        loss = F.cross_entropy(model(tokens_BT).reshape(-1, V), targets_BT.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_run_is_the_bare_loop_bit_for_bit(tmp_path):
    config = replace(CONFIG, clip_norm=0.3)  # small enough to bite in every step
    model, history = run(tmp_path, config)
    theirs = a_model()
    losses = bare_loop(theirs, config)
    assert [values["loss"] for values in history if "loss" in values] == losses
    assert min(values["grad_norm"] for values in history if "loss" in values) > 0.3
    assert same_weights(model, theirs)


def test_the_finished_model_is_saved_in_metas_form(tmp_path):
    model, _ = run(tmp_path)
    loaded, tokenizer = load_model(tmp_path)
    assert tokenizer is None and same_weights(model, loaded)
    assert (loaded.config.dim, loaded.config.max_seq_len) == (16, 8)


def test_what_can_be_learned_is_learned(tmp_path):
    """Counting in threes modulo 13 is certain: from ln 13 = 2.56 nats to next to nothing."""
    config = replace(CONFIG, steps=60, max_lr=3e-2, eval_every=0, checkpoint_every=0)
    counting = Tokens(np.arange(400) * 3 % V, V)
    history = pretrain(a_model(), counting, counting, config, tmp_path, progress=False)
    assert history[0]["held_out_loss"] > 2.4 and history[-1]["held_out_loss"] < 0.1


def test_history_and_metrics_file_agree_and_evaluations_are_of_the_held_out_text(tmp_path):
    model, history = run(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [values["step"] for values in history if "loss" in values] == list(range(1, 12))
    evaluations = {values["step"]: values["held_out_loss"] for values in history if "held_out_loss" in values}
    assert list(evaluations) == [0, 4, 8, 11]
    assert evaluations[0] == held_out_loss(a_model(), HELD_OUT, 7, 3)
    assert evaluations[11] == pytest.approx(held_out_loss(model, HELD_OUT, 7, 3), rel=1e-6)  # other batch sizes
    assert all(values["seconds"] > 0 for values in history if "loss" in values)


@pytest.mark.parametrize("k", [2, 3])
def test_k_small_batches_make_the_gradient_of_one_large_batch(k):
    """1e-6 of the largest entry: the same fp32 terms, added in another order."""
    tokens_BT, targets_BT = Batches(TRAIN, 2 * k, 7, seed=0)(0)
    results = []
    for size in (2 * k, 2):
        model = a_model()
        optimizer = AdamW(model.parameters(), lr=0.0)
        parts = list(zip(tokens_BT.split(size), targets_BT.split(size), strict=True))
        loss, norm = train_step(optimizer, batch_losses(model, parts), clip_norm=0.0).tolist()
        results.append((loss, norm, [p.grad for p in model.parameters()]))
    (whole_loss, whole_norm, whole), (loss, norm, summed) = results
    assert loss == pytest.approx(whole_loss, rel=1e-6) and norm == pytest.approx(whole_norm, rel=1e-6)
    for a, b in zip(whole, summed, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * a.abs().max().item())


def test_accumulation_draws_the_sequences_of_the_large_batch(tmp_path):
    """Losses of the first step, before any update, and of the later ones, as near as Adam lets them stay."""
    large = run(tmp_path / "large", replace(CONFIG, batch_size=6))[1]
    small = run(tmp_path / "small", replace(CONFIG, batch_size=2, grad_accumulation=3))[1]
    for a, b in zip(large, small, strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-6 if a["step"] <= 1 else 1e-3)


def test_data_and_model_that_do_not_fit_are_refused(tmp_path):
    other = Tokens(TRAIN.ids, V + 1)
    for train, held_out, name in ((other, HELD_OUT, "train"), (TRAIN, other, "held_out")):
        with pytest.raises(ValueError, match=f"{name}_tokens have a vocabulary of 14 pieces, the model one of 13"):
            pretrain(a_model(), train, held_out, CONFIG, tmp_path, progress=False)
    with pytest.raises(ValueError, match="seq_len 9 is longer than the model's max_seq_len 8"):
        run(tmp_path, replace(CONFIG, seq_len=9))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not present"):
            run(tmp_path, replace(CONFIG, device="cuda"))
    assert not list(tmp_path.iterdir())


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"seq_len": -1}, {"max_lr": -1.0}, {"max_lr": math.nan},
                  {"beta2": 1.5}, {"seed": -1}, {"min_lr_ratio": 2.0}, {"dtype": "float16"},
                  {"steps": 30, "warmup_steps": 30}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PretrainConfig(**wrong)
    for wrong in ({"steps": 1.0}, {"steps": True}, {"max_lr": "1e-3"}, {"device": None}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            PretrainConfig(**wrong)


def test_short_weights_are_trained_with_an_fp32_copy(tmp_path):
    config = replace(CONFIG, dtype="bfloat16")
    model, history = run(tmp_path / "whole", config)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    full = run(tmp_path / "full")[1]
    # bfloat16 has 8 bits: losses near 2.5 within some 2^-8 of those in fp32
    assert history[-2]["loss"] == pytest.approx(full[-2]["loss"], abs=0.05)
    killed = killed_after(5, dropout=0.0)
    with pytest.raises(Killed):
        run(tmp_path / "killed", config, killed)
    assert same_weights(run(tmp_path / "killed", config, resume=True)[0], model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_follows_the_cpu(tmp_path):
    model, history = run(tmp_path / "gpu", replace(CONFIG, device="cuda"))
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert history[-1]["held_out_loss"] == pytest.approx(run(tmp_path / "cpu")[1][-1]["held_out_loss"], abs=1e-3)


MUTANTS = [
    mutant_of_run("targets_BT) / (len(batches_of_step) / processes)", "targets_BT)",
                  lambda _: test_k_small_batches_make_the_gradient_of_one_large_batch(3)),
    mutant_of_run("    optimizer.zero_grad()\n", "    pass\n", test_a_run_is_the_bare_loop_bit_for_bit, "training_run"),
    mutant_of_run("clip_norm or math.inf)", "math.inf)", test_a_run_is_the_bare_loop_bit_for_bit, "training_run"),
    mutant_of_run("learning_rate(self.step,", "learning_rate(self.step + 1,", test_a_run_is_the_bare_loop_bit_for_bit,
                  "training_run"),
    mutant_of_run("self.batches(step))", "self.batches(0))", test_a_run_is_the_bare_loop_bit_for_bit),
    mutant_of_run("self.held_out_tokens = held_out_tokens", "self.held_out_tokens = train_tokens",
                  test_history_and_metrics_file_agree_and_evaluations_are_of_the_held_out_text),
    mutant_of_run("self.step == self.end or every", "every",
                  test_history_and_metrics_file_agree_and_evaluations_are_of_the_held_out_text, "resumable"),
]
