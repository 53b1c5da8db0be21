"""Checks of exercise 33: bytes as the library stores them, each weight of odd matrices found, and a kernel that reads
codes and scales once."""

import torch

from minillama.course.exercise import Wrong, close, on_gpu
from minillama.quant.nf4 import NF4_LEVELS, quantize_nf4

HINTS = {
    "bytes": (
        "Two codes to a byte, and a byte cannot be half stored: round up. The same holds for the last block.",
        "A scale in fp32 is 4 bytes. How many blocks has the whole matrix? Blocks do not end where a row does.",
        "Double: a byte a block; 4 bytes for each 256 blocks, rounded up; and 4 bytes for the mean of all scales.",
    ),
    "weight": (
        "Where does the weight stand in the long list, row after row? Byte and block follow from that place.",
        "The first weight of a byte has the high four bits: >> 4. The second has the low four: & 15.",
        "Blocks run over the whole list: the place divided by `block`, whatever the row.",
    ),
    "kernel": (
        "Two threads met at a word of shared memory with nothing between them that orders the two. Who fills x and the "
        "table, and when may others read them?",
        "N need not be a multiple of 8: some warps of the last block have no output.",
        "High four bits first: weight k of a byte is even. And the first byte of a word has its lowest eight bits.",
        "A new scale comes with each 64 weights. Which one do the weights of this lane take?",
        "32 lanes have a part each: 5 shuffles add them up.",
    ),
    "moved": (
        "Neighbouring lanes must read neighbouring codes: a request for codes then touches few sectors.",
        "x and the 16 levels are the same for all 8 warps of a block: copy them into shared memory once.",
        "A request for one scale fetches 8. Let one request serve as many blocks as it can: give each lane more codes.",
    ),
}
AFTER = {"moved": "kernel"}  # what is counted must first be right


def check_bytes(learner):
    for shape, hint in (((1, 1), 0), ((1, 7), 0), ((64, 64), 1), ((3, 50), 1), ((300, 64), 1)):
        weights = torch.randn(shape)
        for block in (64, 32):
            for double in (False, True):
                wanted = quantize_nf4(weights, block, double).stored_bytes()
                close(f"stored_bytes{(*shape, block, double)}", learner.stored_bytes(*shape, block, double), wanted, 0,
                      hint=2 if double else hint)


def check_weight(learner):
    for (rows, columns), block, hint in (((1, 64), 64, 1), ((3, 64), 64, 0), ((3, 20), 12, 2), ((7, 21), 32, 2)):
        stored = quantize_nf4(torch.randn(rows, columns), block, False)
        wanted = stored.dequantize()
        for row in range(rows):
            for column in range(columns):
                got = learner.weight(stored.codes, stored.absmax, NF4_LEVELS, row, column, columns, block)
                close(f"weight in row {row}, column {column} of {columns}, blocks of {block}", got,
                      wanted[row, column].item(), 1e-6, hint=hint)


def _product(learner, N, K):
    """(profile, y, wanted, bytes stored) of the learner's kernel on random numbers."""
    stored, x = quantize_nf4(torch.randn(N, K), 64, False), torch.randn(K)
    spare = torch.zeros(N + 64)
    kinds = {"race": 0, "uninitialised": 0, "barrier": 0, "out of bounds": 1}
    arguments = x, stored.codes, stored.absmax, torch.tensor(NF4_LEVELS), spare[:N], N, K
    profile = on_gpu(learner, "product", *arguments, hints=kinds)
    wanted = (stored.dequantize().double() @ x.double()).float()
    return profile, spare[:N], wanted, stored.stored_bytes()


def check_kernel(learner):
    for N, K, hint in ((8, 64, 2), (1, 128, 3), (9, 320, 4), (33, 512, 4)):
        _, y, wanted, _ = _product(learner, N, K)
        close(f"y of a weight ({N}, {K})", y, wanted, 1e-4, hint=hint)


def check_moved(learner):
    N, K = 24, 2048
    profile, _, _, stored = _product(learner, N, K)
    least = stored + N // 8 * (4 * K + 64) + 32 * N
    moved = 32 * (profile.global_load.sectors + profile.global_store.sectors)
    if moved > 1.1 * least:
        loads = [a.counts for a in profile.accesses if (a.space, a.op) == ("global", "load")]
        codes = max(loads, key=lambda counts: counts.compulsory)  # most of what is stored
        scattered = codes.sector_efficiency < 0.3  # its lanes touch more than three times the sectors they could
        raise Wrong(f"{moved} bytes are moved, {moved / least:.2f} times the least, {least}",
                    0 if scattered else 1 if moved > 2 * least else 2)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("math.ceil(weights / 2)", "weights // 2", "bytes", 0),
    ("math.ceil(weights / block)", "rows * math.ceil(columns / block)", "bytes", 1),
    ("+ 4 if double", "if double", "bytes", 2),
    ("4 * math.ceil(blocks / 256)", "4 * (blocks // 256)", "bytes", 2),
    ("pair & 15 if place % 2 else pair >> 4", "pair >> 4 if place % 2 else pair & 15", "weight", 1),
    ("absmax[place // block]", "absmax[row * math.ceil(columns / block) + column // block]", "weight", 2),
    ("row * columns + column", "row + column", "weight", 0),
    ("  __syncthreads();\n", "", "kernel", 0),
    ("  if (n >= N) return;\n", "", "kernel", 1),
    ("table[pair >> 4] * X[8 * word + 2 * i] + table[pair & 15]",
     "table[pair & 15] * X[8 * word + 2 * i] + table[pair >> 4]", "kernel", 2),
    ("n * (K / 64) + word / 8", "n * (K / 64)", "kernel", 3),
    ("int lanes = 16", "int lanes = 8", "kernel", 4),
    ("* X[8 * word + 2 * i] +", "* x[8 * word + 2 * i] +", "moved", 1),
    ("int word = lane; word < K / 8; word += 32",
     "int word = lane * ((K + 255) / 256); word < K / 8 && word < (lane + 1) * ((K + 255) / 256); ++word", "moved", 0),
    ("word = lane; word < K / 8; word += 32", "word = lane < 8 ? lane : K; word < K / 8; word += 8", "moved", 2),
]
