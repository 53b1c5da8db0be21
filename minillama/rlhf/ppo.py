"""PPO for language models: rewards of tokens, whitening, the two clipped losses, and what to watch.

Published programs differ in small things that change results. Each such thing is one argument of one function here;
the default is argued where it is documented. `run.py ppo --like NAME` runs a column (`train_ppo.PPOConfig`).

| choice | argument | InstructGPT | OpenAI 2019 | TRL v1 | TRL v2 | ColossalChat | DeepSpeed-Chat |
|---|---|---|---|---|---|---|---|
| which token gets the score | `token_rewards(score_at=)` | eos | eos | eos | pad | every_token | eos |
| bound on the score | `token_rewards(score_limit=)` | - | - | optional | - | 5 | 5 |
| KL estimate in the reward | `token_rewards(estimator=)` | k1 | k1 | k1 | k1 | k1 | k1 |
| coefficient of the KL penalty | `next_kl_coefficient` | fixed | adaptive | adaptive | fixed | fixed | fixed |
| variance of whitening | `whiten(unbiased=)` | not told | biased | unbiased | unbiased | no whitening | no whitening |
| rewards whitened, mean kept | `whiten(keep_mean=True)` | - | yes | optional | optional | no | no |
| bound on the ratio | `policy_loss(ratio_limit=)` | - | - | - | - | 10 | - |
| a batch is left above a mean ratio of | `train_ppo.PPOConfig.mean_ratio` 10 | - | - | 10 | - | 20 | - |
| a batch is left above a KL per token of | `PPOConfig.old_kl` 0.05, `trust_region` | - | - | optional | - | - | - |
| KL target and horizon | `PPOConfig.kl_target` 3, 300 | - | 6, 10000 | 6, 10000 | - | - | - |
| the policy's rate | `train_ppo.with_rates`, 0.064 / D | not told | 1e-5 | 1.41e-5 | 3e-6 | 9e-6 | 9.65e-6 |
| the policy that is kept | the best (`rlhf.best_policy`) | not told | last | last | last | last | last |
| the policy loss averages over | `policy_loss(average=)` | not told | tokens | tokens | tokens | answers | tokens |

Shapes: (B, T) over the tokens of the answers; masks are bool, True on real tokens. What stands under a
False, NaN included, changes neither a value nor a gradient. Everything is computed in at least fp32.
"""

import math

import torch

from minillama.config_checks import Words, check
from minillama.train.sequence_loss import at_least_fp32

KL_ESTIMATORS = Words(("k1", "k2", "k3"))
SCORE_PLACES = Words(("eos", "pad", "every_token"))
AVERAGES = Words(("tokens", "answers"))


def masked_mean(x, mask):
    """Mean of x where mask is True; a scalar tensor of at least fp32."""
    return _blank(x, mask).sum() / mask.sum()


def mean_of_answers(x_BT, mask_BT):
    """Mean over answers of each answer's mean over its real tokens, 1/B sum_i 1/|o_i| sum_t; a scalar tensor."""
    lengths_B = mask_BT.sum(-1)
    return (_blank(x_BT, mask_BT).sum(-1) / lengths_B.clamp(min=1)).sum() / (lengths_B > 0).sum()


def masked_variance(x, mask, unbiased=False):
    """Mean squared distance from the masked mean; `unbiased` divides by n - 1 (n >= 2)."""
    x, n = _blank(x, mask), mask.sum()
    if unbiased and n < 2:
        raise ValueError(f"{int(n)} real token: the unbiased variance needs two; pass unbiased=False")
    squares = (x - x.sum() / n).masked_fill(~mask, 0.0).square().sum()
    return squares / (n - 1 if unbiased else n)


