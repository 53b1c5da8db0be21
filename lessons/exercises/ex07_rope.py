"""Exercise 07: RoPE in the half-split layout, and the way between the two layouts.

Interleaved (Meta): entries 2j and 2j + 1 are pair j. Half-split (Hugging Face): entries j and j + d/2 are pair j.
The solution is in lessons/solutions/.
"""


def turn_half_split(x, angles):
    """Turn pair j of x by angles[..., j], real numbers only.

    x: (..., d), half-split layout. angles: (..., d/2), radians. Returns (..., d), half-split, in x's dtype.
    """
    raise NotImplementedError("your code here")


def to_half_split(rows, n_heads):
    """Reorder the rows of a weight that makes queries or keys: interleaved in, half-split out.

    rows: (n_heads * d, ...): a matrix (n_heads * d, D), or a vector (n_heads * d,) such as a bias.
    Each head is d rows in a block, and is reordered for itself. Returns the same shape.
    """
    raise NotImplementedError("your code here")


def to_interleaved(rows, n_heads):
    """The way back: half-split rows in, interleaved rows out. Shapes as above."""
    raise NotImplementedError("your code here")
