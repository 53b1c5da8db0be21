"""AdamW written out, and gradient clipping by the global norm."""

from functools import reduce

import torch


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101, algorithm 2). Per weight w with gradient g, at step t:

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g          v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    As in PyTorch the decay is multiplied by lr (the paper's schedule multiplier times the rate). Only tensors of two or
    more dimensions decay: norm weights scale, and pulling a scale to 0 regularises nothing. The defaults for betas and
    decay are LLaMA's (arXiv 2302.13971, section 2.3). m and v are fp32; weights of a shorter dtype also get an fp32
    copy, which the steps add up in, for most updates are smaller than their rounding.

    The result equals torch.optim.AdamW(foreach=True) bit for bit. `torch._foreach_*` is one call for a
    list of tensors; a tensor without a gradient is left out of the step, and its t does not advance.
    """

    def __init__(self, parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters or len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError(f"{len(self.parameters)} parameters with requires_grad: expected one or more, "
                             "each once")
        if not (lr >= 0 and eps > 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: allowed are "
                             "lr >= 0, 0 <= beta < 1, eps > 0, weight_decay >= 0")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.steps = [0] * len(self.parameters)  # t of each tensor
        self._allocate()

    def _allocate(self):
        self.weights = [p if p.dtype in (torch.float32, torch.float64) else p.detach().float()
                        for p in self.parameters]  # the parameter itself, or its fp32 copy
        self.m = [torch.zeros_like(w) for w in self.weights]
        self.v = [torch.zeros_like(w) for w in self.weights]

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient, with the present `self.lr`."""
        live = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if not live:
            return
        for i in live:
            self.steps[i] += 1
        weights, m, v = ([tensors[i] for i in live] for tensors in (self.weights, self.m, self.v))
        gradients = [self.parameters[i].grad.to(self.weights[i].dtype) for i in live]
        self._update(live, weights, gradients, m, v)
        for i in live:
            if self.weights[i] is not self.parameters[i]:
                self.parameters[i].copy_(self.weights[i])

    def _update(self, live, weights, gradients, m, v):
        """The formula, on lists of whole tensors or of pieces: one of each for every parameter numbered in `live`."""
        matrices = [w for i, w in zip(live, weights, strict=True) if self.parameters[i].dim() >= 2]
        if matrices and self.weight_decay:
            torch._foreach_mul_(matrices, 1 - self.lr * self.weight_decay)
        torch._foreach_lerp_(m, gradients, 1 - self.betas[0])
        torch._foreach_mul_(v, self.betas[1])
        torch._foreach_addcmul_(v, gradients, gradients, 1 - self.betas[1])
        root = torch._foreach_sqrt(v)
        torch._foreach_div_(root, [(1 - self.betas[1] ** self.steps[i]) ** 0.5 for i in live])
        torch._foreach_add_(root, self.eps)
        rates = [-self.lr / (1 - self.betas[0] ** self.steps[i]) for i in live]
        torch._foreach_addcdiv_(weights, m, root, rates)

    def zero_grad(self):
        """Forget the gradients (None, not zeros: the next backward pass then writes instead of adding)."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self):
        """All that a continued run needs: t, m, v and the fp32 weights behind shorter ones, in parameter order."""
        copies = [None if w is p else w for w, p in zip(self.weights, self.parameters, strict=True)]
        return {"steps": list(self.steps), "m": self.m, "v": self.v, "fp32_weights": copies}

    @torch.no_grad()
    def load_state_dict(self, state):
        """Go on from a saved state. ValueError, and nothing changed, where it belongs to other parameters."""
        for key in ("m", "v"):
            theirs, ours = ([tuple(t.shape) for t in tensors] for tensors in (state[key], getattr(self, key)))
            if theirs != ours:
                raise ValueError(f"the saved {key} has shapes {theirs}, the parameters {ours}: "
                                 "load the state into the model it was saved with")
        if len(state["steps"]) != len(self.steps) or len(state["fp32_weights"]) != len(self.weights):
            raise ValueError(f"the saved state counts {len(state['steps'])} tensors, not {len(self.steps)}")
        for i, (weight, copy) in enumerate(zip(self.weights, state["fp32_weights"], strict=True)):
            self.m[i].copy_(state["m"][i])
            self.v[i].copy_(state["v"][i])
            if weight is not self.parameters[i]:
                weight.copy_(self.parameters[i] if copy is None else copy)
        self.steps = list(state["steps"])


@torch.no_grad()
def clip_gradients(parameters, max_norm):
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm (arXiv 1211.5063,
    algorithm 1) -> the norm before, an fp32 tensor left on the device: reading it would make a GPU wait."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    wide = reduce(torch.promote_types, {g.dtype for g in gradients}, torch.float32)  # sums in fp32 or longer
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=wide)))
    norm = getattr(norm, "full_tensor", lambda: norm)()  # of gradients in shards: over all processes
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))  # 1e-6: no 0 / 0
    return norm
