"""Exercise 05: the backward pass of RMSNorm, by hand.

Forward: y = x * r * gain, where r = 1 / sqrt(mean(x^2) + eps) is one number per token.
Training needs the reverse: how the loss changes with x and with gain, when it is known how it changes with y.
No autograd here: write the two gradients as formulas of tensors. The solution is in lessons/solutions/.
"""


def gain_gradient(dy, x, gain, eps):
    """The gradient of the loss with respect to the gain.

    dy: (..., D), the gradient with respect to y. x: (..., D). gain: (D,). eps: float.
    Returns (D,) in x's dtype. All tokens share one gain, so each of them has a say in it.
    """
    raise NotImplementedError("your code here")


def input_gradient(dy, x, gain, eps):
    """The gradient of the loss with respect to x. Arguments as above. Returns (..., D) in x's dtype."""
    raise NotImplementedError("your code here")
