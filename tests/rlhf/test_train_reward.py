"""Laws of training a reward model: it learns what the pairs say, on a body of its own, the same for a seed."""

import math
from dataclasses import replace

import pytest
import torch
from letters import Letters, bare
from mutants import Mutant

from minillama.collate import pad_rows, real_tokens
from minillama.config import ModelConfig
from minillama.rlhf import train_reward as train_reward_module
from minillama.rlhf.preferences import Pair
from minillama.rlhf.reward_model import RewardModel, pair_accuracy
from minillama.rlhf.train_reward import (
    RewardConfig,
    encode_pairs,
    held_out_accuracy,
    held_out_scores,
    score_pairs,
    train_reward,
)
from minillama.transformer import Transformer


def a_body(seed=0):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(16, 1, 2, Letters.vocab_size, hidden_dim=24, max_seq_len=24)).eval()


def pairs(n, seed=0):
    """The answer with more a's was chosen; b's are noise."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        more, fewer, noise, more_noise = torch.randint(0, 4, (4,), generator=generator).tolist()
        made.append(Pair("what?", "a" * (fewer + more + 1) + "b" * noise, "b" * more_noise + "a" * fewer))
    return made


CONFIG = RewardConfig(batch_size=8, max_lr=1e-2, seed=3)


def trained(n=320, config=CONFIG, body=None):
    return train_reward(a_body() if body is None else body, pairs(n), Letters(), config, bare, progress=False)


def test_it_learns_to_order_pairs_that_it_never_saw():
    held_out = encode_pairs(pairs(200, seed=1), Letters(), bare)
    untrained, _ = trained(8, RewardConfig(batch_size=8, max_lr=1e-9))
    model, history = trained()
    assert held_out_accuracy(model, held_out) > 0.95 > 0.8 > held_out_accuracy(untrained, held_out)
    assert len(history) == 40 and abs(history[0]["loss"] - math.log(2)) < 0.7 > history[-1]["loss"]
    assert sum(row["accuracy"] for row in history[-10:]) > 8, "on the pairs that it learns from too"


def test_label_smoothing_keeps_scores_close_together():
    """A difference beyond log((1 - e) / e) no longer pays: 0.85 for e = 0.3; without it they go on apart."""
    held_out = encode_pairs(pairs(100, seed=1), Letters(), bare)
    gaps = []
    for e in (0.0, 0.3):
        model, _ = trained(config=replace(CONFIG, label_smoothing=e))
        chosen, rejected = held_out_scores(model, held_out)
        gaps.append((chosen - rejected).median().item())
    assert gaps[0] > 2 * gaps[1] > 0 and abs(gaps[1] - math.log(0.7 / 0.3)) < 0.4


def test_the_body_that_was_given_is_left_as_it_was():
    body = a_body().requires_grad_(False)
    before = [p.clone() for p in body.parameters()]
    model, _ = trained(64, body=body)
    assert all(torch.equal(p, q) for p, q in zip(body.parameters(), before, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(model.body.parameters(), before, strict=True))


def test_the_same_seed_gives_the_same_model_and_leaves_random_numbers_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    body, states = a_body(), []
    for seed in (3, 3, 4):
        torch.manual_seed(11)
        states.append(trained(64, RewardConfig(batch_size=8, seed=seed), body)[0].state_dict())
        assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_pairs_score_does_not_depend_on_its_company():
    model, encoded = trained(8)[0], encode_pairs(pairs(5), Letters(), bare)
    together = torch.stack(score_pairs(model, encoded))
    for i, pair in enumerate(encoded):
        alone = [model(pad_rows([side]), real_tokens([side])) for side in pair]
        torch.testing.assert_close(together[:, i], torch.cat(alone), rtol=0, atol=1e-5)  # fp32, sums of size 1


def test_both_sides_end_in_eos_and_padding_is_not_real():
    (chosen, rejected), = encode_pairs([Pair("x", "aa", "b")], Letters(), bare)
    assert chosen == [1, 26, 3, 3, 2] and rejected == [1, 26, 4, 2]
    tokens_BT, mask_BT = pad_rows([chosen, rejected]), real_tokens([chosen, rejected])
    assert tokens_BT.tolist()[1][:4] == rejected and mask_BT.tolist() == [[True] * 5, [True] * 4 + [False]]


def test_every_pair_is_read_once_an_epoch():
    for size, pairs_given in ((8, 50), (3, 20)):
        _, history = trained(pairs_given, RewardConfig(batch_size=size, epochs=2))
        assert len(history) == 2 * (pairs_given // size)


@pytest.mark.parametrize(("warmup", "rates"), [(None, [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1]), (0, [None]), (1, [1]),
                                               (5, [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1])])
def test_pairs_are_read_in_the_order_of_the_seed_at_a_rate_that_rises_and_falls_to_a_tenth(monkeypatch, warmup, rates):
    """20 pairs, 3 at once: 6 updates. The order is drawn behind the model, from the same seed."""
    read, seen = [], []

    def scores(model, batch):
        read.append(batch)
        return score_pairs(model, batch)

    monkeypatch.setattr(train_reward_module, "score_pairs", scores)
    given = [Pair("what?", "a" * (i % 7 + 1), "b" * (i + 1) if i < 13 else "c" * (i - 12)) for i in range(20)]
    config = RewardConfig(batch_size=3, warmup_steps=warmup, seed=3)
    _, history = train_reward(a_body(), given, Letters(), config, bare, progress=False)
    encoded = encode_pairs(given, Letters(), bare)
    asked = [encoded.index(pair) for batch in read for pair in batch]
    assert [len(batch) for batch in read] == [3] * 6 and len(set(asked)) == 18
    with torch.random.fork_rng():
        torch.manual_seed(3)
        RewardModel(a_like(), 16)
        assert asked == torch.randperm(20).tolist()[:18]
    seen = [row["lr"] / 1e-3 for row in history]
    assert seen[:len(rates)] == pytest.approx([rate or seen[0] for rate in rates]) and seen[-1] == pytest.approx(0.1)


def a_like():
    """A body whose making draws nothing."""
    with torch.random.fork_rng():
        return a_body()


def test_held_out_pairs_are_scored_in_batches_as_at_once():
    model, encoded = trained(8)[0], encode_pairs(pairs(7), Letters(), bare)
    whole = held_out_scores(model, encoded)
    for size in (1, 3, 7):
        for one, other in zip(held_out_scores(model, encoded, size), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert held_out_accuracy(model, encoded, 3) == pair_accuracy(*whole)


def test_what_cannot_be_trained_on_is_named():
    with pytest.raises(ValueError, match="warmup_steps 6 leave nothing of 20 pairs' 6 steps: use fewer"):
        trained(20, RewardConfig(batch_size=3, warmup_steps=6))
    assert len(trained(3, RewardConfig(batch_size=3))[1]) == 1, "one update has no warm-up"
    assert encode_pairs([Pair("x", "a" * 21, "b")], Letters(), bare, 24)
    with pytest.raises(ValueError, match="batch_size 8 is not filled once by 7 pairs"):
        trained(7)
    with pytest.raises(ValueError, match="30 tokens and the model reads 24.*begins 'x'"):
        encode_pairs([Pair("x", "a" * 27, "b")], Letters(), bare, 24)
    with pytest.raises(ValueError, match="batch_size is 0"):
        RewardConfig(batch_size=0)


MUTANTS = [
    Mutant("minillama.rlhf.train_reward", "label_smoothing=self.label_smoothing", "label_smoothing=0.0",
           test_label_smoothing_keeps_scores_close_together),
    Mutant("minillama.rlhf.train_reward", "preference_loss(chosen, rejected,", "preference_loss(rejected, chosen,",
           test_it_learns_to_order_pairs_that_it_never_saw),
    Mutant("minillama.rlhf.train_reward", "copy.deepcopy(body)", "body",
           test_the_body_that_was_given_is_left_as_it_was),
    Mutant("minillama.rlhf.train_reward", "zip(*encoded, strict=True) for side", "encoded for side",
           test_a_pairs_score_does_not_depend_on_its_company),
    Mutant("minillama.collate", "for row in rows], 0, left", "for row in rows], 1, left",
           test_both_sides_end_in_eos_and_padding_is_not_real),
]
