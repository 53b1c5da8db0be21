"""PPO's pieces: equal to the papers' loops and to a published program, and blind to what stands on padding."""

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.rlhf.gae import gae
from minillama.rlhf.ppo import (
    clip_fraction,
    entropy,
    explained_variance,
    kl_estimate,
    masked_mean,
    masked_variance,
    mean_ratio,
    next_kl_coefficient,
    policy_loss,
    punish_missing_eos,
    reward_mask,
    token_rewards,
    value_loss,
    whiten,
)

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # fp64, sums of a few dozen terms of size 1


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mask_of(*lengths, slots):
    return torch.arange(slots) < torch.tensor(lengths)[:, None]


MASK = mask_of(5, 1, 7, slots=8)


def reals(x, mask=MASK):
    return x[mask].tolist()


def poison(x, mask, value):
    """The same numbers with NaN or 1e9 outside the mask, ready to take a gradient."""
    return x.masked_fill(~mask, value).clone().requires_grad_()


# --- statistics over real tokens


def test_mean_and_variance_are_those_of_the_real_tokens():
    for mask in (MASK, mask_of(2, slots=2), mask_of(1, 0, 1, slots=3)):
        x = normal(*mask.shape, seed=3)
        torch.testing.assert_close(masked_mean(x, mask).item(), oracles.mean(reals(x, mask)), **EXACT)
        for unbiased in (False, True):
            wanted = oracles.variance(reals(x, mask), unbiased)
            torch.testing.assert_close(masked_variance(x, mask, unbiased).item(), wanted, **EXACT)


def test_whitening_is_over_real_tokens_only():
    for keep_mean in (False, True):
        for unbiased in (False, True):
            x = 3 * normal(3, 8) + 5
            white = whiten(x.masked_fill(~MASK, math.nan), MASK, keep_mean, unbiased)
            assert reals(white) == pytest.approx(oracles.whiten(reals(x), keep_mean, unbiased), rel=1e-12)
            assert not white[~MASK].any()


def test_whitened_advantages_are_centred_with_deviation_one():
    white = torch.tensor(reals(whiten(100 + normal(3, 8), MASK)))
    assert abs(white.mean().item()) < 1e-6 and abs(white.std(correction=0).item() - 1) < 1e-6


def test_whitening_one_token_or_equal_tokens_gives_zeros():
    assert whiten(torch.tensor([[7.0]]), torch.tensor([[True]])).tolist() == [[0.0]]
    assert whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).abs().max() < 1e-3
    with pytest.raises(ValueError, match="unbiased"):
        whiten(torch.tensor([[7.0]]), torch.tensor([[True]]), unbiased=True)


# --- rewards


def test_kl_estimates_are_schulmans():
    p, q = normal(2, 9)
    for name in ("k1", "k2", "k3"):
        wanted = [oracles.kl_sample(a, b, name) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
        assert kl_estimate(p, q, name).tolist() == pytest.approx(wanted, rel=1e-11, abs=1e-14)
    assert (kl_estimate(p, q, "k3") >= 0).all()


def test_k1_and_k3_are_unbiased_under_p():
    p, q = normal(2, 6).log_softmax(-1)
    truth = (p.exp() * (p - q)).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * kl_estimate(p, q, name)).sum(), truth, **EXACT)


def test_the_reward_is_minus_beta_kl_with_the_score_at_the_last_real_token():
    log_prob, reference, score = (
        normal(3, 8),
        normal(3, 8, seed=1),
        torch.tensor([2.0, -1.0, 0.5]).double(),
    )
    for name in ("k1", "k2", "k3"):
        ours = token_rewards(score, log_prob, reference, MASK, 0.3, estimator=name)
        for row, length in enumerate((5, 1, 7)):
            wanted = [
                -0.3 * oracles.kl_sample(log_prob[row, t].item(), reference[row, t].item(), name)
                for t in range(length)
            ]
            wanted[-1] += score[row].item()
            assert ours[row].tolist() == pytest.approx(
                wanted + [0.0] * (8 - length), rel=1e-12, abs=1e-13
            )


