"""Exercise 15, solved: clipping, and AdamW for a list of parameters."""
import torch


def clip_gradients(gradients, max_norm):
    """Scale a list of tensors in place so that their joint Euclidean norm is at most max_norm."""
    norm = sum(g.double().square().sum().item() for g in gradients) ** 0.5
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


class AdamW:
    """AdamW over a list of tensors with `.grad`: `step()` updates each in place."""

    def __init__(self, parameters, lr, betas=(0.9, 0.95), eps=1e-8, decay=0.1):
        self.parameters = list(parameters)
        self.lr, self.betas, self.eps, self.decay = lr, betas, eps, decay
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = [0] * len(self.parameters)

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        for i, p in enumerate(self.parameters):
            if p.grad is None:
                continue
            self.t[i] += 1
            if p.dim() >= 2:
                p.mul_(1 - self.lr * self.decay)
            self.m[i] = self.betas[0] * self.m[i] + (1 - self.betas[0]) * p.grad
            self.v[i] = self.betas[1] * self.v[i] + (1 - self.betas[1]) * p.grad**2
            mean = self.m[i] / (1 - self.betas[0] ** self.t[i])
            square = self.v[i] / (1 - self.betas[1] ** self.t[i])
            p.sub_(self.lr * mean / (square.sqrt() + self.eps))
