"""Runs that were killed, interrupted or went wrong, against runs that were not."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny_run import (
    CONFIG,
    HELD_OUT,
    SHAPE,
    TRAIN,
    Killed,
    a_model,
    killed_after,
    mutant_of_run,
    one_thread,
    run,
    same_weights,
    without_times,
)

from minillama.checkpoint import load_model
from minillama.train.pretrain import PretrainConfig, pretrain
from minillama.train.resume import load_training_state

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


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
import tiny_run as ours
from dataclasses import replace
import torch

torch.set_num_threads(1)
config = replace(ours.CONFIG, steps=40)
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
    here = Path(__file__).parents[1]
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
    config = replace(CONFIG, warmup_steps=0, weight_decay=0.0, checkpoint_every=1)
    object.__setattr__(config, "max_lr", 4e18)  # beyond what a config takes
    with pytest.raises(FloatingPointError, match="untouched"):
        run(tmp_path, config)
    state = load_training_state(tmp_path / "training_state.pt")
    assert all(weight.isfinite().all() for weight in state["model"].values())


def test_a_changed_setting_is_refused_by_name(tmp_path):
    run(tmp_path)
    for field in fields(PretrainConfig):
        if field.name in ("steps", "checkpoint_every", "device"):  # of devices there may be one alone
            continue
        value = getattr(CONFIG, field.name)
        other = {"dtype": "bfloat16", "min_lr_ratio": 0.5}.get(field.name)
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


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = a_model(dropout=0.2)
    torch.manual_seed(3)
    run(tmp_path, model=model)
    assert torch.equal(torch.rand(4), expected)


def resumed(tmp_path):
    check_resumed_is_uninterrupted(tmp_path, [8])  # from the checkpoint of step 6


MUTANTS = [
    mutant_of_run("self.optimizer.load_state_dict(state[\"optimizer\"])", "pass", resumed, "training_run"),
    mutant_of_run("weight.copy_(state[\"model\"][name])", "pass", resumed, "training_run"),
    mutant_of_run("set_random_state(state[\"random\"], self.device)", "pass", resumed, "training_run"),
    mutant_of_run("self.step = done\n", "self.step = done - 1\n", resumed, "resumable"),
    mutant_of_run("count < done:", "count < done + 1:", resumed, "resume"),
    mutant_of_run("if not (math.isfinite(loss) and math.isfinite(norm)):", "if False:",
                  test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint, "training_run"),
    mutant_of_run("if name != total and (name not in theirs or theirs[name] != ours[name]):", "if False:",
                  test_a_changed_setting_is_refused_by_name, "resume"),
    mutant_of_run("self._due(self.config.checkpoint_every) or stop:",
                  "self._due(self.config.checkpoint_every):", test_the_first_ctrl_c_finishes_the_step_and_saves,
                  "resumable"),
    mutant_of_run("with torch.random.fork_rng(devices=[device] if device.type == \"cuda\" else []):",
                  "if True:", test_the_callers_random_numbers_are_left_alone, "resume"),
]
