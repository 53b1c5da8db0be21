"""Exercise 35: rows laid out in panels, the loads of a tile of sums, and the best tile for so many registers.

A tile has rows x vectors vectors of sums. In each step it loads one number for each of its rows and one vector for each
of its vectors, and does rows x vectors multiplications of vectors. The solution is in lessons/solutions/.
"""


def panels(x, width):
    """x (M, K), of any float dtype, as (ceil(M / width), K, width) in x's dtype, contiguous.

    Element [p, k, i] is x[p * width + i, k]; where x has no such row it is 0.
    """
    raise NotImplementedError("your code here")


def loads(rows, vectors):
    """Loads of a step for each multiplication of vectors in it: a float."""
    raise NotImplementedError("your code here")


def best_tile(registers):
    """(rows, vectors), two ints: the tile with the fewest loads for each multiplication that fits into the registers.

    vectors is 1, 2 or 4; rows is any number from 1. Registers hold all vectors of sums, the loaded vectors (as many as
    vectors), and one loaded number, which takes a register of its own. registers: at least 3.
    """
    raise NotImplementedError("your code here")
