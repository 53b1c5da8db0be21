"""The solution of lessons/exercises/ex32_fused_rope.py: least bytes, and the trade of angles."""


def least_bytes(tokens, heads, kv_heads, width, rotary, element_bytes):
    """Bytes that RoPE must move."""
    of_heads = 2 * element_bytes * (heads + kv_heads) * rotary
    of_table = 4 * rotary
    return tokens * (of_heads + of_table)


def trade(lane, j, pairs, chunks):
    """(lane that holds the cosine, its register)."""
    pair = lane % chunks * pairs + j
    return pair // 2, 2 * (pair % 2)
