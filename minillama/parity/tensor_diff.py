"""How one tensor differs from another that should hold the same numbers: which mistake turns the one into the other.

Three questions: in which order do the numbers lie (transposed, rows of another head), by which factors are they scaled,
on which grid were they rounded (bf16, int8, NF4). The answers that leave the fewest weights are taken, and what they
leave is named by row and column. `there` is the right tensor, `here` the one in question; both fp32, (R, C) or (D,).
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from minillama.checkpoint.names import rows_to_hf, rows_to_meta

FEW = 3  # so many weights are named one by one, and no rule is looked for that would explain them
SLACK = 1.13  # half steps: bf16(fp16(x)) is off by half a step of each, and fp16's is an eighth of bf16's
NOISE = "noise"  # the grain of last resort
ORDERS = (  # mistakes with a whole matrix
    ("transposed", lambda x: x.T), ("transposed, then read in the old shape", lambda x: x.T.reshape(x.shape)),
    ("read in the transposed shape, then transposed", lambda x: x.reshape(x.shape[::-1]).T),
    ("rows in reverse order", lambda x: x.flip(0)), ("columns in reverse order", lambda x: x.flip(1)))
LAST_BITS = 2.0 ** -21  # of a number in fp32: a product or a quotient, as two programs form it


@dataclass
class Fit:
    """here = factor * there, rounded to `grain` ("" is fp32), but for the weights in the bool `mask`."""

    factor: float
    grain: str
    mask: torch.Tensor

    def __post_init__(self):
        self.left = int(self.mask.sum())


def fit(there, here, grid=None, noisy=False):
    """The `Fit` that leaves the fewest weights; another grain or factor must be worth it. grid: the grains of `here`,
    where they are known. noisy: what is within eight median errors is near."""
    grids = list(_grains(here)) if grid is None else grid, list(_grains(there))
    halves = [("", 0.0, 0.0), *((name, half, 0.0) for name, half in grids[0]),
              *((name, 0.0, half) for name, half in grids[1])]
    names = [[name for name, _ in grains] for grains in grids]
    twice = any("fp16" in side and "bf16" not in side for side in names)  # rounded to fp16 before it was to bf16?
    last = LAST_BITS * here.abs() + ("fp16" in names[0] + names[1]) * 2.0 ** -25  # the last step of fp16
    factor = _factor(there, here)
    if noisy:
        noise = 8 * (here - factor * there).abs().nanmedian()
        halves = [(NOISE, noise * (noise < here.std()), 0.0)]
    best, worth = None, max(FEW, here.numel() // 200)
    for grain, half, before in halves:
        for scale in dict.fromkeys((1.0, _short(factor, 2e-3), factor)):
            limit = (half + abs(scale) * before) * (SLACK if scale != 1 or twice or "blocks" in grain else 1)
            near = (here - scale * there).abs() - last <= limit  # NaN never is
            trial = Fit(scale, grain, ~near & (here != there))
            if best is None or best.left - trial.left > worth:
                best = trial
    return best


def _factor(there, here):
    """The least squares f in here = f there, over the larger half of weights, without those far from the median f."""
    large = there.abs() >= there.abs().median().clamp(min=1e-30)
    x, y = there[large].double(), here[large].double()
    factor = (y / x).nanmedian() if len(x) else torch.tensor(1.0)
    for _ in range(2 if len(x) else 0):
        far = (y / x - factor).abs()
        near = far <= 4 * far.nanmedian() + LAST_BITS
        factor = x[near] @ y[near] / (x[near] @ x[near])
    return factor.item() if factor.isfinite() else 1.0


def _grains(x):
    """(name, half a step at each number) of the grids coarser than fp32 on which x lies."""
    blur = 0.0
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        limits = torch.finfo(dtype)
        if (x.to(dtype).float() == x).float().mean() >= 0.9:
            power = torch.frexp(x.abs().clamp(limits.smallest_normal, limits.max)).exponent - 2
            blur = torch.ldexp(torch.full_like(x, limits.eps), power)
            yield name, blur
    for size in dict.fromkeys((x.shape[-1], 256, 128, 64, 32, 16, 8, 4)):
        whole = x.flatten()[:x.numel() // size * size].view(-1, size)
        if len(whole) and x.dim() == 2:
            yield from _block_grains(x, whole, size, blur)


def _block_grains(x, whole, size, blur):
    """The largest weight of a block is 127 steps (int8), or the block holds at most 16 kinds of numbers."""
    some = whole[::max(1, len(whole) // 256)]
    steps = some / some.abs().amax(1, keepdim=True).clamp(min=1e-30) * 127
    off = (steps - steps.round()).abs()[steps.abs() <= 32].mean()  # bf16 blurs the larger ones
    kinds = some.sort(1).values.diff(dim=1).ne(0).sum(1) + 1 if size >= 32 else torch.zeros(1)
    few = ((kinds <= 16) & (kinds > 4)).float().mean() >= 0.9
    if off < 0.1 or few:
        top = nn.functional.pad(whole.abs().amax(1), (0, 1), value=whole.abs().max().item())
        top = top.repeat_interleave(size)[:x.numel()].view_as(x)
        yield ((f"4 bits in blocks of {size}", top * torch.where(x.abs() == top, 0.35, 0.2)) if few else
               (f"int8 in blocks of {size}", top / 254 + blur))


def orders(name, there, here, config):
    """(words, `there` in another order): as it is, and as the known mistakes with whole matrices leave it."""
    same = there.shape == here.shape
    if same:
        yield "", there
        by = _short((here - there).nanmedian().item(), 1e-3)
        yield f"{by:+.5g} added to each number", there + by
    if there.dim() == 2:
        yield from ((words, moved) for words, move in ORDERS if (moved := move(there)).shape == here.shape)
    if same and name.endswith(("attention.wq.weight", "attention.wk.weight")):
        yield from _rope_orders(name, there, config)
    for dim, noun in enumerate(("row", "column") if same and there.dim() == 2 else ()):
        order = row_order(there.movedim(dim, 0), here.movedim(dim, 0))
        yield order_words(order.tolist(), noun, lines_in_a_head(name, noun, config)), there.index_select(dim, order)


def lines_in_a_head(name, noun, config):
    """How many rows or columns of a matrix are one head's; 0 where they are no heads'."""
    return config.head_dim if ".attention." in name and ("wo" in name) == (noun == "column") else 0


def _short(number, near, digits=3):
    """The number in few digits if it is so near to them, but not 1."""
    short = float(f"{number:.{digits}g}")
    return short if abs(short - number) <= near * abs(number) and short != 1 else number


def _rope_orders(name, there, config):
    mine, other = (config.n_heads, config.n_kv_heads)[::-1 if "wk" in name else 1]
    for whose, move, back in (("Hugging Face's", rows_to_hf, rows_to_meta), ("Meta's", rows_to_meta, rows_to_hf)):
        words = f"rows brought to {whose} RoPE order"
        yield f"{words} once too often", move("attention.wq", there, mine, mine)
        if mine != other and len(there) % (2 * other) == 0:
            right = back("attention.wq", there, mine, mine)
            yield f"{words} as if of {other} heads, where there are {mine}", move("attention.wq", right, other, other)


def row_order(there, here):
    """For each row of `here` the row of `there` that it is most like: (R,). Of rows that are as like it is its own, or
    the one as far away as for other rows: untrained rows are nearly equal."""
    columns = torch.linspace(0, there.shape[1] - 1, min(64, there.shape[1])).long()
    left, right = (nn.functional.normalize(_clamp_outliers(x[:, columns]), dim=1) for x in (here, there))

    def far(order):
        return torch.minimum((left - right[order]).norm(dim=1), (left + right[order]).norm(dim=1))

    own, chunk = torch.arange(len(here)), max(1, 2 ** 24 // len(there))
    order = torch.cat([(part @ right.T).abs().argmax(1) for part in left.split(chunk)])
    moved, counts = (order - own).unique(return_counts=True)
    for by in (*moved[counts.argsort()[-3:]].tolist(), -1, 1, 0):
        other = (own + by).clamp(0, len(there) - 1)
        order = torch.where(far(other) <= far(order), other, order)
    return order


def _clamp_outliers(x):
    """Without what is not finite, and what is so large that it alone would decide how long a row is."""
    return x.nan_to_num(0, 0, 0).clamp(*(bound * x.abs().nanmedian().item() for bound in (-9, 9)))


def order_words(order, noun, unit):
    """Which lines hold which others.

    >>> order_words([0, 3, 2, 1], "row", 0)
    'row 1 holds row 3, row 3 holds row 1'
    >>> order_words([2, 3, 0, 1], "row", 2)
    'head 0 holds head 1, head 1 holds head 0'
    """
    noun, unit, parts = runs([source - i for i, source in enumerate(order)], noun, unit)
    return list_some([f"{span(noun, first, end, unit)} hold{'s' * (end - first == unit)} "
                    f"{span(noun, first + by, end + by, unit)}" for first, end, by in parts if by])


def runs(values, noun, unit):
    """("head" or noun, lines in it, [(first, end, value)] of each run of equal values)."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    if unit and not any(edge % unit for edge in edges):
        edges, noun = range(0, len(values) + 1, unit), "head"
    else:
        unit = 1
    return noun, unit, [(first, end, values[first]) for first, end in pairwise(edges)]


