"""Checks of exercise 22: codes by hand, columns, and the split product with every number re-computed in float64."""
import torch

from minillama.course.exercise import Wrong, close

HINTS = {
    "quantize_rows": ("The largest magnitude of a row becomes 127 or -127.",
                      "Round to the nearest, do not cut: 0.6 is 1.",
                      "A row of zeros: 0 / 0 is NaN, so divide by something else there."),
    "outlier_columns": ("One loud value is enough to make the whole column an outlier.",
                        "The sign does not matter, and a value equal to the threshold counts."),
    "product": ("Two parts: the loud columns as they are, all others through int8; then add.",
                "The scale of a row of x must not see the loud columns: put zeros there before rounding.",
                "y = (sum of products of codes) * s_x * s_W / 127^2 + sum over loud columns of x_i w_i"),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wanted_codes(rows):
    scale = rows.abs().amax(1, keepdim=True)
    return torch.round(rows / torch.where(scale == 0, torch.ones_like(scale), scale) * 127)


def check_quantize_rows(learner):
    codes, absmax = learner.quantize_rows(torch.tensor([[0.3, -2.0, 1.0], [4.0, 0.0, -1.0]]))
    close("absmax", absmax, torch.tensor([2.0, 4.0]), 0, 0)
    if codes.to(torch.int64).abs().amax() != 127:
        raise Wrong(f"the codes go to {codes.to(torch.int64).abs().amax().item()}, not to 127", 0)
    close("codes", codes, torch.tensor([[19, -127, 64], [127, 0, -32]], dtype=torch.int8), 0, 1)
    close("codes of one number", learner.quantize_rows(torch.tensor([[-0.5]]))[0],
          torch.tensor([[-127]], dtype=torch.int8), 0, 0)
    codes, absmax = learner.quantize_rows(torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64))
    close("codes with a row of zeros", codes, torch.tensor([[0, 0], [127, 64]], dtype=torch.int8), 0, 2)
    close("absmax with a row of zeros", absmax, torch.tensor([0.0, 1.0], dtype=torch.float64), 0, 2)


def check_outlier_columns(learner):
    x = torch.tensor([[1.0, -7.0, 2.0, 0.0], [1.0, 1.0, 6.0, 5.9]])
    close("columns of size 6 or more", learner.outlier_columns(x, 6.0), torch.tensor([1, 2]), 0, 1)
    close("no such column", learner.outlier_columns(x, 100.0), torch.tensor([], dtype=torch.int64), 0, 0)


def check_product(learner):
    for N, M, K in ((1, 1, 1), (3, 5, 7), (17, 2, 33)):
        x, W = normal(N, K, seed=N), normal(M, K, seed=M + 50)
        for loud, threshold in (([], 6.0), ([0], 6.0), (sorted({0, K // 2, K - 1}), 6.0)):
            x[:, loud] = 0.1
            x[0, loud] = 40.0
            given = x.clone(), W.clone()
            quiet = x.clone()
            quiet[:, loud] = 0
            scales = quiet.abs().amax(1)[:, None] * W.abs().amax(1) / 127**2
            in_int8 = wanted_codes(quiet) @ wanted_codes(W).T * scales
            wanted = in_int8 + x[:, loud] @ W[:, loud].T
            got = learner.product(x, W, threshold)
            if not (torch.equal(x, given[0]) and torch.equal(W, given[1])):
                raise Wrong("product changed the x or W it was given", 0)
            if loud and torch.allclose(got, in_int8):
                raise Wrong(f"product of {(N, K)} and {(M, K)}: the {len(loud)} loud columns add nothing", 0)
            close(f"product of {(N, K)} and {(M, K)}, {len(loud)} loud columns", got, wanted, 1e-9, 1 if loud else 2)


WRONG = [
    ("absmax = rows.abs().amax(1)", "absmax = rows.amax(1)", "quantize_rows", 0),
    ("torch.round(rows / scale[:, None] * 127)", "(rows / scale[:, None] * 127)", "quantize_rows", 1),
    ("torch.where(absmax > 0, absmax, 1.0)", "absmax.clamp(min=1.0)", "quantize_rows", 0),
    ("x.abs() >= threshold", "x >= threshold", "outlier_columns", 1),
    (".any(0)", ".all(0)", "outlier_columns", 1),
    ("    quiet[:, apart] = 0\n", "", "product", 1),
    ("/ 127**2", "/ 127", "product", 2),
    ("quiet = x.clone()", "quiet = x", "product", 0),
    ("rows / scale[:, None] * 127", "rows / scale[:, None] * 128", "quantize_rows", 0),
    ("x.abs() >= threshold", "x.abs() > threshold", "outlier_columns", 1),
    ("x_absmax[:, None] * W_absmax / 127**2", "x_absmax[:, None] / 127**2", "product", 2),
    ("return y + x[:, apart] @ W[:, apart].T", "return y", "product", 0),
    ("y + x[:, apart]", "y + quiet[:, apart]", "product", 0),
]
