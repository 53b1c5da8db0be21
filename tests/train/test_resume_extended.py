"""Runs made longer: what comes out depends on where the run stood and on the new length, not on how it got there."""

from dataclasses import replace

import pytest
import torch
from letters import Letters, bare
from test_train_ppo import CONFIG as PPO_CONFIG
from test_train_ppo import QUESTIONS, a_reward_model
from test_train_ppo import a_model as a_policy
from test_train_reward import CONFIG as REWARD_CONFIG
from test_train_reward import a_body, pairs
from tiny_run import CONFIG, Killed, a_model, kill_after, mutant_of_run, one_thread, run, same_weights, without_times

from minillama.rlhf.train_ppo import train_ppo
from minillama.rlhf.train_reward import train_reward
from minillama.train.learning_rate import learning_rate

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
LONGER = replace(CONFIG, steps=20)


def rates(history):
    return [row["lr"] for row in history if "lr" in row]


def test_a_finished_run_goes_on_with_the_rest_of_the_longer_schedule(tmp_path, capsys):
    run(tmp_path)
    model, history = run(tmp_path, LONGER, resume=True)
    schedules = [[learning_rate(step, steps, CONFIG.max_lr, CONFIG.warmup_steps, CONFIG.min_lr_ratio)
                  for step in range(20)] for steps in (11, 20)]
    assert rates(history) == schedules[0][:11] + schedules[1][11:]
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 21))
    assert capsys.readouterr().err == ""  # progress=False
    assert same_weights(model, run(tmp_path, LONGER, resume=True)[0]), "and then it is finished again"


def test_killed_while_it_is_made_longer_is_as_if_not_killed(tmp_path):
    for name in ("whole", "killed"):
        run(tmp_path / name)
    whole, history = run(tmp_path / "whole", LONGER, resume=True)
    for after in (0, 5, 2):
        with pytest.raises(Killed):
            run(tmp_path / "killed", LONGER, model=kill_after(after, a_model()), resume=True)
    killed, again = run(tmp_path / "killed", LONGER, resume=True)
    assert same_weights(killed, whole) and without_times(again) == without_times(history)


def test_at_a_constant_rate_a_run_made_longer_is_the_long_run(tmp_path):
    steady = replace(CONFIG, min_lr_ratio=1.0, warmup_steps=0, eval_every=1)
    run(tmp_path / "grown", steady)
    grown, history = run(tmp_path / "grown", replace(steady, steps=20), resume=True)
    long, wanted = run(tmp_path / "long", replace(steady, steps=20))
    assert same_weights(grown, long) and without_times(history) == without_times(wanted)


def test_an_unfinished_run_may_change_its_length_and_no_run_ends_before_it_stands(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, model=kill_after(7, a_model()))  # the state is of step 6
    with pytest.raises(ValueError, match="cannot resume: steps is 5, but .* gone beyond that: use --steps 11"):
        run(tmp_path, replace(CONFIG, steps=5), resume=True)
    _, history = run(tmp_path, replace(CONFIG, steps=8), resume=True)
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 9))


def test_how_often_it_is_saved_may_change(tmp_path):
    whole = run(tmp_path / "whole")[0]
    with pytest.raises(Killed):
        run(tmp_path / "other", model=kill_after(7, a_model()))
    model, _ = run(tmp_path / "other", replace(CONFIG, checkpoint_every=5), resume=True)
    assert same_weights(model, whole)


def test_the_change_is_told_with_both_rates(tmp_path, capsys):
    from tiny_run import HELD_OUT, TRAIN

    from minillama.train.pretrain import pretrain

    run(tmp_path)
    pretrain(a_model(), TRAIN, HELD_OUT, LONGER, tmp_path, resume=True)
    assert (f"{tmp_path}: steps 11 -> 20, on the new schedule from step 11 on: the learning rate goes from 0.001 to "
            f"{learning_rate(11, 20, 1e-2, 2):.3g}\n") in capsys.readouterr().err


def practise(folder, iterations, resume, **options):
    policy = a_policy()
    config = replace(PPO_CONFIG, iterations=iterations)
    history = train_ppo(policy, a_reward_model(), Letters(), QUESTIONS, config, bare, folder=folder, resume=resume,
                        **options)
    return policy.state_dict(), [{k: v for k, v in row.items() if k not in ("seconds", "stop")} for row in history]


def test_ppo_goes_on_beyond_its_last_iteration(tmp_path, capsys):
    for name in ("whole", "killed"):
        practise(tmp_path / name, 3, False, progress=False)
    whole, history = practise(tmp_path / "whole", 6, True)
    told = capsys.readouterr().err
    assert "iterations 3 -> 6, on the new schedule from iteration 3 on: the learning rates go from 33% to 50%" in told
    seen = []

    def stop(question, answer):
        seen.append(1)
        if len(seen) > PPO_CONFIG.batch_size:
            raise Killed
        return 0.0

    with pytest.raises(Killed):
        practise(tmp_path / "killed", 6, True, watch={"stop": stop}, progress=False)
    killed, again = practise(tmp_path / "killed", 6, True, progress=False)
    assert all(torch.equal(whole[name], killed[name]) for name in whole) and again == history
    with pytest.raises(ValueError, match="cannot resume: iterations is 2, but .* use --iterations 6"):
        practise(tmp_path / "whole", 2, True, progress=False)


def test_a_reward_model_reads_its_pairs_once_more(tmp_path):
    def judge(folder, epochs, resume, steady=False):
        config = replace(REWARD_CONFIG, epochs=epochs, **({"warmup_steps": 0} if steady else {}))
        return train_reward(a_body(), pairs(40), Letters(), config, bare, False, folder, resume)

    judge(tmp_path / "a", 1, False)
    _, history = judge(tmp_path / "a", 3, True)
    _, wanted = judge(tmp_path / "b", 3, False)
    assert [row["step"] for row in history] == list(range(1, 16))
    assert history[0]["loss"] == wanted[0]["loss"], "the first epoch's order is the same"
    with pytest.raises(ValueError, match="cannot resume: epochs is 2, but .* use --epochs 3"):
        judge(tmp_path / "a", 2, True)


MUTANTS = [
    mutant_of_run("if done > self.end:", "if False:",
                  test_an_unfinished_run_may_change_its_length_and_no_run_ends_before_it_stands, "resumable"),
]
