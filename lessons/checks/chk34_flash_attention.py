"""Checks of exercise 34: parts of the keys give the softmax of all, tiles are counted as by looking at every score, and
a kernel attends in one pass, without a race, reading each tile once for a block."""

import math

import torch

from minillama.course.exercise import Wrong, close, on_gpu

HINTS = {
    "combine": (
        "Each o is a mean already. What was it divided by, and what should it be divided by?",
        "Part n holds the share exp(L_n - L) of all weights, where exp(L) is the sum of all exp(L_n).",
        "o = sum_n exp(L_n - L) o_n, and the L of all together is the logsumexp of the L_n.",
    ),
    "empty": (
        "With an empty part L is -inf: its share is exp(-inf) = 0. If all are empty, what are -inf - (-inf) and 0 / 0?",
        "Take -inf out of the largest L before you subtract it, and 0 out of the sum before you divide by it.",
    ),
    "far": ("Subtract the largest L of all parts first: no exponent is then positive.",),
    "tiles": (
        "The last tile of a row may be cut short, and yet it is visited: round up.",
        "Of the queries in a tile, which one sees the most keys?",
        "Bottom-right: the last of all queries sees the last of all keys. Query i sees i + keys - queries + 1 of them.",
        "More queries than keys: the first queries see nothing, and no count is negative.",
    ),
    "kernel": (
        "Two threads met at a word of shared memory with nothing between them that orders the two. A tile has two such "
        "moments: before it is read by others, and before it is overwritten by the next.",
        "T need not be a multiple of 8 or 32: which rows exist, and which warps have no query?",
        "Query i sees the keys j <= i, and no other. What must the score of another be, so that exp makes it 0?",
        "When the largest score rises from m to m_new, both l and o were summed with the old one: multiply both by "
        "exp(m - m_new).",
        "lse = m + log l, with the l of the whole warp.",
    ),
    "large": ("Every exponent must be s minus the largest score so far: that is never positive.",),
    "moved": (
        "All 8 warps of a block need the same keys. Who copies them from global memory, and how often?",
        "The last query of a block sees the most keys. Which tiles need the block not look at?",
        "In one request neighbouring lanes must read neighbouring numbers: 32 floats of one row.",
    ),
}
AFTER = {"moved": "kernel"}  # what is counted must first be right


def _scores(T, S, dtype=torch.float64):
    return torch.randn(T, S, dtype=dtype), torch.randn(S, 3, dtype=dtype)


def _parts(scores, v, cuts):
    """(o, L) of the keys between each two neighbours of cuts."""
    for first, last in zip(cuts, cuts[1:], strict=False):
        some = scores[:, first:last]
        weights = some.softmax(-1).nan_to_num(0.0) if last > first else some
        yield weights @ v[first:last], some.logsumexp(-1)


def check_combine(learner):
    for T, cuts in ((1, (0, 1, 2)), (4, (0, 3, 10)), (3, (0, 1, 5, 6, 17)), (2, (0, 9))):
        scores, v = _scores(T, cuts[-1])
        o, L = learner.combine(list(_parts(scores, v, cuts)))
        close(f"o of keys cut at {cuts}", o, scores.softmax(-1) @ v, 1e-12, hint=0)
        close(f"L of keys cut at {cuts}", L, scores.logsumexp(-1), 1e-12, hint=2)


def check_empty(learner):
    scores, v = _scores(3, 8)
    scores[0, :4] = scores[2] = -math.inf  # query 0 sees the second half only, query 2 nothing
    o, L = learner.combine(list(_parts(scores, v, (0, 4, 4, 8))))
    close("o with empty parts", o, scores.softmax(-1).nan_to_num(0.0) @ v, 1e-12, hint=0 if o[0].isnan().any() else 1)
    close("L with empty parts", L, scores.logsumexp(-1), 1e-12, hint=1)


def check_far(learner):
    for shift in (1000.0, -1000.0):
        scores, v = _scores(2, 6)
        scores += shift
        o, L = learner.combine(list(_parts(scores, v, (0, 2, 6))))
        close(f"o of scores near {shift:g}", o, scores.softmax(-1) @ v, 1e-12, hint=0)
        close(f"L of scores near {shift:g}", L, scores.logsumexp(-1), 1e-9, hint=0)