def test_places_of_the_score_pay_what_they_say():
    zero, score = torch.zeros(3, 8), torch.tensor([2.0, -1.0, 0.5])
    full = mask_of(8, 1, 7, slots=8)
    paid = {
        at: token_rewards(score, zero, zero, full, 0.1, score_at=at)
        for at in ("eos", "pad", "every_token")
    }
    assert [row.nonzero().flatten().tolist() for row in paid["eos"]] == [[7], [0], [6]]
    assert [row.nonzero().flatten().tolist() for row in paid["pad"]] == [
        [7],
        [1],
        [7],
    ]  # none later: the last slot
    assert paid["eos"].sum(1).tolist() == paid["pad"].sum(1).tolist() == score.tolist()
    assert paid["every_token"].sum(1).tolist() == (score * torch.tensor([8, 1, 7])).tolist()


def test_left_padding_moves_the_score_with_the_text():
    mask = torch.tensor([[False, False, True, True, False]])
    zero, score = torch.zeros(1, 5), torch.ones(1)
    assert token_rewards(score, zero, zero, mask, 0.1).tolist() == [[0, 0, 0, 1, 0]]
    assert token_rewards(score, zero, zero, mask, 0.1, score_at="pad").tolist() == [[0, 0, 0, 0, 1]]


def test_scores_are_cut_at_their_limit():
    zero, mask = torch.zeros(3, 2), mask_of(1, 2, 2, slots=2)
    paid = token_rewards(torch.tensor([9.0, -9.0, 1.0]), zero, zero, mask, 0.1, score_limit=5)
    assert paid.sum(1).tolist() == [5, -5, 1]


def test_rewards_ignore_what_stands_on_padding():
    log_prob, reference, score = normal(3, 8), normal(3, 8, seed=1), normal(3)
    for at in ("eos", "pad", "every_token"):
        wanted = token_rewards(score, log_prob, reference, MASK, 0.3, at)
        for value in (math.nan, 1e9, -math.inf):
            ours = token_rewards(
                score,
                log_prob.masked_fill(~MASK, value),
                reference.masked_fill(~MASK, value),
                MASK,
                0.3,
                at,
            )
            assert torch.equal(ours, wanted)


def test_the_reward_mask_covers_every_reward():
    mask = mask_of(8, 1, 7, slots=8)
    for at in ("eos", "pad", "every_token"):
        paid = token_rewards(torch.ones(3), normal(3, 8), normal(3, 8, seed=1), mask, 0.3, at)
        assert torch.equal(paid != 0, reward_mask(mask, at))


def test_a_text_without_eos_gets_the_fixed_low_score():
    assert punish_missing_eos(torch.tensor([3.0, 3.0]), torch.tensor([True, False])).tolist() == [
        3.0,
        -1.0,
    ]


def test_the_kl_coefficient_follows_the_papers_rule_and_its_clip():
    for kl in (0.0, 4.9, 6.0, 6.5, 7.3, 1e9):
        wanted = oracles.next_kl_coefficient(0.2, kl, 6.0, 64, 2000)
        assert next_kl_coefficient(0.2, kl, target=6.0, episodes=64, horizon=2000) == pytest.approx(
            wanted, rel=1e-14
        )
    assert next_kl_coefficient(0.2, 6.0, 6.0, 64, 2000) == 0.2
    for wrong in ((math.nan, 6.0, 10), (1.0, 0.0, 10), (1.0, 6.0, 0)):
        with pytest.raises(ValueError, match="finite"):
            next_kl_coefficient(0.2, wrong[0], wrong[1], 1, wrong[2])


# --- losses


def losses(mask=MASK, seed=0):
    """New and old log-probabilities whose ratio leaves [0.8, 1.2] on both sides, and advantages of both signs."""
    old, advantages = normal(*mask.shape, seed=seed) - 2, normal(*mask.shape, seed=seed + 1)
    return old + 0.4 * normal(*mask.shape, seed=seed + 2), old, advantages


def test_the_policy_loss_is_the_papers_formula():
    for mask in (MASK, mask_of(1, slots=1), mask_of(3, 17, slots=17)):
        new, old, advantages = losses(mask)
        for clip in (0.2, 0.05):
            triples = zip(reals(new, mask), reals(old, mask), reals(advantages, mask), strict=True)
            wanted = -oracles.mean([oracles.policy_objective(*triple, clip) for triple in triples])
            torch.testing.assert_close(
                policy_loss(new, old, advantages, mask, clip).item(), wanted, **EXACT
            )


def test_the_average_over_answers_is_the_mean_of_their_means():
    new, old, advantages = losses()
    alone = [
        policy_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], MASK[i : i + 1]).item()
        for i in range(3)
    ]
    ours = policy_loss(new, old, advantages, MASK, average="answers")
    torch.testing.assert_close(ours.item(), oracles.mean(alone), **EXACT)


