"""Exercise 34: outputs of several parts of the keys made one; tiles counted. ex34_flash_attention.cu wants a kernel.

A query that has seen only some of the keys has an output o, the mean of their values weighted by exp(score), and a
logsumexp L, the logarithm of the sum of exp(score) over these keys. The solution is in lessons/solutions/.
"""


def combine(parts):
    """(o, L) of all keys together, from a list of (o, L), each of other keys.

    o: float64 (T, d); L: float64 (T,). A part in which a query sees no key has o = 0 and L = -inf there, and changes
    nothing; a query without any key at all has o = 0 and L = -inf in the result. Nothing may overflow or become NaN,
    also where L is 1000 or more.
    """
    raise NotImplementedError("your code here")


def tiles_visited(queries, keys, tall, wide, causal):
    """How many tiles of `tall` queries x `wide` keys must be computed: an int, from ints (causal: bool).

    The last tile in each direction may be cut short. Causal is bottom-right: query i (from 0) sees key j (from 0)
    where j <= i + keys - queries. A tile in which no query sees any key is not visited.
    """
    raise NotImplementedError("your code here")
