"""What `kernels verify --thorough` adds to the table: sizes around every tile, memory that is not aligned or has NaN
between the rows, blocks of NF4 of 2 to 4096 weights, NaN that must be seen or must not, the same bits each time."""

import math

import torch

REPEATS = 10
SHAPES = {  # as the cases of `kernels_verify` take them
    "rope": ((1, 5, 2, 46, True), (2, 3, 4, 96, False), (1, 67, 3, 128, True), (3, 1, 2, 6, True)),
    "nf4_matmul": ((2, 5, 7, True), (5, 3, 65, False), (8, 24, 64, True), (33, 64, 320, False), (2, 16, 96, True),
                   (9, 15, 1024, True), (8, 66, 264, False), (1, 3, 4103, True), (3, 17, 31, False, 2),
                   (2, 17, 31, False, 6), (9, 24, 96, True, 32), (9, 17, 320, False, 4096), (65, 130, 256, True),
                   (1, 9, 2112, True), (33, 136, 64, False)),
    "flash_attention": (
        *((1, 2, 1, T, S, 12, causal, 2**20, 0) for T, S in ((1, 33), (17, 17), (16, 16), (15, 16), (33, 5), (61, 67))
          for causal in (True, False)),
        *((1, 1, 1, 18, 35, d, True, 2**20, 0) for d in (1, 31, 33, 72, 127, 129, 255)),
        *((1, 2, 1, T, S, d, T != 130, 8, 0) for T, S, d in
          ((64, 64, 64), (65, 64, 32), (64, 65, 96), (3, 130, 128), (130, 33, 64), (65, 66, 192), (3, 130, 256))),
        *((2, H, K, 9, 20, 16, True, 2**20, 0) for H, K in ((4, 4), (4, 1), (6, 3))))}


def not_aligned(x):
    """The same numbers, one element behind an aligned address."""
    return torch.empty(x.numel() + 16, dtype=x.dtype)[1:1 + x.numel()].view(x.shape).copy_(x)


def between_nan(x):
    """The same numbers with NaN behind every row, and more rows of NaN behind each matrix."""
    memory = torch.full((*x.shape[:-2], x.shape[-2] + 9, x.shape[-1] + 8), math.nan, dtype=x.dtype)
    memory[..., :x.shape[-2], :x.shape[-1]] = x
    return memory[..., :x.shape[-2], :x.shape[-1]]


def with_places(cases, thorough):
    """Each case, or where `thorough` three of it, whose inputs lie elsewhere in memory."""
    places = {"": torch.clone, ", not aligned": not_aligned, ", between NaN": between_nan}
    for shape, inputs, run, truth in cases:
        for name, place in [*places.items()][:3 if thorough else 1]:
            yield shape + name, {key: place(x) for key, x in inputs.items()}, run, truth


def with_middle(inputs, name, number):
    """The inputs, but that of this name has `number` as its middle element."""
    changed = inputs[name].contiguous().clone()
    changed.view(-1)[changed.numel() // 2] = number
    return inputs | {name: changed}


def laws(backend, inputs, run, results):
    """(law, how many elements break it) for one case; results: the function of `kernels_verify`."""
    once = results(run, backend, inputs)
    again = [results(run, backend, inputs) for _ in range(REPEATS)]
    yield "same bits each time", sum(int((one[name] != x).sum()) for one in again for name, x in once.items())
    plain = results(run, "reference", inputs)
    for name in inputs:
        reached = results(run, "reference", with_middle(inputs, name, 64.0))  # what that element has a part in
        may, ours = (results(run, one, with_middle(inputs, name, math.nan)) for one in ("reference", backend))
        for result, x in ours.items():
            must = plain[result] != reached[result]
            yield f"NaN in {name} is seen in {result}, and where PyTorch's is", int(
                (must & ~x.isnan() | x.isnan() & ~may[result].isnan()).sum())
