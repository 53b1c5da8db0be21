"""Laws of pretraining text mixed into PPO: its gradient is added with its weight, batch after batch, resumed or not."""

import numpy as np
import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import CONFIG, a_model, a_run, prompts, same, trained
from torch.nn import functional as F

from minillama.rlhf.pretraining_mix import pretraining_loss
from minillama.rlhf.rollout import sample_answers
from minillama.rlhf.train_ppo import PPOConfig
from minillama.train.data import Batches, Tokens

TEXT = Tokens(np.arange(3000).astype(np.uint16) * 7 % Letters.vocab_size, Letters.vocab_size)
MIXED = PPOConfig(**{**vars(CONFIG), "pretraining_weight": 0.5})


def test_the_gradient_of_mixed_in_text_is_added_with_its_weight():
    """The step of the policy is that of PPO's loss plus gamma times the mean cross-entropy of the text's batch."""
    plain, mixed = (a_run(a_model(), clip_norm=1e9, lr=1e-9, **more)
                    for more in ({}, {"pretraining_weight": 0.5}))
    experience = plain.make_experience(sample_answers(plain.policy, prompts(plain, 0), 2, 6))
    other_loss = pretraining_loss(mixed, TEXT)
    plain.update(experience)
    mixed.update(experience, other_loss(5))
    text = a_model()
    tokens_BT, targets_BT = Batches(TEXT, 8, 32, CONFIG.seed)(5)
    log_p = text(tokens_BT).log_softmax(-1)
    (-0.5 * log_p.gather(-1, targets_BT[..., None]).mean()).backward()
    for ours, ppos, texts in zip(mixed.policy.parameters(), plain.policy.parameters(), text.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, ppos.grad + texts.grad, rtol=1e-4, atol=1e-6)


def text_loss(policy):
    tokens_BT, targets_BT = Batches(TEXT, 8, 32, 99)(0)
    with torch.no_grad():
        return F.cross_entropy(policy(tokens_BT).flatten(0, 1), targets_BT.flatten()).item()


def test_practice_with_text_mixed_in_learns_the_text_too_and_every_update_another_batch():
    plain, mixed = a_model(), a_model()
    trained(plain)
    history = trained(mixed, MIXED, pretraining_text=TEXT)[1]
    assert text_loss(mixed) < text_loss(plain) - 0.01
    assert all(0 < row["other_loss"] < 4 for row in history)
    drawn = pretraining_loss(a_run(mixed, pretraining_weight=0.5), TEXT)
    assert drawn(3).item() == drawn(3).item() != drawn(4).item()


def test_mixed_in_text_does_not_hinder_going_on(tmp_path):
    wanted, history = trained(a_model(), MIXED, pretraining_text=TEXT)
    policy, few = a_model(), []
    with pytest.raises(KeyboardInterrupt):
        trained(policy, MIXED, pretraining_text=TEXT, folder=tmp_path,
                watch={"stop": lambda question, answer: few.append(1) or (len(few) > 13 and interrupt())})
    state, told = trained(a_model(), MIXED, pretraining_text=TEXT, folder=tmp_path, resume=True)
    assert same(state, wanted) and told[2:] == history[2:]
    with pytest.raises(ValueError, match="cannot resume: pretraining_text is"):
        trained(a_model(), MIXED, folder=tmp_path, resume=True,
                pretraining_text=Tokens(TEXT.ids[1:], Letters.vocab_size))


def test_mixed_in_text_comes_in_the_order_of_the_updates():
    asked, run = [], a_run(a_model(), minibatches=2)
    for i in range(2):
        run.advance(prompts(run, i), Letters.eos_id, lambda number: asked.append(number) or torch.zeros(()))
    assert asked == list(range(12))


def interrupt():
    raise KeyboardInterrupt


def test_a_weight_without_text_and_text_without_a_weight_are_refused():
    for options in ({"config": MIXED}, {"pretraining_text": TEXT}):
        with pytest.raises(ValueError, match="give both or neither"):
            trained(a_model(), **options)
    with pytest.raises(ValueError, match="vocabulary of 99 pieces"):
        trained(a_model(), MIXED, pretraining_text=Tokens(TEXT.ids, 99))


MUTANTS = [
    Mutant("minillama.rlhf.train_ppo", "loss + other_loss", "loss",
           test_the_gradient_of_mixed_in_text_is_added_with_its_weight),
    Mutant("minillama.rlhf.pretraining_mix", "return config.pretraining_weight * learner", "return learner",
           test_the_gradient_of_mixed_in_text_is_added_with_its_weight),
    Mutant("minillama.rlhf.train_ppo", "self.config.minibatches + len(measured)", "self.config.minibatches",
           test_mixed_in_text_comes_in_the_order_of_the_updates),
]
