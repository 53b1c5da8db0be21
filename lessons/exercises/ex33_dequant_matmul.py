"""Exercise 33: the bytes of a weight in NF4, and one weight found among them. ex33_dequant_matmul.cu wants a kernel.

A matrix is stored row by row, as one long list of weights. Two neighbours of the list share a byte of `codes`: the
first has the high four bits. Each `block` neighbours share a scale; a block may begin in one row and end in the next.
The solution is in lessons/solutions/.
"""


def stored_bytes(rows, columns, block, double):
    """Bytes of all that is stored of a matrix (rows, columns): an int, from ints and a bool.

    Codes: half a byte a weight; where their number is odd, the last byte is half empty. Scales, not `double`: fp32, one
    for each block, the last of which may be short. `double`: one byte for each block, fp32 for each 256 blocks (the
    last group may be short), and one fp32 number for all.
    """
    raise NotImplementedError("your code here")


def weight(codes, absmax, levels, row, column, columns, block):
    """The weight in this row and column (from 0) of a matrix that is `columns` wide: a Python float.

    codes: uint8 tensor (half as many as weights); absmax: fp32 tensor, a scale for each block; levels: 16 floats.
    """
    raise NotImplementedError("your code here")
