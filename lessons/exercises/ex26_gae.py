"""Exercise 26: advantages of answers of unequal length (lesson 26)."""


def gae(rewards_BT, values_BT, mask_BT, gamma, lam):
    """Generalised advantage estimation over the real tokens of each row: (advantages, returns), both (B, T).

        delta_t = r_t + gamma V_(t+1) - V_t        A_t = delta_t + gamma lam A_(t+1)        R_t = A_t + V_t

    rewards_BT, values_BT: float, all of one dtype, which the results keep; mask_BT: bool, True on real tokens. The real
    tokens of a row stand side by side, with padding after them, before them, or both. Behind the last real token the
    value and the advantage are 0. Where the mask is False both results are 0, and what stands there (any number, NaN
    too) changes nothing.
    """
    raise NotImplementedError("your code here")
