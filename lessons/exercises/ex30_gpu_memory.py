"""Exercise 30: a tile of 32 by 32 words without padding and without bank conflicts. ex30_gpu_memory.cu wants a kernel.

Shared memory has 32 banks; the word at place (row, c) of a 32-wide tile lies in bank c. A tile that is stored as it is
has its columns in one bank each. Where should the element (row, column) lie instead? It stays in its row.
The solution is in lessons/solutions/.
"""


def place(row, column):
    """The column, 0 to 31, in which the element (row, column) of a 32 x 32 tile is stored; both ints from 0 to 31.

    Within a row no two elements may share a place. The 32 elements of a row must lie in 32 banks, and so must the 32
    elements of a column. And neighbours stay together: the elements 4q ... 4q + 3 of a row whose number is a multiple
    of 4 lie in four places 4p ... 4p + 3, in their order (so that such rows can be read four words at a time).
    """
    raise NotImplementedError("your code here")
