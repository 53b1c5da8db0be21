"""Exercise 09: GLM's mask, and its two positions.

A row is part A, a text with one mask token in the place of each span that was cut out, and part B, the spans, each
behind a start token. The solution is in lessons/solutions/.
"""


def glm_mask(a, T):
    """Which of T tokens each of T tokens may see, of which the first a are part A: (T, T) bool, True where it may look.

    A token of A sees all of A, and nothing of B. A token of B sees all of A, what stands before it in B, and itself.
    """
    raise NotImplementedError("your code here")


def two_positions(n, spans):
    """[(p, r), ...] of every token of the row, for a text of n tokens.

    spans: [(start, length), ...], ascending: what was cut out of the text; part B holds them in this order. p: the
    place in part A, from 0 on; a token of B has its mask's. r: 0 in A; in B 1, 2, ... within the span, from its start
    token on.
    """
    raise NotImplementedError("your code here")
