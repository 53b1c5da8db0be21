"""Exercise 21: attention behind a prefix, an adapter, and the words nearest to a soft prompt (lesson 21)."""


def prefix_attention(q, k, v, prefix_k, prefix_v):
    """What each of T queries takes from n keys and values of a prefix and from the text's own, (T, d): scores divided
    by sqrt(d), one softmax over all. q, k, v: (T, d); prefix_k, prefix_v: (n, d). A text's token sees the whole prefix,
    itself and the tokens before it."""
    raise NotImplementedError("your code here")


def adapter(h, down, b, up, c):
    """h + up relu(down h + b) + c. h: (..., D), down: (m, D), b: (m,), up: (D, m), c: (D,). The change is computed in
    float32, whatever the dtype of h, and the sum has the dtype of h."""
    raise NotImplementedError("your code here")


def nearest_words(soft, table):
    """The id of the row of `table`, (V, D), nearest to each row of `soft`, (n, D), by Euclidean distance: (n,) int64,
    the smaller id where two are equally near."""
    raise NotImplementedError("your code here")


def numbers_trained(name, n_layers, dim, kv_dim, size):
    """How many numbers a method trains in a LLaMA. name: "prompt" (size virtual tokens of width dim), "prefix" (size
    keys and values of width kv_dim in each layer), "adapter" (two in each layer, inner width size, with both biases).
    ValueError for another name."""
    raise NotImplementedError("your code here")
