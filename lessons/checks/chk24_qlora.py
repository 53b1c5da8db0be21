"""Checks of exercise 24: both ways against autograd through the unpacked weight and against the library's layer."""
import torch

from minillama.course.exercise import close
from minillama.quant.nf4 import NF4Linear, quantize_nf4

HINTS = {
    "product": ("W is (out, in) and x ends in `in`: the product is with W turned over.",
                "Unpack W in the dtype of x: 16 bits in, 16 bits out."),
    "slope_of_x": ("Back through y = x W^T goes dx = dy W: this time W is not turned over.",
                   "Unpack W in the dtype of dy."),
    "slopes_of_adapter": ("dB = (alpha / R) dy^T (x A^T) and dA = (alpha / R) (dy B)^T x, summed over all rows of x.",
                          "R is the number of rows of A; the adapter is scaled by alpha / R once.",
                          "Lay all rows of a batch under one another before the product: (..., in) becomes (N, in)."),
    "bytes_to_train": ("A frozen weight: 4 bits, its share of an 8-bit scale, its share of an fp32 number.",
                       "A trained number: itself, its slope and two averages, 4 bytes each."),
}
SHAPES = [(1, 1), (3, 5), (24, 40), (7, 64)]  # out, in
BATCHES = [(1,), (6,), (2, 3)]


def parts(n_out, n_in):
    generator = torch.Generator().manual_seed(n_out)
    return quantize_nf4(torch.randn(n_out, n_in, generator=generator)), generator


def check_product(learner):
    for shape in SHAPES:
        stored, generator = parts(*shape)
        for batch in BATCHES:
            x = torch.randn(*batch, shape[1], generator=generator)
            close(f"y, weight {shape}, x {tuple(x.shape)}", learner.product(x, stored),
                  NF4Linear(stored)(x), 1e-5, 0)
            close(f"y in bfloat16, weight {shape}", learner.product(x.bfloat16(), stored),
                  NF4Linear(stored)(x.bfloat16()), 0.15, 1)
            close(f"y in float64, weight {shape}", learner.product(x.double(), stored),
                  x.double() @ stored.dequantize(torch.float64).T, 1e-12, 1)


def check_slope_of_x(learner):
    for shape in SHAPES:
        stored, generator = parts(*shape)
        for batch in BATCHES:
            x = torch.randn(*batch, shape[1], generator=generator).requires_grad_()
            dy = torch.randn(*batch, shape[0], generator=generator)
            [wanted] = torch.autograd.grad(NF4Linear(stored)(x), x, dy)
            close(f"dx, weight {shape}, dy {tuple(dy.shape)}", learner.slope_of_x(dy, stored), wanted, 1e-5, 0)
            close(f"dx in float64, weight {shape}", learner.slope_of_x(dy.double(), stored),
                  dy.double() @ stored.dequantize(torch.float64), 1e-12, 1)


def check_slopes_of_adapter(learner):
    for (n_out, n_in), rank in zip(SHAPES, (1, 2, 7, 3), strict=True):
        _, generator = parts(n_out, n_in)
        A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
                for shape in ((rank, n_in), (n_out, rank)))
        for batch in BATCHES:
            x = torch.randn(*batch, n_in, generator=generator, dtype=torch.float64)
            dy = torch.randn(*batch, n_out, generator=generator, dtype=torch.float64)
            wanted = torch.autograd.grad(3.0 / rank * x @ A.T @ B.T, (A, B), dy)
            got = learner.slopes_of_adapter(x, dy, A.detach(), B.detach(), 3.0)
            hint = 2 if len(batch) > 1 else 0 if rank == 1 else 1
            for name, ours, right in zip(("dA", "dB"), got, wanted, strict=True):
                close(f"{name}, rank {rank}, x {tuple(x.shape)}", ours, right, 1e-9, hint)


def check_bytes_to_train(learner):
    close("a base of 2^20 weights alone", learner.bytes_to_train(2**20, 0), 2**20 * (4 + 1 / 8 + 1 / 512) / 8, 1e-6)
    close("an adapter of 10 numbers alone", learner.bytes_to_train(0, 10), 160, 1e-9, 1)
    close("LLaMA 65B with 799,539,200 trained", learner.bytes_to_train(65_285_660_672, 799_539_200) / 1e9,
          65.285660672 * (4 + 1 / 8 + 1 / 512) / 8 + 16 * 0.7995392, 1e-6, 0)
    close("blocks of 32, groups of 128", learner.bytes_to_train(2**20, 0, 32, 128),
          2**20 * (4 + 8 / 32 + 32 / 4096) / 8, 1e-6, 0)


WRONG = [
    ("x @ stored.dequantize(x.dtype).T", "x @ stored.dequantize(x.dtype)", "product", 0),
    ("x @ stored.dequantize(x.dtype).T", "(x.float() @ stored.dequantize().T)", "product", 1),
    ("dy @ stored.dequantize(dy.dtype)", "2 * dy @ stored.dequantize(dy.dtype)", "slope_of_x", 0),
    ("dy @ stored.dequantize(dy.dtype)", "(dy.float() @ stored.dequantize())", "slope_of_x", 1),
    ("(alpha / len(A)) * dy", "alpha * dy", "slopes_of_adapter", 1),
    ("return (dy @ B).T @ x, dy", "return (dy @ B).T @ x * 2, dy", "slopes_of_adapter", 0),
    ("16 * n_adapter", "12 * n_adapter", "bytes_to_train", 1),
    (" + 32 / (block_size * group)", "", "bytes_to_train", 0),
    ("(alpha / len(A))", "(alpha / len(B))", "slopes_of_adapter", 1),
    ("(block_size * group)", "group", "bytes_to_train", 0),
]
