"""Checks of exercise 39: fragments as the instruction wants them, rows spread over the banks, and a kernel whose
products all run on tensor cores, without a race or a bank conflict."""

import torch

from minillama.course.exercise import Wrong, close, on_gpu

HINTS = {
    "holder": (
        "Lane 4 g + t holds rows g and g + 8. Which g belongs to row 11?",
        "Columns 2t and 2t + 1, and the same 8 columns further: t is half of the column modulo 8.",
        "The register: 1 more for the lower 8 rows, 2 more for the right 8 columns.",
    ),
    "place": (
        "The four chunks of a row need four places of their own, from 0 to 3.",
        "Two neighbouring rows fill a line of 32 banks. So rows 0, 2, 4, 6 must differ, and rows 1, 3, 5, 7.",
    ),
    "kernel": (
        "A tile has two moments: before it is read, all copies into it must have arrived (cp_async_wait), and all "
        "threads know it (a barrier); and nobody may still read what a copy overwrites.",
        "What is not in the matrix is neither read nor written: `wanted` is 0 there, and a store has a guard.",
        "Which rows and columns does each lane name for ldmatrix, and which hold its sums? Compare with the lesson.",
        "K beyond a tile: the sums go on, the stage changes, and columns beyond K are zeros.",
    ),
    "products": ("Every 16 columns of a warp's 16 rows with 8 of w are one mma.sync, and each is done once.",),
    "moved": (
        "Eight rows that ldmatrix reads at once must lie in different banks: swizzle where you copy and where you "
        "read.",
        "A block copies its 64 rows of x and of w once for each 64 columns.",
        "One barrier a tile is enough if the next tile goes to the other stage.",
    ),
}
AFTER = {"products": "kernel", "moved": "kernel"}  # what is counted must first be right


def check_holder(learner):
    for row in range(16):
        for column in range(16):
            lane, register = learner.holder(row, column)
            where = f"of holder({row}, {column})"
            close(f"lane {where}", lane, 4 * (row % 8) + column % 8 // 2, 0, hint=0 if column == 0 else 1)
            close(f"register {where}", register, row // 8 + 2 * (column // 8), 0, hint=2)


def check_place(learner):
    for row in range(32):
        places = [learner.place(row, chunk) for chunk in range(4)]
        if sorted(places) != [0, 1, 2, 3]:
            raise Wrong(f"the chunks of row {row} lie at {places}, wanted are 0 to 3, each once", 0)
    for first in range(0, 32, 8):
        for chunk in range(4):
            lines = {row % 2 * 4 + learner.place(row, chunk) for row in range(first, first + 8)}
            if len(lines) < 8:
                raise Wrong(f"chunk {chunk} of rows {first} to {first + 7} lies in {4 * len(lines)} banks, not 32", 1)


def _product(learner, M, N, K):
    """(profile, y, wanted) of the learner's kernel on random numbers."""
    x, w = torch.randn(M, K).bfloat16(), torch.randn(N, K).bfloat16()
    y = torch.zeros(M + 64, N)[:M]
    kinds = {"race": 0, "uninitialised": 0, "barrier": 0, "asynchronous copy": 0, "out of bounds": 1}
    profile = on_gpu(learner, "product", x, w, y, M, N, K, hints=kinds)
    return profile, y, x.float() @ w.float().T


def check_kernel(learner):
    for (M, N, K), hint in (((64, 64, 64), 2), ((64, 64, 192), 3), ((33, 70, 72), 3), ((1, 5, 8), 3)):
        _, y, wanted = _product(learner, M, N, K)
        close(f"y of x ({M}, {K}) and w ({N}, {K})", y, wanted, 1e-3, hint=hint)


def check_products(learner):
    profile, *_ = _product(learner, 64, 128, 192)
    wanted = 2 * 64 * 128 * 192 // 4096
    if profile.mma != wanted:
        raise Wrong(f"{profile.mma} products by mma.sync, {wanted} are the whole result", 0)


def check_moved(learner):
    profile, *_ = _product(learner, 64, 128, 192)
    if profile.shared_load.conflicts:
        raise Wrong(f"reads of shared memory have {profile.shared_load.conflicts} bank conflicts, none is needed", 0)
    read, most = 32 * profile.global_load.sectors, 2 * 2 * 128 * 192
    if read > most:
        raise Wrong(f"{read} bytes are read from global memory, {most} are enough", 1)
    if profile.barriers > 2 * (3 + 1):
        raise Wrong(f"each block passes {profile.barriers / 2:g} barriers for 192 columns, at most 4 are needed", 2)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("row % 8 * 4 + column % 8 // 2,", "row // 2 * 4 + column % 8 // 2,", "holder", 0),
    ("column % 8 // 2, row", "column % 4, row", "holder", 1),
    ("row // 8 + column // 8 * 2", "row // 8 * 2 + column // 8", "holder", 2),
    ("chunk ^ (row // 2 % 4)", "chunk ^ (row % 4)", "place", 1),
    ("return chunk ^ (row // 2 % 4)", "return chunk ^ (row % 8)", "place", 0),
    ("    cp_async_wait<0>();\n", "", "kernel", 0),
    ("    __syncthreads();\n", "", "kernel", 0),
    ("copy(X[now ^ 1], x", "copy(X[now], x", "kernel", 0),
    ("first + row < rows && k", "k", "kernel", 1),
    ("if (row < M && column < N) ", "if (column < N) ", "kernel", 1),
    ("2 * i + lane / 16)", "2 * i)", "kernel", 2),
    ("const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};",
     "const unsigned low[2] = {b[0], b[2]}, high[2] = {b[1], b[3]};", "kernel", 2),
    ("mma_bf16_16816(c[n], a, low);", "if (k == 0) mma_bf16_16816(c[n], a, low);", "kernel", 3),
    ("(chunk ^ row % 8)", "chunk", "moved", 0),
    ("      }\n    }\n  }\n", "      }\n    }\n    __syncthreads();\n    __syncthreads();\n  }\n", "moved", 2),
]
