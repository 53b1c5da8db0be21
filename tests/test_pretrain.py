"""Pretraining against a bare loop with PyTorch's optimizer, and interrupted runs against uninterrupted ones."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import Mutant
from torch.nn import functional as F

from minillama.checkpoint import load_model
from minillama.config import ModelConfig
from minillama.train.data import Batches, Tokens
from minillama.train.held_out import held_out_loss
from minillama.train.optimizer import AdamW
from minillama.train.pretrain import PretrainConfig, load_training_state, pretrain, train_step
from minillama.transformer import Transformer

V = 13
SHAPE = ModelConfig(16, 1, 2, V, hidden_dim=24, max_seq_len=8, tie_embeddings=True)
CONFIG = PretrainConfig(steps=11, batch_size=3, seq_len=7, max_lr=1e-2, warmup_steps=2, eval_every=4, eval_windows=3,
                        checkpoint_every=3, seed=5)


@pytest.fixture(autouse=True)
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
        loss, norm = train_step(model, optimizer, parts, clip_norm=0.0).tolist()
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


class Killed(Exception):
    pass


def killed_after(forward_passes, dropout=0.2):
    """A model that dies in its n-th forward pass of training."""
    model, left = a_model(dropout=dropout), [forward_passes]

    def count(part, _):
        left[0] -= part.training
        if left[0] < 0:
            raise Killed

    model.register_forward_pre_hook(count)
    return model


def broken_off_and_resumed(folder, after):
    with pytest.raises(Killed):
        run(folder, model=killed_after(after))
    return run(folder, model=a_model(dropout=0.2), resume=True)


def check_resumed_is_uninterrupted(tmp_path, breaks):
    whole_model, whole = run(tmp_path / "whole", model=a_model(dropout=0.2))
    for after in breaks:
        folder = tmp_path / str(after)
        model, history = broken_off_and_resumed(folder, after)
        assert same_weights(model, whole_model)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert without_times(history) == without_times(lines) == without_times(whole)
        states = [load_training_state(place / "training_state.pt") for place in (folder, tmp_path / "whole")]
        for key in ("m", "v"):
            assert all(map(torch.equal, *(state["optimizer"][key] for state in states)))
        assert states[0]["optimizer"]["steps"] == states[1]["optimizer"]["steps"]
        assert torch.equal(states[0]["random"]["cpu"], states[1]["random"]["cpu"])


def test_a_run_broken_off_in_any_step_ends_like_one_that_was_not(tmp_path):
    check_resumed_is_uninterrupted(tmp_path, range(11))


def test_a_run_may_be_broken_off_many_times(tmp_path):
    whole_model, whole = run(tmp_path / "whole", model=a_model(dropout=0.2))
    with pytest.raises(Killed):
        run(tmp_path / "often", model=killed_after(4))
    for after in (2, 0, 5, 1, 3):
        with pytest.raises(Killed):
            run(tmp_path / "often", model=killed_after(after), resume=True)
    model, history = run(tmp_path / "often", model=a_model(dropout=0.2), resume=True)
    assert same_weights(model, whole_model) and without_times(history) == without_times(whole)


KILL_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
import test_pretrain as ours
import torch

torch.set_num_threads(1)
config = ours.replace(ours.CONFIG, steps=40)
folder, left, first = Path(sys.argv[1]), random.Random(int(sys.argv[2])), True
for attempt in range(4):
    child = os.fork()
    if child == 0:
        ours.run(folder, config, resume=(folder / "training_state.pt").exists())
        os._exit(0)
    if attempt < 3:
        metrics, lines = folder / "metrics.jsonl", left.randrange(14) + 14 * attempt
        while not metrics.exists() or metrics.read_bytes().count(b"\\n") < lines:
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the run ended by itself")
        time.sleep(left.random() * 0.005)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert (status == signal.SIGKILL) == (attempt < 3), (attempt, status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which Windows does not have")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_a_run_killed_three_times_at_random_moments_ends_like_one_that_was_not(tmp_path, seed):
    """SIGKILL, wherever it strikes: in a step, in an evaluation, while a checkpoint is written."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILL_AT_RANDOM, str(tmp_path / "killed"), str(seed)], check=True,
                   env=environment, timeout=120)
    whole_model, whole = run(tmp_path / "whole", replace(CONFIG, steps=40))
    assert same_weights(load_model(tmp_path / "killed")[0], whole_model)
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert without_times(lines) == without_times(whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    model, history = run(tmp_path)
    (tmp_path / "consolidated.00.pth").unlink()  # as if killed between the last checkpoint and the result
    again, same = run(tmp_path, resume=True)
    assert same_weights(model, again) and same == history
    assert same_weights(model, load_model(tmp_path)[0])


def test_half_a_line_of_metrics_is_cut_and_lost_lines_are_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, model=killed_after(7, dropout=0.0))
    metrics = tmp_path / "metrics.jsonl"
    kept = metrics.read_text()
    metrics.write_text(kept + '{"step": 8, "lo')
    model, history = run(tmp_path, resume=True)
    assert without_times(history) == without_times(run(tmp_path / "whole")[1])
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    with pytest.raises(ValueError, match="does not hold the 11 steps"):
        run(tmp_path, resume=True)


