"""Exercise 10: count a LLaMA, and wire one of its blocks.

The solution is in lessons/solutions/.
"""


def n_parameters(dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, tied):
    """How many numbers training sets: a whole number, by formula, building nothing.

    Per layer: query and output matrix (dim x n_heads * head_dim each), key and value matrix (dim x
    n_kv_heads * head_dim each), three feed-forward matrices (dim x hidden_dim), two gains (dim).
    Besides: a final gain, an embedding table and an output table (vocab_size x dim each); tied: one table for both.
    """
    raise NotImplementedError("your code here")


def block(x, attention_norm, attention, ffn_norm, feed_forward):
    """One pre-norm block on the residual stream x, (B, T, D). The other four are functions of one tensor.

    Returns the new stream, (B, T, D). x itself must not be changed in place.
    """
    raise NotImplementedError("your code here")