def test_a_ratio_limit_bounds_the_cost_of_a_token():
    one, mask = torch.ones(1, 1).double(), torch.tensor([[True]])
    assert policy_loss(100 * one, 0 * one, -one, mask, ratio_limit=10).item() == 10
    assert policy_loss(2 * one, 0 * one, -one, mask).item() == pytest.approx(math.exp(2))


def test_the_first_step_is_the_plain_policy_gradient():
    _, old, advantages = losses()
    new = old.clone().requires_grad_()
    policy_loss(new, old, advantages, MASK).backward()
    torch.testing.assert_close(new.grad, -advantages * MASK / MASK.sum(), **EXACT)
    assert mean_ratio(new, old, MASK) == 1.0


def test_the_value_loss_is_the_clipped_formula():
    values, old, returns = 0.5 * normal(3, 8), 0.5 * normal(3, 8, seed=1), normal(3, 8, seed=2)
    for clip in (0.2, 0.7):
        triples = zip(reals(values), reals(old), reals(returns), strict=True)
        wanted = oracles.mean([oracles.value_error(*triple, clip) for triple in triples])
        torch.testing.assert_close(value_loss(values, old, returns, MASK, clip).item(), wanted, **EXACT)
    plain = 0.5 * oracles.mean([(v - r) ** 2 for v, r in zip(reals(values), reals(returns), strict=True)])
    torch.testing.assert_close(value_loss(values, old, returns, MASK, clip=None).item(), plain, **EXACT)


def test_gradients_are_those_of_finite_differences():
    mask = mask_of(3, 2, slots=4)
    new, old, advantages = losses(mask)
    for average in ("tokens", "answers"):
        assert torch.autograd.gradcheck(
            lambda x, a=average: policy_loss(x, old, advantages, mask, average=a, ratio_limit=10),
            (new.clone().requires_grad_(),),
        )
    values = normal(2, 4, seed=5)
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, values + 0.3 * advantages, old, mask), (values.clone().requires_grad_(),)
    )
    assert torch.autograd.gradcheck(lambda x: entropy(x, mask), (normal(2, 4, 3).requires_grad_(),))


def test_padding_touches_neither_losses_nor_gradients():
    new, old, advantages = losses()
    for value in (math.nan, 1e9, -math.inf):
        for loss in (policy_loss, value_loss, lambda *x: policy_loss(*x, average="answers")):
            clean, spoiled = new.clone().requires_grad_(), poison(new, MASK, value)
            wanted = loss(clean, old, advantages, MASK)
            ours = loss(spoiled, poison(old, MASK, value), poison(advantages, MASK, value), MASK)
            wanted.backward()
            ours.backward()
            assert torch.equal(ours, wanted)
            assert torch.equal(spoiled.grad[MASK], clean.grad[MASK]) and not spoiled.grad[~MASK].any()


def test_targets_receive_no_gradient():
    for loss in (policy_loss, value_loss):
        first, second, third = (x.clone().requires_grad_() for x in losses())
        loss(first, second, third, MASK).backward()
        assert first.grad is not None and second.grad is None and third.grad is None


# --- what to watch


def test_the_clip_fraction_counts_the_tokens_without_gradient():
    new, old, advantages = losses()
    leaf = new.clone().requires_grad_()
    policy_loss(leaf, old, advantages, MASK).backward()
    silent = (leaf.grad == 0) & MASK
    assert 0 < silent.sum() < MASK.sum()
    assert clip_fraction(new, old, advantages, MASK) == pytest.approx(
        silent.sum().item() / MASK.sum().item()
    )


def test_entropy_is_that_of_the_definition():
    logits = 2 * normal(3, 8, 5)
    wanted = oracles.mean([oracles.entropy(row) for row in logits[MASK].tolist()])
    spoiled = logits.masked_fill(~MASK[:, :, None], math.nan)
    torch.testing.assert_close(entropy(spoiled, MASK).item(), wanted, **EXACT)
    uniform = torch.tensor([[[0.0, 0.0, -math.inf, 0.0]]])
    assert entropy(uniform, torch.tensor([[True]])).item() == pytest.approx(math.log(3))


