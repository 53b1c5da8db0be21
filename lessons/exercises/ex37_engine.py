"""Exercise 37: the bytes that one token reads, attention of one token by groups, and a product in integers.

One token goes through a model whose KV cache holds S tokens already, the new one among them. H heads of queries share
K heads of keys and values: query head h belongs to head h * K // H of them. The solution is in lessons/solutions/.
"""


def token_bytes(L, D, H, K, d, F, V, S, weight_bytes, number_bytes):
    """Bytes that one token reads, without the gains of norms and the row of the embedding table: a number.

    L layers of width D, feed-forward layers of width F, a head of V rows; weight_bytes: of each weight; number_bytes:
    of each number in the cache.
    """
    raise NotImplementedError("your code here")


def grouped_attention(q, keys, values):
    """Attention of one token: a tensor (H, d). q is (H, d), keys and values are (K, S, d).

    Read keys[k] and values[k] once for each k, for all the queries that share them. Scores are divided by sqrt(d).
    """
    raise NotImplementedError("your code here")


def integer_product(codes, scales, x):
    """One number of y = W x: the row of W is codes * scales, in blocks; a float.

    codes (blocks, 64): whole numbers; scales (blocks,): fp32, one for each block; x (blocks, 64): fp32. Round each
    block of x to whole numbers whose largest size is 127, multiply and add whole numbers in the block, and only then
    scale. A block of zeros gives 0.
    """
    raise NotImplementedError("your code here")
