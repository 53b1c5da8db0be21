"""P-tuning v2: a prefix in every layer, and a head of classes for understanding tasks (arXiv 2110.07602).
Where an answer is to be written it is `prefix_tuning` with no encoder; the head is what it adds.

    scores = W h, h: the residual stream at a text's last token; W of shape (classes, D)
"""

from torch import nn

from minillama.peft.methods import add_method


class PrefixClassifier(nn.Module):
    """Scores of some classes for each text, by a frozen `model` with n virtual tokens (0: those that it has already)
    and a head that learns. `adapter_file` saves and loads it."""

    def __init__(self, model, n, classes):
        super().__init__()
        if n:
            add_method(model, "prefix", n)
        self.model = model
        self.head = nn.Linear(model.config.dim, classes, bias=False, device=model.tok_embeddings.weight.device)

    def forward(self, tokens_BT, left_pad_B=None):
        """tokens_BT: texts that end together, padded on the left. Scores of the classes, (B, classes) fp32."""
        hidden_BD = self.model.hidden_states(tokens_BT, left_pad_B=left_pad_B)[:, -1]
        return self.head(hidden_BD.float())
