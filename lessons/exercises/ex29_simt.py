"""Exercise 29: a sum by a block of threads, for the emulator of lesson 29. ex29_simt.cu wants two kernels.

A kernel is a generator: every thread runs it, and `yield` is a barrier, which all threads of the block must reach the
same number of times. Between two barriers the threads run in any order. No thread may read more than two numbers
between two barriers: the sum takes steps that each halve the number of threads at work.
The solution is in lessons/solutions/.
"""


def block_sum(i, n, shared, x, out):
    """Thread i of n (a power of two) helps to leave the sum of x in out[0].

    i: int, the number of this thread. shared: a list of n empty places that all threads see. x: a list of n numbers,
    only to be read. out: a list with one place, which thread 0 alone writes.
    """
    raise NotImplementedError("your code here")
    yield  # a kernel has barriers
