"""Checks of exercise 35: every element of odd panels, loads of tiles, and the best tile found again by trying all."""

import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "panels": (
        "A panel holds `width` rows of x. Within it, for each k, their numbers lie side by side: (panel, k, row).",
        "M need not be a multiple of width: fill the last panel up with rows of 0.",
        "transpose only changes how memory is looked at: .contiguous() moves the numbers.",
    ),
    "loads": (
        "A step loads a number for each row and a vector for each vector: that is a sum.",
        "A step multiplies every row with every vector: that is a product. Divide the one by the other.",
    ),
    "best_tile": (
        "The sums are rows x vectors registers. What else needs a register during a step?",
        "Try 1, 2 and 4 vectors, each with as many rows as fit, and compare the loads.",
        "With few registers some numbers of vectors leave no room for even one row.",
    ),
}


def check_panels(learner):
    for M, K, width, dtype, hint in ((4, 3, 4, torch.float64, 0), (12, 5, 4, torch.float32, 0),
                                     (1, 1, 4, torch.float32, 1), (7, 3, 3, torch.float16, 1)):
        x = torch.randn(M, K).to(dtype)
        count = -(-M // width)
        wanted = torch.zeros(count, K, width, dtype=dtype)
        for m in range(M):
            wanted[m // width, :, m % width] = x[m]
        got = learner.panels(x, width)
        close(f"panels of ({M}, {K}), width {width}", got, wanted, 0, hint=hint)
        if not got.is_contiguous():
            raise Wrong("the panels are not contiguous: in memory the numbers lie as before", 2)


def check_loads(learner):
    for rows, vectors, wanted, hint in ((1, 1, 2.0, 0), (2, 1, 1.5, 1), (6, 4, 10 / 24, 1), (1, 4, 1.25, 1)):
        close(f"loads({rows}, {vectors})", learner.loads(rows, vectors), wanted, 1e-12, hint=hint)


def check_best_tile(learner):
    for registers, hint in ((32, 0), (16, 0), (64, 1), (8, 2), (3, 2), (5, 2)):
        tiles = [(rows, vectors) for vectors in (1, 2, 4) for rows in range(1, registers)
                 if rows * vectors + vectors + 1 <= registers]
        wanted = min(tiles, key=lambda tile: (tile[0] + tile[1]) / (tile[0] * tile[1]))
        close(f"best_tile({registers})", learner.best_tile(registers), wanted, 0, hint=hint)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("    return filled.view(-1, width, K).transpose(1, 2).contiguous()", "    return filled.view(-1, K, width)",
     "panels", 0),
    ("filled[:M] = x", "filled[:M // width * width] = x[:M // width * width]", "panels", 1),
    (".contiguous()", "", "panels", 2),
    ("(rows + vectors) / (rows * vectors)", "rows * vectors / (rows + vectors)", "loads", 0),
    ("(rows + vectors) / (rows * vectors)", "(rows + vectors) / rows", "loads", 1),
    ("(registers - vectors - 1) // vectors", "registers // vectors", "best_tile", 0),
    ("(registers - vectors - 1) // vectors", "(registers - 1) // vectors", "best_tile", 0),
    ("key=lambda tile: loads(*tile)", "key=lambda tile: -tile[0]", "best_tile", 0),
    ("        if rows > 0:\n            tiles.append((rows, vectors))", "        tiles.append((max(rows, 1), vectors))",
     "best_tile", 2),
    ("dtype=x.dtype", "dtype=torch.float64", "panels", 0),
    ("math.ceil(M / width)", "(M // width + 1)", "panels", 0),
    ("for vectors in (1, 2, 4)", "for vectors in (1, 2)", "best_tile", 0),
]
