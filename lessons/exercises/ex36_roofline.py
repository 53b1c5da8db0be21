"""Exercise 36: the intensity of a product, the roof above it, the batch at which memory no longer limits it, and the
tokens that a server makes in a second at most.

A product multiplies M rows of K numbers by a weight of N rows and K columns. Every byte of the weight, of x and of y
moves once. The solution is in lessons/solutions/.
"""


def intensity(M, N, K, weight_bytes, number_bytes):
    """FLOPs for each byte that must move: a float.

    weight_bytes: bytes of a weight, such as 2 or 0.516; number_bytes: bytes of each number of x (M, K) and y (M, N).
    """
    raise NotImplementedError("your code here")


def roof(flops_per_byte, peak, bandwidth):
    """FLOPs a second, at most, of a kernel with this intensity: a float.

    peak: FLOPs a second of the CPU; bandwidth: bytes a second of the memory.
    """
    raise NotImplementedError("your code here")


def first_batch(N, K, weight_bytes, number_bytes, peak, bandwidth):
    """The smallest M, at least 1, at which the roof of the product is the peak: an int; None if there is no such M.

    A batch whose intensity is just that of the ridge counts.
    """
    raise NotImplementedError("your code here")


def tokens_per_second(batch, weights, weight_bytes, cache_bytes, peak, bandwidth):
    """Tokens that decoding makes in a second at most, those of all texts together: a float.

    A step makes one token for each of `batch` texts, with 2 FLOPs for each weight and text. It reads all weights once,
    and for each text that text's own KV cache of cache_bytes. Nothing else counts. The step takes as long as the slower
    of the two, computing and moving; both go on at the same time.
    """
    raise NotImplementedError("your code here")
