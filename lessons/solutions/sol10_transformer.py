"""Solution of exercise 10: count a LLaMA, and wire one of its blocks."""


def n_parameters(dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, tied):
    """N = L (2 D d (H + K) + 3 D F + 2 D) + (1 or 2) V D + D."""
    attention = 2 * dim * head_dim * n_heads + 2 * dim * head_dim * n_kv_heads
    layer = attention + 3 * dim * hidden_dim + 2 * dim
    tables = (1 if tied else 2) * vocab_size * dim
    return n_layers * layer + tables + dim


def block(x, attention_norm, attention, ffn_norm, feed_forward):
    """x + attention(norm(x)), then the same with the feed-forward layer. (B, T, D)."""
    x = x + attention(attention_norm(x))
    return x + feed_forward(ffn_norm(x))
