"""Solution of exercise 05: the backward pass of RMSNorm, by hand."""

import torch


def gain_gradient(dy, x, gain, eps):
    """y_i = unit_i * gain_i with unit = x * r, so dgain_i = dy_i * unit_i, summed over all tokens. Returns (D,)."""
    unit = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return (dy * unit).reshape(-1, x.shape[-1]).sum(0)


def input_gradient(dy, x, gain, eps):
    """dx = r * (dunit - unit * mean(dunit * unit)), with dunit = dy * gain: the second part is what r adds,
    for dr/dx_j = -r^3 x_j / D. Returns (..., D)."""
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    dunit = dy * gain
    direct = r * dunit
    through_r = r.pow(3) * x * (dunit * x).mean(-1, keepdim=True)
    return direct - through_r
