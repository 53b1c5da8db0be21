"""Exercise 24: a product with a 4-bit weight, its way back, and what 65B needs in memory (lesson 24).

stored: a weight (out, in) as `minillama.quant.nf4.quantize_nf4` keeps it; `stored.dequantize(dtype)` unpacks it.
"""


def product(x, stored):
    """y = x W^T: x (..., in) of any floating dtype -> y (..., out) of that dtype. W is unpacked in the dtype of x."""
    raise NotImplementedError("your code here")


def slope_of_x(dy, stored):
    """dx = dy W: dy (..., out) -> dx (..., in) of the dtype of dy."""
    raise NotImplementedError("your code here")


def slopes_of_adapter(x, dy, A, B, alpha):
    """(dA, dB), the slopes of the loss along A (R, in) and B (out, R), where the layer adds (alpha / R) x A^T B^T to
    what the base says. x: (..., in), dy: (..., out). The base's weight is not needed: that is why it may be frozen.
    """
    raise NotImplementedError("your code here")


def bytes_to_train(n_base, n_adapter, block_size=64, group=256):
    """Bytes for n_base frozen weights in NF4 with double quantization (one 8-bit scale for each block_size weights, one
    fp32 number for each group of scales) and n_adapter trained fp32 numbers with their slopes and Adam's two averages.
    """
    raise NotImplementedError("your code here")
