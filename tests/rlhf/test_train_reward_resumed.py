"""A reward run that was stopped ends like one that was not, and is gone on with by what it was begun with alone."""

from dataclasses import replace

import pytest
import torch
from letters import Letters, bare
from test_command_line import model_folder, run, tokenizer_file
from test_feedback_commands import pairs_file
from test_train_reward import CONFIG, a_body, pairs
from tiny_run import Killed, one_thread, without_times

from minillama.backends import use_kernels
from minillama.rlhf import train_reward as module
from minillama.rlhf.train_reward import train_reward
from minillama.train.training_run import TrainingRun

FIXTURES = (model_folder, tokenizer_file, pairs_file)
pytestmark = pytest.mark.usefixtures(one_thread.__name__)
SHORT = replace(CONFIG, epochs=2, checkpoint_every=3)


def judge(folder, resume=False, config=SHORT, body=None, votes=None, template=bare, facts=None):
    model, history = train_reward(body or a_body(), votes or pairs(40), Letters(), config, template, False, folder,
                                  resume, facts)
    return model.state_dict(), without_times(history)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_a_run_killed_in_any_step_ends_like_one_that_was_not(tmp_path, monkeypatch, kernels):
    whole, history = judge(None, body=use_kernels(a_body(), kernels))
    assert len(history) == 10 and all(0 <= row["accuracy"] <= 1 for row in history)
    plain = module.score_pairs
    for step in range(10):
        calls = []

        def die(model, batch, calls=calls, step=step):
            calls.append(1)
            if len(calls) > step:
                raise Killed
            return plain(model, batch)

        with monkeypatch.context() as patch:
            patch.setattr(module, "score_pairs", die)
            with pytest.raises(Killed):
                judge(tmp_path / str(step), body=use_kernels(a_body(), kernels))
        resumed, again = judge(tmp_path / str(step), True, body=use_kernels(a_body(), kernels))
        assert same(resumed, whole) and again == history


@pytest.mark.parametrize(("name", "change"), [
    ("model", {"body": lambda: a_body(1)}), ("pairs", {"votes": lambda: pairs(40, seed=1)}),
    ("pair_tokens", {"template": lambda: lambda *words: [*bare("x"), *bare(*words)]}),
    ("kernels", {"body": lambda: use_kernels(a_body(), "torch")}),
    ("max_lr", {"config": lambda: replace(SHORT, max_lr=0.1)}),
    ("template", {"facts": lambda: {"template": "alpaca"}})])
def test_what_a_resumed_run_was_not_begun_with_is_refused_by_name(tmp_path, name, change):
    judge(tmp_path, facts={"template": "bare"})
    given = {"facts": {"template": "bare"}, **{key: make() for key, make in change.items()}}
    with pytest.raises(ValueError, match=f"cannot resume: {name} is .*, but the run in .* has .*--"):
        judge(tmp_path, True, **given)


def test_the_command_saves_stops_and_goes_on_to_the_same_files(model_folder, pairs_file, tmp_path, capsys, monkeypatch):
    words = ("reward", "--model", model_folder, "--pairs", pairs_file, "--batch-size", 8, "--epochs", 2,
             "--max-new-tokens", 8, "--out")
    assert run(capsys, *words, tmp_path / "whole")[0] == 0
    plain, calls = TrainingRun.advance, []

    def die(self):
        calls.append(1)
        if len(calls) == 4:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return plain(self)

    monkeypatch.setattr(TrainingRun, "advance", die)
    code, _, err = run(capsys, *words, tmp_path / "out")
    assert code == 143
    assert "interrupted: stopped after step 4 of " in err and f"saved in {tmp_path / 'out'}: --resume goes on" in err
    code, _, err = run(capsys, *words, tmp_path / "out", "--held-out-fraction", 0.2, "--resume")
    assert code == 2 and "cannot resume: --held-out-fraction is 0.2" in err and "use --held-out-fraction 0.1, or" in err
    assert run(capsys, *words, tmp_path / "out", "--resume")[0] == 0
    for name in ("consolidated.00.pth", "reward_head.pth", "params.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
