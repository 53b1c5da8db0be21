"""SwiGLU: a feed-forward layer whose hidden numbers are opened and shut by a second, gating projection."""

import torch.nn.functional as F
from torch import Tensor, nn

GATES = {  # what each member of the GLU family puts on the gate (arXiv 2002.05202, section 2)
    "glu": F.sigmoid,
    "bilinear": lambda x: x,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}


def gated_linear_unit(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, gate: str = "swiglu") -> Tensor:
    """(act(x W_gate) * (x W_up)) W_down (arXiv 2002.05202, eq. 6).

    x: (..., D); w_gate, w_up: (F, D); w_down: (D, F), as torch stores linear weights. Returns (..., D).
    """
    if gate not in GATES:
        raise ValueError(f"gate {gate!r} is not known: choose one of {', '.join(GATES)}")
    return F.linear(GATES[gate](F.linear(x, w_gate)) * F.linear(x, w_up), w_down)


class SwiGLU(nn.Module):
    """LLaMA's feed-forward layer: silu(x w1) * (x w3), then w2; silu(a) = a * sigmoid(a). No biases."""
    multiply = staticmethod(lambda a, b: F.silu(a) * b)

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)  # gate
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)  # down
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)  # up

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.multiply(self.w1(x), self.w3(x)))