def test_explained_variance_is_that_of_the_definition():
    values, returns = normal(3, 8), normal(3, 8, seed=1)
    left = [r - v for r, v in zip(reals(returns), reals(values), strict=True)]
    wanted = 1 - oracles.variance(left) / oracles.variance(reals(returns))
    assert explained_variance(poison(values, MASK, math.nan), returns, MASK) == pytest.approx(
        wanted, rel=1e-12
    )
    assert explained_variance(returns + 3, returns, MASK) == pytest.approx(
        1.0
    )  # a constant error explains all
    assert explained_variance(torch.ones(3, 8), returns, MASK) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(explained_variance(values, torch.ones(3, 8), MASK))


def test_wrong_arguments_are_named():
    x, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="'last'"):
        token_rewards(torch.ones(2), x, x, mask, 0.1, score_at="last")
    with pytest.raises(ValueError, match="'k4'"):
        kl_estimate(x, x, "k4")
    with pytest.raises(ValueError, match="'mean'"):
        policy_loss(x, x, x, mask, average="mean")
    with pytest.raises(ValueError, match="without a real token"):
        token_rewards(torch.ones(2), x, x, mask_of(3, 0, slots=3), 0.1)
    with pytest.raises(ValueError, match="no real token"):
        masked_mean(x, ~mask)
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        masked_mean(x, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="float32"):
        masked_mean(x, x)


# --- trl 0.11.4, the last widely used program: its functions taken from its files, the package left unimported


@pytest.fixture(scope="module")
def trl():
    """Namespace of trl's core functions and of the methods of its first PPO trainer."""
    pytest.importorskip("transformers", reason="trl's core imports transformers")
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("compares with trl 0.11.4, which is not installed")
    folder = Path(found.origin).parent
    spec = importlib.util.spec_from_file_location("trl_core", folder / "core.py")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    names = dict(vars(core))
    wanted = {"compute_rewards", "_kl_penalty", "compute_advantages", "loss", "AdaptiveKLController"}
    for file in ("ppo_trainer.py", "utils.py"):
        tree = ast.parse((folder / "trainer" / file).read_text(encoding="utf-8"))
        inner = [x for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for x in [c, *c.body]]
        picked = [x for x in inner if getattr(x, "name", "") in wanted]
        exec(compile(ast.fix_missing_locations(ast.Module(picked, [])), file, "exec"), names)
    return SimpleNamespace(**names)


def trainer(trl, **config):
    """What the methods read of `self`."""
    config = SimpleNamespace(
        kl_penalty="kl",
        gamma=1.0,
        lam=0.95,
        whiten_rewards=False,
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        ratio_threshold=10.0,
        **config,
    )
    self = SimpleNamespace(config=config, kl_ctl=SimpleNamespace(value=0.3))
    self._kl_penalty = lambda *x: trl._kl_penalty(self, *x)
    return self


def test_whitening_equals_trls(trl):
    x = normal(3, 8)
    for keep_mean in (False, True):
        wanted = trl.masked_whiten(x, MASK.double(), shift_mean=not keep_mean)
        torch.testing.assert_close(whiten(x, MASK, keep_mean, unbiased=True)[MASK], wanted[MASK], **EXACT)


def test_rewards_and_advantages_equal_trls(trl):
    log_prob, reference, values, score = (
        normal(3, 8),
        normal(3, 8, seed=1),
        normal(3, 8, seed=2),
        normal(3),
    )
    wanted_rewards = trl.compute_rewards(trainer(trl), score, log_prob, reference, MASK.long())[0]
    rewards = token_rewards(score, log_prob, reference, MASK, 0.3)
    torch.testing.assert_close(rewards[MASK], wanted_rewards[MASK], **EXACT)
    _, wanted, wanted_returns = trl.compute_advantages(
        trainer(trl), values, wanted_rewards, MASK.double()
    )
    advantages, returns = gae(rewards, values, MASK)
    torch.testing.assert_close(whiten(advantages, MASK, unbiased=True)[MASK], wanted[MASK], **EXACT)
    torch.testing.assert_close(returns[MASK], wanted_returns[MASK], **EXACT)


