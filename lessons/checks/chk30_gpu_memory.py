"""Checks of exercise 30: rows keep their elements, columns spread over all banks, fours stay together; a transpose with
coalesced requests and no conflicts."""

import torch

from minillama.course.exercise import Wrong, close, on_gpu

HINTS = {
    "rows": (
        "All 32 elements of a row need places of their own, from 0 to 31.",
        "An operation that can be undone never sends two columns to one place.",
    ),
    "columns": (
        "For a fixed column the place must depend on the row, and differ for all 32 rows.",
        "Adding the row modulo 32 would do; so does an operation on the bits of row and column.",
    ),
    "fours": (
        "In row 4 the elements 0, 1, 2, 3 must stay neighbours in their order, starting at a multiple of 4.",
        "The exclusive or of two numbers changes only those bits that are set in the row.",
    ),
    "transpose": (
        "A thread reads from the tile what another thread wrote. What must stand between the two?",
        "y has `columns` rows and `rows` columns. Which of its rows and columns does block (x, y) write?",
        "A tile of 32 rows and 8 rows of threads: each thread goes on by 8 rows, 4 times, reading and writing.",
        "At an edge the tile is not full: its rows and columns each need a guard, and for y they change roles.",
    ),
    "sectors": (
        "Neighbouring lanes differ in threadIdx.x. Which index must it be added to, when reading x and when writing y?",
        "The turn happens in shared memory: a row of x goes in, a row of y comes out.",
    ),
    "conflicts": (
        "A column of a tile that is 32 words wide lies in one bank. Make rows 33 wide, or use `place` from above.",
    ),
}
AFTER = {"sectors": "transpose", "conflicts": "transpose"}  # what is counted must first be right


def _places(learner):
    table = [[learner.place(row, column) for column in range(32)] for row in range(32)]
    for row, places in enumerate(table):
        for column, got in enumerate(places):
            if not isinstance(got, int) or not 0 <= got < 32:
                raise Wrong(f"place({row}, {column}) is {got!r}, wanted a whole number from 0 to 31", 0)
    return table


def check_rows(learner):
    for row, places in enumerate(_places(learner)):
        if len(set(places)) < 32:
            raise Wrong(f"two elements of row {row} share a place", 1)


def check_columns(learner):
    table = _places(learner)
    for column in range(32):
        banks = {table[row][column] for row in range(32)}
        if len(banks) < 32:
            raise Wrong(f"the 32 elements of column {column} lie in {len(banks)} banks", 0 if len(banks) == 1 else 1)


def check_fours(learner):
    table = _places(learner)
    for row in range(0, 32, 4):
        for first in range(0, 32, 4):
            start = table[row][first]
            if start % 4 or table[row][first:first + 4] != [start, start + 1, start + 2, start + 3]:
                raise Wrong(f"elements {first} to {first + 3} of row {row} lie in {table[row][first:first + 4]}",
                            0 if start % 4 else 1)


def _transpose(learner, rows, columns):
    x, y = torch.randn(rows, columns), torch.zeros(columns, rows)
    kinds = {"race": 0, "uninitialised": 0, "barrier": 0, "out of bounds": 3}
    try:
        profile = on_gpu(learner, "transpose", x, y, rows, columns, hints=kinds)
    except Wrong as wrong:  # two blocks that write one element of y have its index wrong
        raise Wrong(str(wrong), 1 if "another value to global memory" in str(wrong) else wrong.hint) from None
    full = rows % 32 == columns % 32 == 0
    if rows == columns == 32 and not y.all():
        raise Wrong(f"{int((y == 0).sum())} of 1024 elements of a full tile are not written", 2)
    hint = 1 if full and (rows == columns or y.all()) else 3
    close(f"y, the transpose of {rows} rows and {columns} columns,", y, x.T.contiguous(), 0, hint)
    return profile


def check_transpose(learner):
    for rows, columns in ((32, 32), (64, 64), (64, 32), (32, 96), (1, 1), (33, 70), (45, 8)):
        _transpose(learner, rows, columns)


def check_sectors(learner):
    profile = _transpose(learner, 64, 96)
    for name, counts, hint in (("load", profile.global_load, 0), ("store", profile.global_store, 1)):
        if counts.sectors_per_request > 4:
            raise Wrong(f"a {name} of a warp touches {counts.sectors_per_request:.1f} sectors of 32 bytes, not 4", hint)


def check_conflicts(learner):
    count = _transpose(learner, 64, 96).total("shared").conflicts
    if count:
        raise Wrong(f"requests to shared memory have {count} bank conflicts, none is needed", 0)


WRONG = [  # (text in the solution, what a learner might write, the check that must fail, the hint it must show)
    ("column ^ row", "column", "columns", 0),
    ("column ^ row", "column | row", "rows", 1),
    ("column ^ row", "column + row", "rows", 0),
    ("column ^ row", "column ^ (row // 4)", "columns", 1),
    ("column ^ row", "(row - column) % 32", "fours", 1),
    ("column ^ row", "column ^ (row % 16)", "columns", 1),
    ("  __syncthreads();\n", "", "transpose", 0),
    ("  c = blockIdx.y * 32 + threadIdx.x;\n  r = blockIdx.x * 32 + threadIdx.y;\n", "", "transpose", 1),
    ("= tile[threadIdx.x][threadIdx.y + k]", "= tile[threadIdx.y + k][threadIdx.x]", "transpose", 1),
    ("y[(r + k) * rows + c]", "y[(r + k) * columns + c]", "transpose", 1),
    ("= x[(r + k) * columns + c];\n  }", "= x[(r + k) * columns + c];\n    break;\n  }", "transpose", 0),
    ("= tile[threadIdx.x][threadIdx.y + k];\n  }", "= tile[threadIdx.x][threadIdx.y + k];\n    break;\n  }",
     "transpose", 2),
    ("r + k < rows && c < columns", "r + k < rows", "transpose", 3),
    ("r + k < rows && c < columns", "r < rows && c < columns", "transpose", 3),
    ("r + k < columns && c < rows", "r + k < columns", "transpose", 3),
    ("r + k < columns && c < rows", "c < rows", "transpose", 3),
    ("r + k < columns && c < rows", "r + k < rows && c < columns", "transpose", 3),
    ("    if (r + k < columns && c < rows) y[(r + k) * rows + c] = tile[threadIdx.x][threadIdx.y + k];",
     "    if (r + k < columns && c < rows) y[(r + k) * rows + c] = x[c * columns + r + k];", "sectors", 0),
    ("    if (r + k < rows && c < columns) tile[threadIdx.y + k][threadIdx.x] = x[(r + k) * columns + c];\n  }\n"
     "  __syncthreads();\n  c = blockIdx.y * 32 + threadIdx.x;\n  r = blockIdx.x * 32 + threadIdx.y;\n"
     "  for (int k = 0; k < 32; k += 8) {\n"
     "    if (r + k < columns && c < rows) y[(r + k) * rows + c] = tile[threadIdx.x][threadIdx.y + k];",
     "    if (r + k < rows && c < columns) y[c * rows + r + k] = x[(r + k) * columns + c];", "sectors", 1),
    ("float tile[32][33]", "float tile[32][32]", "conflicts", 0),
]