def whiten(x, mask, keep_mean=False, unbiased=False, epsilon=1e-8):
    """(x - mean) / sqrt(variance + epsilon) over the real tokens of the whole batch; 0 elsewhere.

    Advantages are centred (keep_mean=False): subtracting a constant leaves the expected gradient alone
    and lessens its noise. Rewards keep their mean, only their scale changes (1909.08593's program):
    centring them would change the task, paying long answers for being long. Padding must not count: it
    would pull the mean to 0 and shrink the deviation, differently for every batch.
    unbiased: the biased variance is our default, defined for one token and exactly 1 after whitening;
    at the 1,000 tokens of a small batch the other differs by 0.05 %.
    """
    x = _blank(x, mask)
    mean = masked_mean(x, mask)
    white = (x - mean) * torch.rsqrt(masked_variance(x, mask, unbiased) + epsilon)
    return (white + mean if keep_mean else white).masked_fill(~mask, 0.0)


def kl_estimate(log_p, log_q, estimator="k1"):
    """Estimate of KL(p || q) from tokens that p sampled, elementwise. With x = log q - log p:

        k1 = -x    k2 = x^2 / 2    k3 = exp(x) - 1 - x    (J. Schulman, "Approximating KL Divergence", 2020)

    k1 and k3 are unbiased. k1 has either sign: as a penalty in the reward its expected gradient is that of the true KL,
    so it is the default there. k3 is never negative and far less noisy where p and q are close: the one to log.
    """
    check("estimator", estimator, str, KL_ESTIMATORS)
    x = at_least_fp32(log_q) - at_least_fp32(log_p)
    if estimator == "k1":
        return -x
    return 0.5 * x.square() if estimator == "k2" else torch.expm1(x) - x


@torch.no_grad()
def token_rewards(score_B, log_prob_BT, ref_log_prob_BT, mask_BT, kl_coefficient, score_at="eos",
                  estimator="k1", score_limit=None):
    """Reward of each token, (B, T): -beta * KL estimate, plus the text's score at one place (arXiv 2203.02155 eq. 2).

    score_at: "eos" pays at the last real token, the action that ended the text and caused the score: our default. "pad"
    pays one slot later, where no action was taken (the last slot if there is none later); the value head is then
    trained on that slot too, so advantages must be computed with that slot in their mask. "every_token" pays the
    whole score at each token, which multiplies it by the length of the answer and so rewards length.
    score_limit: scores are cut to [-limit, limit]; None by default, as normalised scores
    (`RewardModel.normalise`) have no outliers worth hiding, and a cut hides a reward model gone wrong.
    """
    check("score_at", score_at, str, SCORE_PLACES)
    if not mask_BT.any(-1).all():
        raise ValueError("an answer without a real token has no place for its score: drop it from the batch")
    penalty_BT = kl_estimate(_blank(log_prob_BT, mask_BT), _blank(ref_log_prob_BT, mask_BT), estimator)
    rewards_BT = -kl_coefficient * penalty_BT
    score_B = at_least_fp32(score_B)
    if score_limit is not None:
        score_B = score_B.clamp(-score_limit, score_limit)
    if score_at == "every_token":
        return rewards_BT + score_B[:, None] * mask_BT
    T = mask_BT.shape[1]
    place_B = T - 1 - mask_BT.flip(-1).int().argmax(-1)
    if score_at == "pad":
        place_B = (place_B + 1).clamp(max=T - 1)
    return rewards_BT.scatter_add(1, place_B[:, None], score_B.to(rewards_BT.dtype)[:, None])


def punish_missing_eos(score_B, ended_B, score=-1.0):
    """The reward model's score for texts that ended with EOS, a fixed low one for those cut off at the length limit:
    the reward model has only seen whole texts, and says nothing meaningful about half of one."""
    return torch.where(ended_B, score_B, torch.as_tensor(score, dtype=score_B.dtype, device=score_B.device))


def next_kl_coefficient(coefficient, kl, target, episodes, horizon, limit=0.2):
    """The adaptive penalty: beta * (1 + clip(KL / target - 1, -limit, limit) * episodes / horizon), a float.

    arXiv 1909.08593, section 2.2. kl: mean KL of a whole answer (nats, summed over its tokens);
    episodes: answers seen since the last call. The clip keeps one wild batch from moving beta by more
    than limit * episodes / horizon.
    """
    if not math.isfinite(kl) or target <= 0 or horizon <= 0:
        raise ValueError(f"KL {kl}, target {target}, horizon {horizon}: not finite, or not positive")
    error = min(max(kl / target - 1.0, -limit), limit)
    return coefficient * (1.0 + error * episodes / horizon)


