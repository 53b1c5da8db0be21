"""Exercise 32: the least bytes of RoPE, and who holds the angle that a lane needs. ex32_fused_rope.cu wants a kernel.

The table has a row for each token: d/2 pairs of fp32 numbers, cosine and sine: c0 s0 c1 s1 c2 s2 ...
The solution is in lessons/solutions/.
"""


def least_bytes(tokens, heads, kv_heads, width, rotary, element_bytes):
    """Bytes that RoPE must move: all ints, and so is the result.

    Queries (tokens, heads, width) and keys (tokens, kv_heads, width) of element_bytes a number are read once and
    written once. Of each head only the first `rotary` columns turn, so a row of the table has rotary / 2 pairs.
    It works in place: columns behind the first `rotary` stay where they are, and are neither read nor written.
    """
    raise NotImplementedError("your code here")


def trade(lane, j, pairs, chunks):
    """Who holds the angle of pair number j (from 0) of a lane? Returns (holder, register), two ints.

    A warp has loaded one row of the table: lane n holds the fp32 numbers 4n ... 4n + 3 of it in its registers 0 to 3.
    `chunks` neighbouring lanes share one head: each turns `pairs` neighbouring pairs of it, the first of these lanes
    the pairs 0 ... pairs - 1. The next `chunks` lanes do the same for the next head. lane: 0 to 31; chunks divides 32.
    The register is that of the cosine; the sine lies in the next one.
    """
    raise NotImplementedError("your code here")
