"""Exercise 08: the causal mask behind a cache, grouped-query attention, and a whole layer.

T queries belong to the last T of S tokens (S >= T): query 0 stands at place S - T, the last one at S - 1.
The solution is in lessons/solutions/.
"""


def causal_mask(T, S):
    """Which of S keys each of the last T tokens may see: (T, S) bool, True where it may look."""
    raise NotImplementedError("your code here")


def grouped_attention(q_BHTd, k_BKSd, v_BKSd):
    """Causal attention, scaled by 1 / sqrt(d), in which neighbouring query heads share a key/value head.

    q_BHTd: (B, H, T, d). k_BKSd, v_BKSd: (B, K, S, d), H a multiple of K, S >= T.
    Query heads 0 to H/K - 1 read key/value head 0, the next H/K read head 1, and so on.
    Returns (B, H, T, d) in the dtype of q. Do not call minillama.attention.
    """
    raise NotImplementedError("your code here")


def attention_layer(x_BTD, wq, wk, wv, wo, H, K):
    """A layer without RoPE: projections, causal grouped-query attention, output matrix.

    x_BTD: (B, T, D). Matrices are (out, in), as in nn.Linear: wq (H d, D), wk and wv (K d, D), wo (D, H d). Rows
    0 to d - 1 of wq make query head 0, the next d make head 1, and so on. Returns (B, T, D).
    """
    raise NotImplementedError("your code here")
