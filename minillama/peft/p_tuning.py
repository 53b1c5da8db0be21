"""P-tuning: a soft prompt that a small network writes, so that its vectors learn together (arXiv 2103.10385).

    P = MLP(E), or P = MLP(LSTM(E)) with an LSTM that reads in both directions; E of shape (n, D)

Networks as in the peft library: three linear layers of width h, or two layers of LSTM and two linear ones of 2 h. Once
learned, only P is kept: the network is a way to learn it.
"""

import torch
from torch import nn

from minillama.peft.prompt_tuning import SoftPrompt


class EncodedPrompt(SoftPrompt):
    """A `SoftPrompt` whose vectors come out of an MLP, or of an LSTM and an MLP."""

    def __init__(self, start_nD, h, lstm=False):
        super().__init__(start_nD)
        D = start_nD.shape[1]
        self.lstm = nn.LSTM(D, h, num_layers=2, bidirectional=True) if lstm else None
        first, inner = ([], 2 * h) if lstm else ([nn.Linear(D, h), nn.ReLU()], h)
        self.mlp = nn.Sequential(*first, nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, D))
        self.to(start_nD.device)

    def flat(self):
        """(n, D)"""
        return self.mlp(self.embedding if self.lstm is None else self.lstm(self.embedding)[0])


def add_p_tuning(model, n, h, lstm=False):
    """Put n encoded vectors before all that the frozen `model` reads."""
    table = model.tok_embeddings.weight
    model.requires_grad_(False)
    model.virtual_tokens = EncodedPrompt(torch.randn(n, table.shape[1], device=table.device), h, lstm)