def policy_loss(log_prob_BT, old_log_prob_BT, advantages_BT, mask_BT, clip=0.2, ratio_limit=None, average="tokens"):
    """-mean(min(rho A, clip(rho, 1 - clip, 1 + clip) A)), rho = pi / pi_old (arXiv 1707.06347 eq. 7).

    The minimum makes it a pessimist: an action's gain stops paying beyond the clip, its harm never stops costing.
    ratio_limit: a cap on rho itself, which bounds the cost of a token with A < 0 that became far likelier; None (the
    paper) by default: with the clip, and `clip_fraction` watched, such a token ought to be seen, not hidden.
    average: "tokens" (each token weighs the same) or "answers" (mean of each answer's mean: tokens of
    long answers weigh less, so that rambling is punished less than brevity). No gradient flows into the
    old log-probabilities or the advantages.
    """
    check("average", average, str, AVERAGES)
    ratio_BT = _ratio(log_prob_BT, old_log_prob_BT, mask_BT)
    if ratio_limit is not None:
        ratio_BT = ratio_BT.clamp(max=ratio_limit)
    advantages_BT = _blank(advantages_BT, mask_BT).detach()
    clipped_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip)
    objective_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    if average == "tokens":
        return -masked_mean(objective_BT, mask_BT)
    return -mean_of_answers(objective_BT, mask_BT)


def value_loss(values_BT, old_values_BT, returns_BT, mask_BT, clip=0.2):
    """mean of max((V - R)^2, (V_clipped - R)^2) / 2, V_clipped = V_old + clip(V - V_old, -clip, clip).

    The clip, not in PPO's paper but in its code (arXiv 2005.12729, section 3), keeps the value head near the values
    with which the batch's advantages were computed; the maximum is again the pessimist. None turns it off. It is in
    units of the return: 0.2 suits normalised scores and would stall a head that has to learn returns of 50.
    """
    returns_BT = _blank(returns_BT, mask_BT).detach()
    old_values_BT = _blank(old_values_BT, mask_BT).detach()
    values_BT = _blank(values_BT, mask_BT)
    error_BT = (values_BT - returns_BT).square()
    if clip is not None:
        clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (clipped_BT - returns_BT).square())
    return 0.5 * masked_mean(error_BT, mask_BT)


@torch.no_grad()
def clip_fraction(log_prob_BT, old_log_prob_BT, advantages_BT, mask_BT, clip=0.2):
    """Share of tokens whose gradient the clip cut off: outside 1 +- clip, on the side the advantage pushes towards."""
    ratio_BT, advantages_BT = _ratio(log_prob_BT, old_log_prob_BT, mask_BT), _blank(advantages_BT, mask_BT)
    cut_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip) * advantages_BT < ratio_BT * advantages_BT
    return masked_mean(cut_BT.float(), mask_BT).item()


def entropy(logits_BTV, mask_BT):
    """Mean over real tokens of -sum p log p, in nats; a token ruled out by a logit of -inf adds 0, not NaN."""
    probabilities_NV = at_least_fp32(logits_BTV[mask_BT]).softmax(-1)
    return torch.special.entr(probabilities_NV).sum(-1).mean()


def _ratio(log_prob_BT, old_log_prob_BT, mask_BT):
    return (_blank(log_prob_BT, mask_BT) - _blank(old_log_prob_BT, mask_BT).detach()).exp()


def _blank(x, mask):
    """x in at least fp32 with zeros under the mask: filled in before any arithmetic, as NaN times 0 is NaN."""
    if x.shape != mask.shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, the numbers {tuple(x.shape)}: not equal")
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask has dtype {mask.dtype}: pass a bool tensor, True on real tokens")
    if not mask.any():
        raise ValueError("the mask marks no real token: there is nothing to average")
    return at_least_fp32(x).masked_fill(~mask, 0.0)
