"""The policy as it was at the start: what the KL penalty measures from, and what must never learn."""

import contextlib

import torch


class Reference:
    """A policy as it is now, for good, while the policy itself learns on.

    What requires a gradient is copied: all weights of a model that learns whole; else its adapter, learned on before or
    not, and tables, norms or biases that learn beside it. What is frozen, quantized or not, is shared.
    """

    def __init__(self, policy):
        self.policy = policy
        self.kept = [(p, p.detach().clone()) for p in policy.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def as_it_began(self):
        """The policy with its first weights, without gradients; then with its present ones again."""
        with torch.no_grad():
            self._swap()
            try:
                yield self.policy
            finally:
                self._swap()

    def _swap(self):
        for parameter, kept in self.kept:  # in place, for FSDP knows where the weights lie
            now = parameter.clone()
            parameter.copy_(kept)
            kept.copy_(now)
