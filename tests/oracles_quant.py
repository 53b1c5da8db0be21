"""Independent oracles of the quantizers: one number at a time, from the papers; nothing of minillama is
imported."""

import math

import numpy as np

# The table of arXiv 2305.14314, appendix E.
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]
# Two different 4-bit floats, both scaled to a largest value of 1: the OCP standard's, and bitsandbytes' own.
E2M1 = [sign * value / 6 for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
BNB_FP4 = [sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 2, 3, 4, 6, 8, 12)]
INT4 = [value / 7 for value in range(-7, 8)]  # absmax int4: -8 is left unused


def normal_quantile(p):
    """x with P(N(0,1) < x) = p, by bisection on erf."""
    low, high = -10.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < p else (low, middle)
    return low


def nearest(value, levels):
    """Number of the level nearest to value; half-way goes to the lower. Half-way points are rounded to
    fp32."""
    for i in range(len(levels) - 1):
        if value <= (np.float32(levels[i]) + np.float32(levels[i + 1])) / np.float32(2):
            return i
    return len(levels) - 1


def block_codes(flat, levels, block_size):
    """(codes, absmax) by loops, in fp32 arithmetic step by step."""
    codes, scales = [], []
    for start in range(0, len(flat), block_size):
        block = [np.float32(value) for value in flat[start:start + block_size]]
        absmax = max(abs(value) for value in block)
        reciprocal = np.float32(1) / max(absmax, np.float32(1e-38))
        codes += [nearest(value * reciprocal, levels) for value in block]
        scales.append(absmax)
    return codes, scales


def nibbles(codes, zero_code):
    """Two codes a byte, the first in the high half."""
    codes = codes + [zero_code] * (len(codes) % 2)
    return [codes[j] * 16 + codes[j + 1] for j in range(0, len(codes), 2)]


def relative_rmse(flat, levels, block_size):
    """sqrt(sum (w - w')^2 / sum w^2) when each block is rounded to levels * absmax, in float64,
    vectorised."""
    levels = np.sort(np.array(levels, dtype=np.float64))
    blocks = np.asarray(flat, dtype=np.float64).reshape(-1, block_size)
    absmax = np.abs(blocks).max(1, keepdims=True)
    codes = np.searchsorted((levels[:-1] + levels[1:]) / 2, blocks / absmax)
    return float(np.sqrt(((levels[codes] * absmax - blocks) ** 2).sum() / (blocks**2).sum()))


def int8_rows(rows, threshold=math.inf):
    """(codes, absmax per row, outlier columns) of LLM.int8 (arXiv 2208.07339) by loops over a list of
    rows."""
    columns = [j for j in range(len(rows[0])) if any(abs(row[j]) >= threshold for row in rows)]
    codes, scales = [], []
    for row in rows:
        inliers = [np.float32(abs(value)) for value in row if abs(value) < threshold]
        absmax = max(inliers, default=np.float32(0))
        factor = np.float32(1) / absmax * np.float32(127) if absmax else np.float32(0)
        codes.append([0 if j in columns else int(np.round(np.float32(value) * factor))
                      for j, value in enumerate(row)])
        scales.append(absmax)
    return codes, scales, columns
