"""FlashAttention in plain PyTorch: exact attention that never holds a T x S matrix, only a Br x Bc tile of it.

Br queries walk past Bc keys at a time and keep, for each query, the largest score so far m, the sum l of exp(score - m)
and the mixture O of values with the same weights. A larger score later rescales both by exp(m - m_new): the softmax is
exact, though no row of it was ever whole (arXiv 1805.02867; tiled in 2205.14135, in this order of loops in 2307.08691).
The backward pass makes P = exp(S - LSE) again, tile by tile. Letters of the papers: i and j are tiles of queries and of
keys, S_ij and P_ij are (Br, Bc); a plain S is the number of keys. G = H / K query heads share a key/value head.

Memory: q, k, v, O and T numbers a head, where `attention` keeps T S. This is the readable twin of the kernel of lesson
34, not a fast one: a kernel gains because a tile stays on the chip, and here every tile goes through memory.
"""

import math

import torch


def tiled_attention(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None, block_q=64, block_k=64):
    """`minillama.attention.attention`, the same in every case, in O(T + S) memory: (B, H, T, d) in q's dtype.

    block_q, block_k: Br and Bc, queries and keys in a tile; they change rounding and nothing else. Scores, statistics
    and sums are fp32 (float64 for float64), P is not rounded. Second derivatives are right too, but take O(T S) memory.
    """
    return tiled_attention_with_lse(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS, block_q, block_k)[0]


def tiled_attention_with_lse(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None, block_q=64, block_k=64):
    """(O, LSE): `tiled_attention` and the natural logarithm of each query's sum of exp(score), (B, H, T), fp32.

    LSE is +inf for a query that sees nothing, so that exp(S - LSE) = 0; it has a gradient as well. ValueError for heads
    that cannot be shared, a mask that does not fit or a block of no size; TypeError for a mask that is not bool.
    """
    B, H, T = q_BHTd.shape[:3]
    K, S = k_BKSd.shape[1:3]
    if H % K:
        raise ValueError(f"{H} query heads cannot share {K} key/value heads evenly")
    if min(block_q, block_k) < 1:
        raise ValueError(f"tiles of {block_q} queries and {block_k} keys: both must be at least 1, usual are 64 and 64")
    if mask_BTS is not None:
        if mask_BTS.dtype != torch.bool:
            raise TypeError(f"mask_BTS is {mask_BTS.dtype}: give torch.bool, True where a key may be seen")
        if mask_BTS.dim() != 3 or any(n not in (1, m) for n, m in zip(mask_BTS.shape, (B, T, S), strict=True)):
            raise ValueError(f"mask_BTS has shape {tuple(mask_BTS.shape)}: ({B}, {T}, {S}) is wanted, or 1s in it")
        mask_BTS = mask_BTS.expand(B, T, S)  # a view
    return TiledAttention.apply(q_BHTd, k_BKSd, v_BKSd, causal, mask_BTS, block_q, block_k)


class TiledAttention(torch.autograd.Function):
    """Between the passes it keeps q, k, v, O, LSE (and the caller's mask): nothing of size T x S is its own."""

    @staticmethod
    def forward(ctx, q, k, v, causal, mask, Br, Bc):
        O, LSE = forward_by_tiles(q, k, v, causal, mask, Br, Bc)
        ctx.save_for_backward(q, k, v, O, LSE, mask)
        ctx.settings = causal, Br, Bc
        return O, LSE

    @staticmethod
    def backward(ctx, dO, dLSE):
        *tensors, mask = ctx.saved_tensors
        causal, Br, Bc = ctx.settings
        return *backward_by_tiles(dO, dLSE, *tensors, causal, mask, Br, Bc), None, None, None, None


