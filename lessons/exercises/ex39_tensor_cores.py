"""Exercise 39: who holds a number of A, and a swizzle for short rows. ex39_tensor_cores.cu wants a kernel.

A is the left operand of mma.sync, 16 x 16. A lane has 8 numbers of it, in 4 registers of two neighbours each:
register 0 is row g, columns 2t and 2t + 1; register 1 the same of row g + 8; registers 2 and 3 are 8 columns further.
The solution is in lessons/solutions/.
"""


def holder(row, column):
    """(lane, register) of the number in this row and column of A; ints from 0 to 15 in, 0 to 31 and 0 to 3 out."""
    raise NotImplementedError("your code here")


def place(row, chunk):
    """The place, 0 to 3, of the 16 bytes number `chunk`, 0 to 3, in a row of 64 bytes: a tile 32 columns of bf16 wide.

    All four stay in their row. Eight rows that begin at a multiple of 8, read at the same chunk, must lie in 32 banks:
    a line of 32 banks, 128 bytes, is two such rows.
    """
    raise NotImplementedError("your code here")