def span(noun, first, end, unit=1):
    """'row 3', or 'rows 3 to 5' for the lines from first to before end."""
    first, last = first // unit, (end - 1) // unit
    return f"{noun} {first}" if first == last else f"{noun}s {first} to {last}"


def list_some(words, most=8):
    """At most so many of them, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def factor_words(factor, config):
    """The factor, and where it comes from if that is known."""
    if factor == 0:
        return "all zeros"
    names = [f" ({before}sqrt({name}))" for name in ("head_dim", "dim") for before, power in (("", 0.5), ("1/", -0.5))
             if abs(abs(factor) / getattr(config, name) ** power - 1) < 5e-4]
    return f"x{factor:.5g}{''.join(names[:1])}"


def line_factors(name, there, here, config, grid):
    """(words, `there` with each row, then with each column, times the factor that brings it nearest to `here`)."""
    near = 3e-3 if grid or any(True for _ in _grains(there)) else 1e-5
    for noun, a, b in (("row", there, here), ("column", there.T, here.T)):
        values = torch.nanmedian(b / a, 1).values.tolist()
        values = [1.0 if abs(value - 1) < near or not math.isfinite(value) else value for value in values]
        for i in range(1, len(values)):
            if abs(values[i] - values[i - 1]) <= near * abs(values[i]):
                values[i] = values[i - 1]
        noun, unit, parts = runs(values, noun, lines_in_a_head(name, noun, config))
        scaled, words = a.clone(), []
        for first, end in ((first, end) for first, end, value in parts if value != 1):
            factor = _short(_factor(a[first:end], b[first:end]), near / 3 if near > 1e-3 else 0.0)
            scaled[first:end] *= factor
            words.append(f"{span(noun, first, end, unit)} {factor_words(factor, config)}")
        yield list_some(words), scaled if a is there else scaled.T


def leftovers(found, there, here):
    """Words for the weights that no rule explains, with the one that is furthest off."""
    shape = [1, *here.shape][-2:]
    mask, there, here = (x.reshape(shape) for x in (found.mask, there, here))
    if found.left <= FEW:
        return "; ".join(_weight(there, here, *place) for place in mask.nonzero().tolist())
    off = (here - found.factor * there).where(mask, 0).abs().nan_to_num(math.inf)
    worst = f"most at {_weight(there, here, *divmod(int(off.argmax()), shape[1]))}"
    if 2 * found.left > here.numel():
        return f"other numbers: they differ by {off.norm() / there.norm():.2g} of the size of the right ones; {worst}"
    for dim, noun in ((1, "row"), (0, "column")):
        hit = mask.any(dim).nonzero().flatten().tolist()
        if 2 * found.left > len(hit) * shape[dim] and shape[1 - dim] > 1:
            return f"other numbers in {list_some([f'{noun} {i}' for i in hit])}; {worst}"
    (top, left), (bottom, right) = mask.nonzero().amin(0).tolist(), mask.nonzero().amax(0).tolist()
    return f"{found.left} weights in {span('row', top, bottom + 1)}, {span('column', left, right + 1)} differ; {worst}"


def _weight(there, here, row, column):
    place = f"row {row}, column {column}" if len(here) > 1 else f"element {column}"
    return f"{place}: {here[row, column]:.6g} here, {there[row, column]:.6g} there"


def explain(name, here, there, others, config):
    """(source, words, grain): by which mistakes `here` comes from `there`, or else from one of others(), pairs (name,
    tensor); and to which grain it is rounded."""
    def own():
        yield name, there

    tries = [(own, False), (own, True), (others, False), (others, True)]  # tables learn: theirs are near to their own
    if here.dim() == 1:  # the norms of all layers are alike, but for noise
        tries[1:3] = tries[2:0:-1]
    for near, noisy in tries:
        found, said, origin, source = _structure(name, here, near(), config, noisy)
        if 2 * found.left <= here.numel():
            break
    else:
        found, said, origin, source = fit(there, here), [], there, name
    near = (0.015, 2) if found.grain.startswith("4") else (3e-4 if found.grain else 0.0, 3)
    found.factor = _short(found.factor, *near)
    said += [factor_words(found.factor, config)] if found.factor != 1 else []
    if found.grain == NOISE:
        error = (here / found.factor - origin).where(~found.mask, 0).norm() / origin.norm()
        said.append(f"noise of {error:.2g} of its size")
    said += [leftovers(found, origin, here)] if found.left else []
    if found.factor and said and here.min() == here.max():
        said = [f"every number is {here.max():.6g}"]
    return source, said, found.grain.replace(NOISE, "")


def _structure(name, here, candidates, config, noisy):
    """(fit, words, tensor as it is arranged and scaled, its name): the order, then factors by row and column."""
    part = slice(None, None, max(1, len(here) // 64) if here.numel() > 2 ** 18 else 1)  # an order is tried on few rows
    grid, small, best = list(_grains(here)), list(_grains(here[part])), (Fit(1.0, "", here == here), [], None, name)
    for source, there in candidates:
        for words, arranged in orders(name, there, here, config):
            if words and 2 * fit(arranged[part], here[part], small, noisy).left > here[part].numel():
                continue
            trial = fit(arranged, here, grid, noisy)
            if best[2] is None or 2 * trial.left < best[0].left:
                best = trial, [words] if words else [], arranged, source
            if best[0].left <= FEW:
                return best
    found, said, there, source = best
    for words, scaled in line_factors(name, there, here, config, grid) if here.dim() == 2 and there is not None else ():
        trial = fit(scaled, here, grid, noisy)
        if 2 * trial.left < found.left:
            found, there, said = trial, scaled, [*said, words]
    return found, said, there, source
