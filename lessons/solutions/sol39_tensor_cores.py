"""The solution of lessons/exercises/ex39_tensor_cores.py: fragments of A, and a swizzle for rows of 64 bytes."""


def holder(row, column):
    """(lane, register) of the number in this row and column of A."""
    return row % 8 * 4 + column % 8 // 2, row // 8 + column // 8 * 2


def place(row, chunk):
    """The place of the 16 bytes number `chunk` in a row of 64 bytes."""
    return chunk ^ (row // 2 % 4)