def forward_by_tiles(q, k, v, causal, mask, Br, Bc):
    """arXiv 2307.08691, algorithm 1: O = softmax(q k^T / sqrt(d)) v and LSE, a tile of queries after the other."""
    (B, H, T, _), (K, S, d_v) = q.shape, v.shape[1:]
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = in_groups(q, K), in_groups(k, K), in_groups(v, K)
    O, LSE = q.new_empty(B, K, H // K, T, d_v), q.new_empty(B, K, H // K, T, dtype=dtype)
    for i in tiles(T, Br):
        Q_i, n = q[..., i, :].to(dtype), i.stop - i.start
        O_i, l = (Q_i.new_zeros(B, K, H // K, n, width) for width in (d_v, 1))
        m = torch.full_like(l, -math.inf)
        for j in tiles(S, Bc):
            if above_diagonal(i, j, T, S, causal):
                break  # and so are all further keys
            S_ij = score_tile(Q_i, k[..., j, :].to(dtype), i, j, T, S, causal, mask)
            m_new = torch.maximum(m, S_ij.amax(-1, keepdim=True))
            finite = m_new.masked_fill(m_new == -math.inf, 0.0)  # nothing seen yet: -inf - (-inf) would be NaN
            P_ij, rescale = (S_ij - finite).exp(), (m - finite).exp()
            l = rescale * l + P_ij.sum(-1, keepdim=True)
            O_i = rescale * O_i + P_ij @ v[..., j, :].to(dtype)
            m = m_new
        O[..., i, :] = O_i / l.masked_fill(l == 0, 1.0)  # divided once, at the end; 0 / 1 for who saw nothing
        LSE[..., i] = (m + l.log()).masked_fill(l == 0, math.inf).squeeze(-1)
    return O.flatten(1, 2), LSE.flatten(1, 2)


def backward_by_tiles(dO, dLSE, q, k, v, O, LSE, causal, mask, Br, Bc):
    """(dQ, dK, dV) by arXiv 2307.08691, algorithm 2 (derived in 2205.14135, appendix B.2), keys in the outer loop.

    dV = P^T dO,  dP = dO V^T,  dS = P (dP - D),  dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d), where the softmax's own
    sum over a row, D = sum_j P_j dP_j, is rowsum(dO O) and needs no row. As dLSE/dS = P, dLSE is taken from D.
    """
    K, T, S, root = k.shape[1], q.shape[2], k.shape[2], math.sqrt(q.shape[3])
    dtype, shapes = LSE.dtype, (q, k, v)
    D = (dO.to(dtype) * O.to(dtype)).sum(-1) - dLSE
    q, k, v, dO, D, LSE = (in_groups(x, K) for x in (q, k, v, dO, D.unsqueeze(-1), LSE.unsqueeze(-1)))
    dQ = torch.zeros_like(q, dtype=dtype)  # each tile of keys adds to it
    dK, dV = torch.empty_like(k), torch.empty_like(v)
    for j in tiles(S, Bc):
        K_j, V_j = k[..., j, :].to(dtype), v[..., j, :].to(dtype)
        dK_j, dV_j = torch.zeros_like(K_j), torch.zeros_like(V_j)
        for i in tiles(T, Br):
            if above_diagonal(i, j, T, S, causal):
                continue  # later queries may see these keys
            Q_i, dO_i = q[..., i, :].to(dtype), dO[..., i, :].to(dtype)
            P_ij = (score_tile(Q_i, K_j, i, j, T, S, causal, mask) - LSE[..., i, :]).exp()
            dS_ij = P_ij * (dO_i @ V_j.mT - D[..., i, :])
            dV_j += (P_ij.mT @ dO_i).sum(2, keepdim=True)  # all queries of the group read this key
            dK_j += (dS_ij.mT @ Q_i).sum(2, keepdim=True)
            dQ[..., i, :] += dS_ij @ K_j
        dK[..., j, :], dV[..., j, :] = dK_j / root, dV_j
    dQ = (dQ / root).to(q.dtype)
    return tuple(gradient.reshape(x.shape) for gradient, x in zip((dQ, dK, dV), shapes, strict=True))


def tiles(length, block):
    """Slices of `block` rows each, the last perhaps shorter, which together are range(length)."""
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def in_groups(x_BHTd, K):
    """(B, H, T, d) -> (B, K, H / K, T, d), a view: query head h reads key/value head h // (H / K)."""
    return x_BHTd.unflatten(1, (K, x_BHTd.shape[1] // K))


def above_diagonal(i, j, T, S, causal):
    """True where not even the last query of the tile may see its first key: key <= query + S - T, bottom-right."""
    return causal and j.start > i.stop - 1 + S - T


def score_tile(Q_i, K_j, i, j, T, S, causal, mask):
    """S_ij = Q_i K_j^T / sqrt(d), -inf where the query may not see the key: (B, K, G, Br, Bc)."""
    S_ij = Q_i @ K_j.mT / math.sqrt(Q_i.shape[-1])
    if causal and j.stop - 1 > i.start + S - T:  # only a tile that the diagonal cuts needs a look at positions
        query, key = (torch.arange(x.start, x.stop, device=Q_i.device) for x in (i, j))
        S_ij = S_ij.masked_fill(key > query[:, None] + S - T, -math.inf)
    return S_ij if mask is None else S_ij.masked_fill(~mask[:, None, None, i, j], -math.inf)
