"""What stands for a quantized number: the nearest of a few levels, and the scale for a block that fits it best."""

import math

import torch
from torch import nn

CELLS = 32  # in 1: cells of [-1, 1], each with at most one of NF4's half-way points, far from its edges
SMALLEST_SCALE = 1e-38  # below it 1 / scale overflows; an all-zero block is 0 * 1e38 = 0


def nearest(scaled, levels):
    """uint8 number of the level nearest to each x of a flat fp32 tensor, the lower where two are equally near.

    levels: ascending, in [-1, 1]. Where they are few (16), the cell of x leaves two neighbours, and one comparison
    decides between them: the same answer as a search, in a quarter of its time or less.
    """
    levels = torch.tensor(levels, dtype=torch.float32, device=scaled.device)
    halfway = (levels[:-1] + levels[1:]) / 2
    if len(levels) > 16:
        return torch.bucketize(scaled, halfway, out_int32=True).to(torch.uint8)
    edges = torch.arange(-CELLS, CELLS + 1, device=scaled.device) / CELLS
    lower = torch.bucketize(edges, halfway, right=True)  # the level of the cell's left edge
    above = nn.functional.pad(halfway, (0, 1), value=math.inf)[lower]  # from here on it is the next one
    cells = scaled.clamp(-1, 1).mul_(CELLS).add_(CELLS).int()
    numbers = lower.to(torch.uint8).index_select(0, cells)
    numbers += scaled > above.index_select(0, cells)
    return numbers


def inverse(scales):
    """1 / scale in fp32, finite."""
    return 1.0 / torch.where(scales.abs() < SMALLEST_SCALE, SMALLEST_SCALE, scales)


def row_sums(rows):
    """The sum of each row of a matrix, which is overwritten: its second half is added to its first, until one column
    is left. PyTorch's own sum has an order that depends on the CPU, and with it which scale is the best."""
    width = rows.shape[1]
    while width > 1:
        half = (width + 1) // 2
        rows[:, :width - half] += rows[:, half:width]
        width = half
    return rows[:, 0]


def best_scales(flat, candidates, levels, block_size):
    """(number of the best candidate for each block, uint8 level numbers for it), of flat fp32 x.

    candidates: fp32 (n, blocks). The best scale s leaves the least sum of (x - s level)^2 over its block, with the
    level nearest to x / s each time; of equally good ones it is the first.
    """
    blocks = nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
    table = torch.tensor(levels, dtype=torch.float32, device=flat.device)

    def numbers(scales):
        return nearest((blocks * inverse(scales)[:, None]).flatten(), levels)

    least, best = torch.full_like(candidates[0], math.inf), torch.zeros_like(candidates[0], dtype=torch.int64)
    for candidate, scales in enumerate(candidates):
        values = table.index_select(0, numbers(scales).int()).view_as(blocks)
        error = row_sums(values.mul_(scales[:, None]).sub_(blocks).square_())
        best[error < least] = candidate
        least = torch.minimum(least, error)
    return best, numbers(candidates.gather(0, best[None])[0])[:flat.numel()]