def check_tiles(learner):
    shapes = ((64, 64, 16, 16, 1), (1, 1, 16, 16, 1), (33, 33, 16, 16, 1), (20, 20, 16, 4, 1), (17, 40, 8, 16, 2),
              (1, 100, 16, 16, 2), (40, 5, 4, 2, 3), (9, 3, 2, 2, 3))
    for *shape, hint in shapes:
        T, S, tall, wide = shape
        for causal in (False, True):
            seen = torch.ones(T, S, dtype=torch.bool).tril(S - T) if causal else torch.ones(T, S, dtype=torch.bool)
            wanted = sum(bool(seen[i:i + tall, j:j + wide].any()) for i in range(0, T, tall) for j in range(0, S, wide))
            close(f"tiles_visited{(*shape, causal)}", learner.tiles_visited(*shape, causal), wanted, 0,
                  hint=hint if causal else 0)


def _attended(learner, T, size=1.0):
    """(profile, o, lse, wanted o, wanted lse) of the learner's kernel on random numbers."""
    q, k, v, o = (torch.randn(T + 64, 32)[:T] for _ in range(4))  # 64 rows of nobody's memory behind each
    q *= size
    lse = torch.zeros(T + 64)[:T]
    kinds = {"race": 0, "uninitialised": 0, "barrier": 0, "out of bounds": 1}
    profile = on_gpu(learner, "attention", q, k, v, o, lse, T, hints=kinds)
    scores = q.double() @ k.double().T / math.sqrt(32) + torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)
    return profile, o, lse, (scores.softmax(-1) @ v.double()).float(), scores.logsumexp(-1).float()


def check_kernel(learner):
    for T in (1, 8, 31, 32, 33, 70):
        _, o, lse, wanted, wanted_lse = _attended(learner, T)
        close(f"o of {T} tokens", o, wanted, 1e-5, hint=2 if T <= 32 else 3)
        close(f"lse of {T} tokens", lse, wanted_lse, 1e-5, hint=4)


def check_large(learner):
    for size in (100.0, 1000.0):
        _, o, _, wanted, _ = _attended(learner, 40, size)
        if not o.isfinite().all():
            raise Wrong(f"{int((~o.isfinite()).sum())} of {o.numel()} outputs are not finite for q near {size:g}", 0)
        close(f"o of scores up to some {size:g}", o, wanted, size * 1e-5, hint=0)


def check_moved(learner):
    T = 96
    profile, *_ = _attended(learner, T)
    keys = sum(min(T, (8 * block + 8 + 31) // 32 * 32) for block in range(T // 8))  # of the tiles that a block visits
    most = 4 * 32 * (T + 2 * keys)
    read = 32 * profile.global_load.sectors
    if read > 1.02 * most:
        wide = profile.global_load.sectors_per_request > 6
        everything = 4 * 32 * (T + 2 * T * T // 8)
        raise Wrong(f"{read} bytes are read at T = {T}; {most} are enough",
                    2 if wide else 1 if read <= 1.02 * everything else 0)
    written = profile.global_store.lanes
    if written > T * 32 + T:
        raise Wrong(f"{written} numbers are written; o and lse have {T * 32 + T}", 0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("/ total.masked_fill(total == 0, 1.0)[:, None]", "", "combine", 0),
    ("(share[..., None] * o).sum(0)", "o.sum(0)", "combine", 0),
    ("base + total.log()", "base", "combine", 2),
    ("total.masked_fill(total == 0, 1.0)", "total", "empty", 1),
    ("largest.masked_fill(largest == -math.inf, 0.0)", "torch.zeros_like(largest)", "far", 0),
    ("math.ceil(seen / wide)", "seen // wide", "tiles", 0),
    ("first + tall - 1", "first", "tiles", 1),
    ("min(keys, last + keys - queries + 1)", "min(keys, last + 1)", "tiles", 2),
    ("max(0, math.ceil(seen / wide))", "math.ceil(seen / wide)", "tiles", 3),
    ("    __syncthreads();  // the tile is complete\n", "", "kernel", 0),
    ("    __syncthreads();  // nobody reads the previous tile any more\n", "", "kernel", 0),
    ("inside ? k[(start + row) * 32 + lane] : 0.0f", "k[(start + row) * 32 + lane]", "kernel", 1),
    ("  if (query >= T) return;\n", "", "kernel", 1),
    ("start + lane <= query ?", "start + lane < T ?", "kernel", 2),
    ("    mixed *= alpha;\n", "", "kernel", 3),
    ("m + logf(l)", "m * logf(l)", "kernel", 4),
    ("highest = fmaxf(m, s);\n", "highest = 0;\n", "large", 0),
    ("min(T, int(blockIdx.x) * 8 + 8)", "T", "moved", 1),
    ("* V[j][lane]", "* v[min(start + j, T - 1) * 32 + lane]", "moved", 0),
    ("* K[lane][c]", "* k[min(start + lane, T - 1) * 32 + c]", "moved", 2),
]