def test_the_first_ctrl_c_finishes_the_step_and_saves(tmp_path):
    model, passes = a_model(), []

    def press(part, _):
        passes.append(part.training)
        if sum(passes) == 5:
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(press)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 of 11"):
        run(tmp_path, model=model)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_training_state(tmp_path / "training_state.pt")["step"] == 5
    whole_model, whole = run(tmp_path / "whole")
    resumed, history = run(tmp_path, resume=True)
    assert same_weights(resumed, whole_model) and without_times(history) == without_times(whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    model = a_model()

    def press(part, _):
        if part.training:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    model.register_forward_pre_hook(press)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=model)
    assert load_training_state(tmp_path / "training_state.pt")["step"] == 0


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(tmp_path):
    model, passes = a_model(), []

    def poison(part, _, logits):
        passes.append(part.training)
        return logits * math.nan if sum(passes) == 8 else logits

    model.register_forward_hook(poison)
    with pytest.raises(FloatingPointError, match="step 8: loss nan"):
        run(tmp_path, model=model)
    state = load_training_state(tmp_path / "training_state.pt")
    assert state["step"] == 6 and all(weight.isfinite().all() for weight in state["model"].values())
    resumed, _ = run(tmp_path, resume=True)
    assert same_weights(resumed, run(tmp_path / "whole")[0])


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    config = replace(CONFIG, max_lr=4e18, warmup_steps=0, weight_decay=0.0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="untouched"):
        run(tmp_path, config)
    state = load_training_state(tmp_path / "training_state.pt")
    assert all(weight.isfinite().all() for weight in state["model"].values())


def test_a_changed_setting_is_refused_by_name(tmp_path):
    run(tmp_path)
    for field in fields(PretrainConfig):
        value = getattr(CONFIG, field.name)
        other = {"device": "cpu:0", "dtype": "bfloat16", "min_lr_ratio": 0.5}.get(field.name)
        other = other or (value / 2 if field.type is float else value + 1)
        with pytest.raises(ValueError, match=f"cannot resume: {field.name} is "):
            run(tmp_path, replace(CONFIG, **{field.name: other}), resume=True)
    with pytest.raises(ValueError, match="cannot resume: hidden_dim is 32"):
        run(tmp_path, model=a_model(replace(SHAPE, hidden_dim=32)), resume=True)
    for name, data in (("train_tokens", (HELD_OUT, HELD_OUT)), ("held_out_tokens", (TRAIN, TRAIN))):
        with pytest.raises(ValueError, match=f"cannot resume: {name} is "):
            pretrain(a_model(), *data, CONFIG, tmp_path, resume=True, progress=False)


def test_nothing_to_resume_and_a_run_in_the_way_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(tmp_path, resume=True)
    run(tmp_path)
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(tmp_path)
    (tmp_path / "training_state.pt").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        run(tmp_path, resume=True)


def test_what_a_run_left_before_its_first_checkpoint_is_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "held_out_loss": 1.0}\n')
    _, history = run(tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(history)


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


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = a_model(dropout=0.2)
    torch.manual_seed(3)
    run(tmp_path, model=model)
    assert torch.equal(torch.rand(4), expected)


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


def _mutant(old, new, law, module="pretrain"):
    def in_a_folder():
        with tempfile.TemporaryDirectory() as folder:
            law(Path(folder))

    return Mutant(f"minillama.train.{module}", old, new, in_a_folder)


def resumed(tmp_path):
    check_resumed_is_uninterrupted(tmp_path, [8])  # from the checkpoint of step 6


MUTANTS = [
    _mutant("loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()) / len(batches_of_step)",
            "loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())",
            lambda _: test_k_small_batches_make_the_gradient_of_one_large_batch(3)),
    _mutant("    optimizer.zero_grad()\n", "    pass\n", test_a_run_is_the_bare_loop_bit_for_bit),
    _mutant("clip_norm or math.inf)", "math.inf)", test_a_run_is_the_bare_loop_bit_for_bit),
    _mutant("learning_rate(self.step,", "learning_rate(self.step + 1,", test_a_run_is_the_bare_loop_bit_for_bit),
    _mutant("self.batches(self.step))", "self.batches(0))", test_a_run_is_the_bare_loop_bit_for_bit),
    _mutant("model, held_out_tokens, config, out_dir\n", "model, train_tokens, config, out_dir\n",
            test_history_and_metrics_file_agree_and_evaluations_are_of_the_held_out_text),
    _mutant("self.step == self.config.steps or every", "every",
            test_history_and_metrics_file_agree_and_evaluations_are_of_the_held_out_text),
    _mutant("self.optimizer.load_state_dict(state[\"optimizer\"])", "pass", resumed),
    _mutant("self.model.load_state_dict(state[\"model\"])", "pass", resumed),
    _mutant("set_random_state(state[\"random\"], self.config.device)", "pass", resumed),
    _mutant("self.step = state[\"step\"]", "self.step = state[\"step\"] - 1", resumed),
    _mutant("                kept.append(line)", "                kept.append(line)\n                step += 1",
            resumed, "resume"),
    _mutant("if not (math.isfinite(loss) and math.isfinite(norm)):", "if False:",
            test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint),
    _mutant("if theirs != ours:", "if False:", test_a_changed_setting_is_refused_by_name),
    _mutant("self._due(self.config.checkpoint_every) or asked_to_stop.is_set()",
            "self._due(self.config.checkpoint_every)", test_the_first_ctrl_c_finishes_the_step_and_saves),
    _mutant("with torch.random.fork_rng(devices=[device] if device.type == \"cuda\" else []):",
            "if True:", test_the_callers_random_numbers_are_left_alone, "resume"),
]
