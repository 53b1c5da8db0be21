"""Exercise 12: a cache that rolls over a window.

It serves one layer and takes one token at a time. It holds `window` tokens and never more: when it is full, a new
token takes the place of the oldest. The solution is in lessons/solutions/.
"""


class RollingCache:
    """The keys and values of the last `window` tokens of one layer."""

    def __init__(self, window, batch, n_kv_heads, head_dim, dtype):
        """Make room once: (batch, n_kv_heads, window, head_dim) of `dtype` for keys, and the same for values."""
        raise NotImplementedError("your code here")

    def append(self, k_BKd, v_BKd):
        """Take in one token, (B, K, d) each; return (keys, values) of the last tokens, it included.

        Both are (B, K, n, d), where n = min(tokens seen so far, window), the oldest token first.
        """
        raise NotImplementedError("your code here")