def test_losses_and_statistics_equal_trls(trl):
    new, old, advantages = losses()
    values, old_values, returns, logits = (
        normal(3, 8),
        normal(3, 8, seed=7),
        normal(3, 8, seed=8),
        normal(3, 8, 5),
    )
    policy, value, stats = trl.loss(
        trainer(trl), old, old_values, logits, values, new, MASK, advantages, returns
    )
    torch.testing.assert_close(policy_loss(new, old, advantages, MASK), policy, **EXACT)
    torch.testing.assert_close(0.1 * value_loss(values, old_values, returns, MASK), value, **EXACT)
    assert clip_fraction(new, old, advantages, MASK) == pytest.approx(
        stats["policy/clipfrac"].item(), rel=1e-6
    )
    torch.testing.assert_close(entropy(logits, MASK), stats["policy/entropy"], **EXACT)
    torch.testing.assert_close(
        masked_mean(kl_estimate(old, new, "k2"), MASK), stats["policy/approxkl"], **EXACT
    )
    torch.testing.assert_close(
        masked_mean(kl_estimate(old, new, "k1"), MASK), stats["policy/policykl"], **EXACT
    )
    assert mean_ratio(new, old, MASK) == pytest.approx(
        masked_mean(stats["policy/ratio"], MASK).item(), rel=1e-12
    )


def test_the_adaptive_coefficient_equals_trls(trl):
    controller, ours = trl.AdaptiveKLController(0.2, 6.0, 10000), 0.2
    for kl in (0.0, 3.0, 6.1, 40.0, 6.0):
        controller.update(kl, 256)
        ours = next_kl_coefficient(ours, kl, 6.0, 256, 10000)
        assert ours == pytest.approx(controller.value, rel=1e-14)


