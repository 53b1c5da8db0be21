"""Exercise 22, solved: an int8 product whose outlier columns are kept apart."""
import torch


def quantize_rows(rows):
    """Row-wise int8: rows (N, K) float -> (codes (N, K) int8, absmax (N,))."""
    absmax = rows.abs().amax(1)
    scale = torch.where(absmax > 0, absmax, 1.0)
    return torch.round(rows / scale[:, None] * 127).to(torch.int8), absmax


def outlier_columns(x, threshold):
    """Places of the columns of x in which any magnitude is at least `threshold`."""
    return (x.abs() >= threshold).any(0).nonzero().flatten()


def product(x, W, threshold):
    """x W^T in int8, the outlier columns of x multiplied as they are."""
    apart = outlier_columns(x, threshold)
    quiet = x.clone()
    quiet[:, apart] = 0
    x_codes, x_absmax = quantize_rows(quiet)
    W_codes, W_absmax = quantize_rows(W)
    sums = x_codes.to(x.dtype) @ W_codes.to(x.dtype).T
    y = sums * x_absmax[:, None] * W_absmax / 127**2
    return y + x[:, apart] @ W[:, apart].T
