"""Checks of exercise 32: the least bytes for many shapes, a trade that gives every lane its own angles, and a kernel
that turns q and k in one launch and moves little more than the least."""

import torch

from minillama.course.exercise import Wrong, close, on_gpu
from minillama.rope import apply_rope_half_split

HINTS = {
    "bytes": (
        "Count one token first: numbers of q and k, once read and once written; then its row of the table.",
        "A row of the table has rotary / 2 pairs of two fp32 numbers, whatever element_bytes is. How many bytes?",
        "Columns behind the first `rotary` cost nothing: the width of a head does not matter.",
    ),
    "trade": (
        "Number the pairs of a head from 0. Which pair is number j of this lane?",
        "Lanes with the same place in their heads turn the same pairs: only lane modulo chunks matters.",
        "Four fp32 numbers are two pairs: pair p lies in lane p // 2, first or second half of its registers.",
    ),
    "kernel": (
        "Where does k begin, and which of its heads is number `head` of both together?",
        "Half-split: the second number of pair i lies `half` columns behind the first. Look at the signs, too.",
    ),
    "moved": (
        "The angle of pair i is the same for all heads of a token. Which loop must be the outer one?",
        "In one request neighbouring lanes must read neighbouring numbers: lane n takes pair n, then pair n + 32.",
    ),
}
AFTER = {"moved": "kernel"}  # what is counted must first be right


def _turned(learner, tokens, heads, kv_heads, half):
    """(profile, results, references) of the learner's kernel on random numbers."""
    q, k = (torch.randn(tokens, n, 2 * half) for n in (heads, kv_heads))
    angles = torch.rand(tokens, half, dtype=torch.float64) * 6.28
    rotations = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    results = [torch.zeros_like(x) for x in (q, k)]
    table = torch.view_as_real(rotations).contiguous()
    profile = on_gpu(learner, "rope", q, k, table, *results, tokens, heads, kv_heads, half)
    return profile, results, [apply_rope_half_split(x, rotations) for x in (q, k)]


def check_bytes(learner):
    for shape in ((1, 1, 0, 2, 2, 4), (1, 32, 8, 128, 128, 2), (7, 5, 1, 96, 96, 2), (3, 4, 4, 80, 80, 4)):
        tokens, heads, kv_heads, width, rotary, e = shape
        once = tokens * (heads + kv_heads) * rotary * e
        got = learner.least_bytes(*shape)
        if got == tokens * 4 * rotary + once:
            raise Wrong(f"least_bytes{shape} is {got}: everything is read, and then it is written too", 0)
        close(f"least_bytes{shape}", got, 2 * once + tokens * rotary // 2 * 8, 0, hint=1)
    close("least_bytes, a part turned", learner.least_bytes(2, 3, 1, 64, 16, 2), 2 * (2 * 2 * 4 * 16 + 64), 0, hint=2)


def check_trade(learner):
    for half, pairs in ((64, 4), (64, 8), (32, 4), (16, 2), (8, 8), (64, 2)):
        chunks = half // pairs
        row = [("cos" if n % 2 == 0 else "sin", n // 2) for n in range(2 * half)]  # the table's row
        held = [row[4 * lane:4 * lane + 4] for lane in range(32)]
        for lane in range(32):
            for j in range(pairs):
                wanted = (lane % chunks) * pairs + j
                holder, register = learner.trade(lane, j, pairs, chunks)
                where = f"trade({lane}, {j}, {pairs}, {chunks}) is ({holder}, {register})"
                if not (0 <= holder < 32 and 0 <= register < 4):
                    raise Wrong(f"{where}: lanes are 0 to 31, registers 0 to 3", 1 if holder > 31 else 2)
                found = held[holder][register] if register < len(held[holder]) else "nothing"
                if found != ("cos", wanted):
                    raise Wrong(f"{where}: there lies {found}, wanted is the cosine of pair {wanted}",
                                0 if j or lane % chunks else 1)


def check_kernel(learner):
    for shape in ((1, 1, 1, 1), (2, 3, 1, 5), (3, 4, 2, 32), (2, 1, 1, 33)):
        _, results, wanted = _turned(learner, *shape)
        for name, ours, theirs, hint in zip("qk", results, wanted, (1, 0), strict=True):
            close(f"turned {name}, (tokens, heads, kv_heads, half) = {shape}", ours, theirs, 1e-6, hint=hint)


def check_moved(learner):
    tokens, heads, kv_heads, half = 2, 6, 2, 64
    profile, _, _ = _turned(learner, tokens, heads, kv_heads, half)
    least = tokens * (2 * 4 * (heads + kv_heads) * 2 * half + 2 * 4 * half)
    moved = 32 * (profile.global_load.sectors + profile.global_store.sectors)
    if moved > 1.02 * least:
        wide = max(profile.global_load.sectors_per_request, profile.global_store.sectors_per_request) > 6
        raise Wrong(f"{moved} bytes are moved, {moved / least:.2f} times the least, {least}", 1 if wide else 0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("2 * element_bytes *", "element_bytes *", "bytes", 0),
    ("of_table = 4 * rotary", "of_table = element_bytes * rotary", "bytes", 1),
    ("of_table = 4 * rotary", "of_table = 2 * rotary", "bytes", 1),
    ("(heads + kv_heads) * rotary", "(heads + kv_heads) * width", "bytes", 2),
    ("lane % chunks * pairs + j", "lane * pairs + j", "trade", 1),
    ("lane % chunks * pairs + j", "lane % chunks + j * chunks", "trade", 0),
    ("2 * (pair % 2)", "pair % 2", "trade", 0),
    ("token * kv_heads + head - heads", "token * kv_heads + head", "kernel", 0),
    ("y[i + half] = x1 * a.x + x0 * a.y", "y[i + half] = x1 * a.x - x0 * a.y", "kernel", 1),
    ("const float x0 = x[i], x1", "const float2 a = angle[token * half + i];\n      const float x0 = x[i], x1",
     "moved", 0),
    ("for (int i = threadIdx.x; i < half; i += 32)",
     "const int each = (half + 31) / 32, first = threadIdx.x * each;\n"
     "  for (int i = first; i < half && i < first + each; ++i)", "moved", 1),
    ("x0 * a.x - x1 * a.y", "x0 * a.x + x1 * a.y", "kernel", 1),
    ("x[i], x1 = x[i + half]", "x[2 * i], x1 = x[2 * i + 1]", "kernel", 1),
]