MODULE = "minillama.rlhf.ppo"
PAPER, VALUE = test_the_policy_loss_is_the_papers_formula, test_the_value_loss_is_the_clipped_formula
REWARD, PLACES = (
    test_the_reward_is_minus_beta_kl_with_the_score_at_the_last_real_token,
    test_places_of_the_score_pay_what_they_say,
)
WHITE, STATISTICS = (
    test_whitening_is_over_real_tokens_only,
    test_mean_and_variance_are_those_of_the_real_tokens,
)
KL_RULE = test_the_kl_coefficient_follows_the_papers_rule_and_its_clip
CLIPPED, PADDING = (
    test_the_clip_fraction_counts_the_tokens_without_gradient,
    test_padding_touches_neither_losses_nor_gradients,
)
MUTANTS = [
    # whitening
    Mutant(MODULE, "_blank(x, mask).sum() / mask.sum()", "_blank(x, mask).mean()", STATISTICS),
    Mutant(
        MODULE,
        "(x - x.sum() / n).masked_fill(~mask, 0.0).square()",
        "(x - x.sum() / n).square()",
        STATISTICS,
    ),
    Mutant(MODULE, "(n - 1 if unbiased else n)", "(n if unbiased else n - 1)", STATISTICS),
    Mutant(
        MODULE, "(white + mean if keep_mean else white)", "(white if keep_mean else white + mean)", WHITE
    ),
    Mutant(
        MODULE,
        "(white + mean if keep_mean else white)",
        "(white + mean)",
        test_whitened_advantages_are_centred_with_deviation_one,
    ),
    Mutant(MODULE, "torch.rsqrt(masked_variance", "torch.reciprocal(masked_variance", WHITE),
    Mutant(MODULE, "else white).masked_fill(~mask, 0.0)", "else white)", WHITE),
    # rewards
    Mutant(
        MODULE,
        "at_least_fp32(log_q) - at_least_fp32(log_p)",
        "at_least_fp32(log_p) - at_least_fp32(log_q)",
        test_kl_estimates_are_schulmans,
    ),
    Mutant(MODULE, "0.5 * x.square() if", "x.square() if", test_kl_estimates_are_schulmans),
    Mutant(MODULE, "torch.expm1(x) - x", "torch.expm1(x) + x", test_k1_and_k3_are_unbiased_under_p),
    Mutant(MODULE, "rewards_BT = -kl_coefficient", "rewards_BT = kl_coefficient", REWARD),
    Mutant(
        MODULE, 'if score_at == "pad":\n        place_B', "if True:\n        place_B", REWARD
    ),  # on the pad slot
    Mutant(
        MODULE,
        "T - 1 - mask_BT.flip(-1).int().argmax(-1)",
        "mask_BT.sum(-1) - 1",
        test_left_padding_moves_the_score_with_the_text,
    ),
    Mutant(
        MODULE,
        "T - 1 - mask_BT.flip(-1).int().argmax(-1)",
        "torch.full_like(mask_BT[:, 0], T - 1, dtype=torch.long)",
        REWARD,
    ),
    Mutant(MODULE, "(place_B + 1).clamp(max=T - 1)", "place_B + 1", PLACES),
    Mutant(
        MODULE,
        "score_B[:, None] * mask_BT",
        "score_B[:, None] / mask_BT.sum(1, keepdim=True) * mask_BT",
        PLACES,
    ),
    Mutant(MODULE, ".scatter_add(", ".scatter(", REWARD),  # the score replaces the last token's penalty
    Mutant(
        MODULE,
        "score_B.clamp(-score_limit, score_limit)",
        "score_B.clamp(max=score_limit)",
        test_scores_are_cut_at_their_limit,
    ),
    Mutant(
        MODULE,
        "kl_estimate(_blank(log_prob_BT, mask_BT), _blank(ref_log_prob_BT, mask_BT), estimator)",
        "kl_estimate(log_prob_BT, ref_log_prob_BT, estimator)",
        test_rewards_ignore_what_stands_on_padding,
    ),
    Mutant(
        MODULE,
        "mask_BT | F.pad(mask_BT[:, :-1], (1, 0), value=False)",
        "mask_BT",
        test_the_reward_mask_covers_every_reward,
    ),
    Mutant(
        MODULE,
        "torch.where(ended_B, score_B, ",
        "torch.where(~ended_B, score_B, ",
        test_a_text_without_eos_gets_the_fixed_low_score,
    ),
    Mutant(MODULE, "min(max(kl / target - 1.0, -limit), limit)", "kl / target - 1.0", KL_RULE),
    Mutant(MODULE, "(1.0 + error * episodes", "(1.0 - error * episodes", KL_RULE),
    Mutant(MODULE, "error * episodes / horizon", "error / horizon", KL_RULE),
    # losses
    Mutant(MODULE, "objective_BT = torch.minimum(", "objective_BT = torch.maximum(", PAPER),
    Mutant(MODULE, "clipped_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip)", "clipped_BT = ratio_BT", PAPER),
    Mutant(
        MODULE,
        "clipped_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip)",
        "clipped_BT = ratio_BT.clamp(max=1.0 + clip)",
        PAPER,
    ),
    Mutant(
        MODULE,
        "return -masked_mean(objective_BT, mask_BT)",
        "return masked_mean(objective_BT, mask_BT)",
        PAPER,
    ),
    Mutant(MODULE, "return -masked_mean(objective_BT, mask_BT)", "return -objective_BT.mean()", PAPER),
    Mutant(
        MODULE,
        "ratio_BT.clamp(max=ratio_limit)",
        "ratio_BT",
        test_a_ratio_limit_bounds_the_cost_of_a_token,
    ),
    Mutant(
        MODULE,
        "objective_BT.sum(-1) / lengths_B.clamp(min=1)",
        "objective_BT.mean(-1)",
        test_the_average_over_answers_is_the_mean_of_their_means,
    ),
    Mutant(
        MODULE,
        "_blank(old_log_prob_BT, mask_BT).detach()).exp()",
        "_blank(old_log_prob_BT, mask_BT).detach())",
        PAPER,
    ),
    Mutant(MODULE, "torch.maximum(error_BT", "torch.minimum(error_BT", VALUE),
    Mutant(
        MODULE,
        "old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)",
        "returns_BT + (values_BT - returns_BT).clamp(-clip, clip)",
        VALUE,
    ),
    Mutant(MODULE, "return 0.5 * masked_mean(error_BT", "return masked_mean(error_BT", VALUE),
    Mutant(
        MODULE,
        "return at_least_fp32(x).masked_fill(~mask, 0.0)",
        "return at_least_fp32(x) * mask",
        PADDING,
    ),
    Mutant(
        MODULE,
        "_blank(advantages_BT, mask_BT).detach()",
        "_blank(advantages_BT, mask_BT)",
        test_targets_receive_no_gradient,
    ),
    # what to watch
    Mutant(
        MODULE,
        "advantages_BT < ratio_BT * advantages_BT",
        "advantages_BT != ratio_BT * advantages_BT",
        CLIPPED,
    ),
    Mutant(MODULE, "logits_BTV[mask_BT]", "logits_BTV", test_entropy_is_that_of_the_definition),
    Mutant(
        MODULE,
        "_blank(returns_BT, mask_BT) - _blank(values_BT, mask_BT), mask_BT)",
        "_blank(values_BT, mask_BT), mask_BT)",
        test_explained_variance_is_that_of_the_definition,
    ),
    Mutant(
        MODULE,
        "(1.0 - left / total)",
        "(left / total)",
        test_explained_variance_is_that_of_the_definition,
    ),
]
