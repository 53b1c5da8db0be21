"""Direct preference optimisation: learning from pairs without a reward model and without sampling."""

from minillama.config_checks import Range, check
from minillama.rlhf.reward_model import preference_loss
from minillama.train.sequence_loss import at_least_fp32, learned_losses, next_targets


def sequence_log_probs(logits_BTV, labels_BT):
    """log pi(y | x) of each sequence, (B,): the sum over its learned tokens (labels not -100), fp32.

    A sum, not a mean: a mean would make the implicit reward per token, and change which answer is preferred.
    """
    losses_N, rows_N = learned_losses(logits_BTV, next_targets(labels_BT))
    return -losses_N.new_zeros(len(labels_BT)).index_add(0, rows_N, losses_N)


def implicit_reward(policy, reference, beta=0.1):
    """beta * (log pi - log pi_ref), the reward the policy itself stands for, up to a constant of the
    prompt (2305.18290 eq. 5)."""
    return beta * (at_least_fp32(policy) - at_least_fp32(reference))


def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1, label_smoothing=0.0):
    """Mean of -log sigmoid(reward of the chosen - reward of the rejected answer) (2305.18290 eq. 7).

    The four arguments are `sequence_log_probs` of the two answers under the policy and the frozen reference, (B,).
    beta: how dear it is to leave the reference; 0.1 is the paper's usual value.
    label_smoothing: the share e in [0, 0.5) of pairs whose label is believed to be the wrong way round; the loss is
    then (1 - e) * loss + e * loss of the swapped pair, and its best difference is finite, log((1 - e) / e).
    """
    check("label_smoothing", label_smoothing, float, Range(0, below=0.5))
    check("beta", beta, float, Range(1e-9))
    shapes = {tuple(x.shape) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)}
    if len(shapes) != 1:
        raise ValueError(f"log-probabilities have shapes {sorted(shapes)}: expected one shape for all four")
    chosen = implicit_reward(policy_chosen, reference_chosen.detach(), beta)
    rejected = implicit_reward(policy_rejected, reference_rejected.detach(), beta)
    return preference_loss(chosen, rejected, label_smoothing=label_smoothing)
