"""Exercise 27: PPO's clipped loss, and when it pulls (lesson 27)."""


def policy_loss(log_prob_BT, old_log_prob_BT, advantages_BT, mask_BT, clip):
    """-mean over real tokens of min(rho A, clip(rho, 1 - clip, 1 + clip) A), rho = exp(log_prob - old): a scalar.

    All (B, T) and float but the mask (bool, True on real tokens). What stands under a False changes nothing. Gradient
    flows into log_prob_BT alone, also where the old log-probabilities or the advantages require one.
    """
    raise NotImplementedError("your code here")


def pull(ratio, advantage, clip):
    """Which way the loss pulls a token's probability: 1 up, -1 down, 0 not at all.

    ratio: float, rho of the token; advantage: float. Never ask PyTorch: this is a table of four cases. Exactly on the
    border, rho = 1 + clip or 1 - clip, either answer is accepted.
    """
    raise NotImplementedError("your code here")


def token_rewards(score_B, log_prob_BT, ref_log_prob_BT, mask_BT, beta):
    """Reward of each token, (B, T): -beta (log_prob - ref), and at the last real token of each row its score besides;
    0 where the mask is False. The real tokens of a row stand at its front, at least one.
    """
    raise NotImplementedError("your code here")
