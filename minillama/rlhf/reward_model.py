"""Learning what people prefer: a scalar score for a text, trained on pairs of a better and a worse one."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minillama.train.sequence_loss import at_least_fp32, left_aligned


def preference_loss(chosen, rejected, margin=None, label_smoothing=0.0):
    """Mean of -log sigmoid(r_chosen - r_rejected - margin): Bradley-Terry's likelihood.

    InstructGPT (arXiv 2203.02155 eq. 1) without, LLaMA 2 (2307.09288 eq. 2) with a margin: a tensor or number, larger
    where people were surer. chosen, rejected: scores of equal shape. Computed in at least fp32 through logsigmoid,
    finite for any difference (log(1 + exp(-x)) written out overflows at x = -89 in fp32).
    label_smoothing: the share e of pairs whose label may be wrong: (1 - e) loss(x) + e loss(-x) = loss(x) + e x.
    """
    if chosen.shape != rejected.shape or chosen.numel() == 0:
        raise ValueError(f"chosen has shape {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}: "
                         "they must be equal and not empty, a score of each side of each pair")
    difference = at_least_fp32(chosen) - at_least_fp32(rejected)
    difference = difference if margin is None else difference - margin
    return (label_smoothing * difference - F.logsigmoid(difference)).mean()


def pair_accuracy(chosen, rejected):
    """Share of pairs in which the chosen text scores higher; a tie counts one half.

    So a model that scores everything alike has 0.5, chance level, not 0 or 1.
    """
    return ((chosen > rejected).double() + 0.5 * (chosen == rejected).double()).mean().item()


class RewardModel(nn.Module):
    """A language model whose last hidden state, read at the end of the text, is turned into one number.

    body: any module with `hidden_states(tokens_BT) -> (B, T, D)`, usually the instruction-tuned model;
    dim: its D.

    The head starts from N(0, 1 / (D + 1)) (arXiv 2009.01325, appendix B.1), read as a variance: the final norm gives
    hidden states of mean square 1, so first scores spread by about 1, where the sigmoid is lively. Taken for the
    standard deviation, as some programs do, they would spread by 1/sqrt(D): all texts start out nearly tied. No bias: a
    difference of scores cannot see one, and `normalise` sets the level.
    """

    def __init__(self, body, dim):
        super().__init__()
        self.body = body
        self.head = nn.Linear(dim, 1, bias=False)
        nn.init.normal_(self.head.weight, std=1.0 / math.sqrt(dim + 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, tokens_BT, mask_BT):
        """Score of each text, (B,) fp32, read at its last real token (which should be EOS: the only place that has seen
        everything and knows that nothing follows). mask_BT: bool, True on real tokens; padding may stand on both sides.
        The place comes from the mask, never from searching pad or EOS ids: in many models the two are the same.
        """
        tokens_BT, _ = left_aligned(tokens_BT, mask_BT)
        last_B = mask_BT.sum(-1) - 1
        hidden_BTD = self.body.hidden_states(tokens_BT)
        hidden_BD = hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]
        # The product in fp32: bf16 has 8 bits, and would tie texts that are close.
        scores_B = F.linear(at_least_fp32(hidden_BD), at_least_fp32(self.head.weight)).squeeze(-1)
        return (scores_B - self.mean) / self.deviation

    def normalise(self, scores):
        """From now on give scores the level and spread at which `scores` (what the model gives now) have mean 0, sd 1.

        Meant for scores of the starting policy's own samples, before reinforcement: then a coefficient
        of the KL penalty means the same thing in every run. May be called again.
        """
        mean, deviation = normalisation(scores)
        self.mean += self.deviation * mean
        self.deviation *= deviation


def normalisation(scores):
    """(mean, standard deviation) of samples, as floats, computed in fp64; population form, so that the given samples
    come out with spread exactly 1. Errors: fewer than two samples, or samples without spread."""
    scores = scores.detach().double().flatten()
    if scores.numel() < 2 or not torch.isfinite(scores).all():
        raise ValueError(f"{scores.numel()} scores given, {int(torch.isfinite(scores).sum())} of them "
                         "finite: normalising needs at least two, all finite")
    deviation = scores.std(correction=0).item()
    if deviation == 0.0:
        raise ValueError(f"all {scores.numel()} scores equal {scores[0].item()}: no spread to normalise")
    return scores.mean().item(), deviation
