"""The solution of lessons/exercises/ex33_dequant_matmul.py: bytes of a weight in NF4, and one weight."""

import math


def stored_bytes(rows, columns, block, double):
    """Bytes of codes and scales."""
    weights = rows * columns
    blocks = math.ceil(weights / block)
    scales = blocks + 4 * math.ceil(blocks / 256) + 4 if double else 4 * blocks
    return math.ceil(weights / 2) + scales


def weight(codes, absmax, levels, row, column, columns, block):
    """Level times scale."""
    place = row * columns + column
    pair = int(codes[place // 2])
    code = pair & 15 if place % 2 else pair >> 4
    return levels[code] * absmax[place // block].item()
