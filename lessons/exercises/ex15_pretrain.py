"""Exercise 15: clipping, and AdamW for a list of parameters (lesson 15)."""


def clip_gradients(gradients, max_norm):
    """Scale a list of tensors in place, all by one factor, so that their joint Euclidean norm is at most max_norm.

    Shorter ones stay as they are, bit for bit. Returns the norm before, a float. All may be zero.
    """
    raise NotImplementedError("your code here")


class AdamW:
    """AdamW over a list of tensors with `.grad`: `step()` updates each in place.

        w <- w - lr decay w        m <- beta1 m + (1 - beta1) g        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Only tensors of two or more dimensions decay. A tensor whose grad is None is left alone, its t too. The attribute
    `lr` may be changed between steps.
    """

    def __init__(self, parameters, lr, betas=(0.9, 0.95), eps=1e-8, decay=0.1):
        raise NotImplementedError("your code here")

    def step(self):
        """One update of every parameter that has a gradient."""
        raise NotImplementedError("your code here")
