"""Laws of Llama 2-Chat's road: the rule is the paper's, the best of several is the best, an instruction lasts."""

import math
import random

import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import CONFIG, a_model, a_reward_model, share_of_a

from minillama.corpus import forum
from minillama.rlhf.experience import value_model_of
from minillama.rlhf.llama2_chat import (
    JoinedReward,
    best_answers,
    joined_score,
    logit_level,
    told_each_time,
    told_once,
)
from minillama.rlhf.ppo import whiten
from minillama.rlhf.rollout import sample_answers
from minillama.rlhf.train_ppo import PPO

TALK = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"},
        {"role": "assistant", "content": "dd"}]


def test_the_rule_is_the_papers_case_by_case():
    generator = torch.Generator().manual_seed(0)
    helpful, safe = (3 * torch.randn(101, generator=generator) for _ in range(2))
    marked = torch.rand(101, generator=generator) < 0.3
    safe[:3] = torch.tensor([math.log(0.15 / 0.85) - 1e-4, math.log(0.15 / 0.85) + 1e-4, -1e4])
    joined = joined_score(helpful, safe, marked)
    for i in range(101):
        probability = 1 / (1 + math.exp(min(-safe[i].item(), 500)))
        assert joined[i] == (safe[i] if marked[i] or probability < 0.15 else helpful[i]), i
    white = whiten(joined, torch.ones_like(joined, dtype=torch.bool)).double()
    assert abs(white.mean()) < 1e-6 and abs(white.var(correction=0) - 1) < 1e-5
    assert torch.equal(white.argsort(), joined.argsort()), "whitening changes no order"
    with pytest.raises(ValueError, match="threshold is 2.0: it must be a number from 0 to 1"):
        joined_score(helpful, safe, marked, threshold=2.0)


def test_two_reward_models_are_joined_whatever_their_normalisation_and_ppo_takes_them():
    helpful, safe = a_reward_model(), a_reward_model()
    torch.nn.init.normal_(safe.head.weight, generator=torch.Generator().manual_seed(8))
    prompts = [[1, 3], [1, 4, 5], [1, 3, 6], [1, 7]]
    rollout = sample_answers(a_model(), prompts, 2, 6)
    raw = [model(rollout.tokens_BT, rollout.mask_BT).detach() for model in (helpful, safe)]
    level = logit_level(raw[1][:2], raw[1][2:])
    assert level == pytest.approx(raw[1].mean().item(), abs=1e-5)
    wanted = joined_score(raw[0], raw[1] - level, torch.tensor([True, False, True, False]))
    safe.normalise(raw[1])
    level = logit_level(*safe(rollout.tokens_BT, rollout.mask_BT).detach().split(2))
    joint = JoinedReward(helpful, safe, marked=[[1, 3]], level=level)
    with torch.no_grad():
        torch.testing.assert_close(joint.joined(rollout.tokens_BT, rollout.mask_BT), wanted, rtol=1e-5, atol=1e-5)
    run = PPO(a_model(), joint, value_model_of(joint), CONFIG)
    assert run.advance(prompts, Letters.eos_id)[1]["first_ratio"] == 1.0


def test_of_several_answers_the_best_is_kept():
    prompts = [[1, 3], [1, 4, 5]]
    best, score = best_answers(a_model(), share_of_a, prompts, 2, 5, 6, seed=3)
    each = sample_answers(a_model(), [prompt for prompt in prompts for _ in range(5)], 2, 6, seed=3)
    scores = torch.where(each.ended_B, share_of_a(each.tokens_BT, each.mask_BT), torch.tensor(-1.0)).view(2, 5)
    assert torch.equal(score, scores.max(-1).values)
    for row, tokens in enumerate(best.tokens_BT):
        assert torch.equal(tokens, each.tokens_BT[5 * row + scores[row].argmax()])


def test_an_instruction_is_told_each_time_to_sample_and_once_to_learn():
    each = told_each_time("Be kind.", TALK)
    assert [message["content"] for message in each] == ["Be kind.\na?", "b", "Be kind.\nc?", "dd"]
    once = told_once("Be kind.", TALK)
    assert once[0] == {"role": "system", "content": "Be kind."} and once[1:] == TALK
    assert TALK[0]["content"] == "a?", "the conversation itself is as it was"


def chosen_of_the_forum(seed, gap, noise):
    """{how answers were chosen: (mean worth, share unsafe)} of the best of eight answers to each of 150 questions.

    Half of the adjectives are dangerous: there, an answer of two steps is unsafe, though the forum's voters like such
    answers best. An unsafe answer is worth -4, the lowest quality, any other its quality. The safe model's logits are
    +-gap and normal noise, the helpful model's the quality with a deviation of 0.7; those of "mean" are normalised.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    asked = [forum.GRAMMAR.sample(rng, "{question}") for _ in range(150)]
    texts = [[forum.GRAMMAR.sample(rng, "{answer}", q.chosen).text for _ in range(8)] for q in asked]
    adjectives = sorted({q.text.split()[5] for q in asked})
    danger = [q.text.split()[5] in adjectives[:len(adjectives) // 2] for q in asked]
    quality = torch.tensor([[float(forum.quality(q.text, text)) for text in row]
                            for q, row in zip(asked, texts, strict=True)])
    bad = torch.tensor([[here and "First" in text for text in row] for here, row in zip(danger, texts, strict=True)])
    helpful = quality + 0.7 * torch.randn(quality.shape, generator=generator)
    safe = torch.where(bad, -gap, gap) + noise * torch.randn(quality.shape, generator=generator)
    level = logit_level(safe[~bad], safe[bad])
    marked = torch.tensor(danger)[:, None].expand_as(helpful)
    scores = {"rule": joined_score(helpful, safe - level, marked), "helpful": helpful,
              "mean": sum(whiten(score, torch.ones_like(score, dtype=torch.bool)) for score in (helpful, safe)) / 2}
    worth = torch.where(bad, torch.tensor(-4.0), quality)
    best = {name: score.argmax(-1, keepdim=True) for name, score in scores.items()}
    return {name: (worth.gather(1, at).mean().item(), bad.gather(1, at).float().mean().item())
            for name, at in best.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rule_beats_the_mean_where_the_safe_model_errs(seed):
    """It orders 92 % of safe and unsafe answers rightly; on a third of the questions the two models disagree. With one
    that is nearly always right (98 %, and little noise) the mean is as good or better here: on marked prompts the rule
    asks for nothing but safety, which costs helpfulness."""
    found = chosen_of_the_forum(seed, gap=1.5, noise=1.5)
    assert found["helpful"][1] > 0.2, "share of questions whose most helpful answer is unsafe"
    assert found["rule"][0] > found["mean"][0] > found["helpful"][0]
    assert found["rule"][1] < found["mean"][1] < found["helpful"][1], "fewer unsafe answers"


MUTANTS = [
    Mutant("minillama.rlhf.llama2_chat", "marked_B | (safe_B.sigmoid() < threshold)", "safe_B.sigmoid() < threshold",
           test_the_rule_is_the_papers_case_by_case),
    Mutant("minillama.rlhf.llama2_chat", "* self.safe.deviation", "",
           test_two_reward_models_are_joined_whatever_their_normalisation_and_ppo_takes_them),
    Mutant("minillama.rlhf.llama2_chat", ".argmax(-1) +", ".argmin(-1) +", test_of_several_answers_the_best_is_kept),
]
