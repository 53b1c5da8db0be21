"""The reward model: its loss is logistic regression, its score is read at the last real token alone."""

import math
from functools import partial

import oracles
import pytest
import torch
from mutants import Mutant

from minillama.rlhf.reward_model import (
    RewardModel,
    normalisation,
    pair_accuracy,
    preference_loss,
)
from minillama.train.sequence_loss import left_aligned

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # fp64, a handful of operations


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Running(torch.nn.Module):
    """A small causal body: hidden state t is the mean of the embeddings up to t."""

    def __init__(self, vocab=11, dim=6, seed=0):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(vocab, dim, generator=torch.Generator().manual_seed(seed)))

    def hidden_states(self, tokens_BT):
        return self.table[tokens_BT].cumsum(1) / torch.arange(1, tokens_BT.shape[1] + 1)[:, None]


def test_preference_loss_is_the_papers_formula():
    for n in (1, 2, 7):
        chosen, rejected, margin = 3 * normal(3, n)
        pairs = list(zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True))
        wanted = oracles.mean([oracles.preference_loss(c, r) for c, r, _ in pairs])
        torch.testing.assert_close(preference_loss(chosen, rejected).item(), wanted, **EXACT)
        with_margin = oracles.mean([oracles.preference_loss(c, r, m) for c, r, m in pairs])
        torch.testing.assert_close(preference_loss(chosen, rejected, margin).item(), with_margin, **EXACT)


def test_label_smoothing_weighs_in_the_swapped_pair():
    """(1 - e) loss(x) + e loss(-x) with a margin or without; smallest where sigmoid(x) is 1 - e."""
    chosen, rejected, margin = 3 * normal(3, 7)
    for e, m in ((0.1, torch.zeros(7)), (0.3, margin)):
        rows = list(zip(chosen.tolist(), rejected.tolist(), m.tolist(), strict=True))
        wanted = oracles.mean([(1 - e) * oracles.preference_loss(c, r, x) + e * oracles.preference_loss(r, c, -x)
                               for c, r, x in rows])
        torch.testing.assert_close(preference_loss(chosen, rejected, m, e).item(), wanted, **EXACT)
        best = torch.tensor([math.log((1 - e) / e)], requires_grad=True)
        preference_loss(best, torch.zeros(1), label_smoothing=e).backward()
        assert abs(best.grad.item()) < 1e-6


def test_a_margin_punishes_a_flipped_pair_more():
    """Of a pair labelled the wrong way round the loss grows by nearly the margin, of a right one by nearly nothing."""
    good, bad, margin = torch.tensor([4.0]), torch.tensor([0.0]), 2.0
    right, flipped = (preference_loss(*pair, margin) - preference_loss(*pair) for pair in ((good, bad), (bad, good)))
    assert 0 < right < 0.2 and margin - 0.1 < flipped < margin


def test_preference_loss_of_equal_scores_is_log_two():
    zero = torch.zeros(3)
    assert math.isclose(preference_loss(zero, zero).item(), math.log(2), rel_tol=1e-7)


def test_preference_loss_stays_finite_for_any_difference():
    far = torch.tensor([1e4])
    loss = preference_loss(-far, far)
    assert loss.item() == 2e4 and preference_loss(far, -far).item() == 0.0


def test_gradients_are_those_of_finite_differences():
    chosen, rejected = normal(2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: preference_loss(c, r, 0.3), (chosen, rejected))


def test_a_linear_head_on_frozen_features_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="compares with scikit-learn")
    better, worse = normal(60, 3) + torch.tensor([0.5, 0.0, -0.3]), normal(60, 3, seed=1)
    differences = (better - worse).numpy()
    signs = torch.tensor([1, -1] * 30).numpy()  # scikit-learn needs both classes
    fit = linear_model.LogisticRegression(C=1e6, fit_intercept=False, tol=1e-10, max_iter=1000)
    wanted = torch.tensor(fit.fit(differences * signs[:, None], signs > 0).coef_[0])
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = preference_loss(better @ weight, worse @ weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert wanted.norm() > 0.3
    # C = 1e6 leaves a pull to zero of 1e-6 / 60 of the loss's curvature (about 0.1): below 1e-5.
    torch.testing.assert_close(weight.detach(), wanted, rtol=0, atol=1e-4)


def test_pair_accuracy_counts_a_tie_as_half():
    chosen, rejected = torch.tensor([2.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 3.0, -5.0])
    assert pair_accuracy(chosen, rejected) == (1 + 0.5 + 0 + 1) / 4


def test_the_score_is_read_at_the_last_real_token():
    model = RewardModel(Running(), 6)
    tokens, mask = (torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5]).bool())
    for row, length in ((0, 3), (1, 5)):
        hidden = model.body.table[tokens[row, :length]].mean(0)
        torch.testing.assert_close(model(tokens, mask)[row], hidden @ model.head.weight[0])


def test_padding_on_either_side_does_not_change_a_score():
    model = RewardModel(Running(), 6)
    texts = [torch.tensor([[3, 1, 4]]), torch.tensor([[1, 5, 9, 2, 4]])]
    alone = torch.cat([model(text, torch.ones_like(text, dtype=torch.bool)) for text in texts])
    for first, second in [((0, 3), (0, 1)), ((2, 0), (0, 0)), ((3, 2), (1, 2)), ((1, 7), (6, 0))]:
        for pad in (0, 4):  # 4 is also the texts' own last token, as when pad and EOS share an id
            wide, mask = (torch.cat([torch.nn.functional.pad(rows, padding, value=value) for rows, padding in
                                     zip(of, (first, second), strict=True)])
                          for of, value in ((texts, pad), ([torch.ones_like(text).bool() for text in texts], False)))
            torch.testing.assert_close(model(wide, mask), alone, rtol=1e-6, atol=1e-6)


def test_the_transformer_serves_as_body_and_padding_changes_no_score():
    from minillama.config import ModelConfig
    from minillama.transformer import Transformer

    torch.manual_seed(0)
    body = Transformer(
        ModelConfig(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=13, hidden_dim=24, max_seq_len=16)
    )
    model, tokens = RewardModel(body, 16), torch.tensor([[3, 1, 4, 1, 5]])
    alone = model(tokens, torch.ones(1, 5, dtype=torch.bool))
    for left, right in [(0, 3), (4, 0), (2, 3)]:
        wide = torch.nn.functional.pad(tokens, (left, right), value=2)
        mask = torch.nn.functional.pad(torch.ones(1, 5, dtype=torch.bool), (left, right))
        torch.testing.assert_close(model(wide, mask), alone, rtol=1e-5, atol=1e-5)  # fp32 sums in another order


def test_the_head_starts_with_variance_one_over_d_plus_one():
    torch.manual_seed(0)
    dim = 4095
    weight = RewardModel(Running(dim=1), dim).head.weight.detach()
    # The variance of n normal numbers is known to sqrt(2 / n) = 2.2 %: five of those.
    assert abs(weight.var().item() * (dim + 1) - 1) < 5 * math.sqrt(2 / dim)
    scores = torch.nn.functional.normalize(torch.randn(500, dim), dim=-1) * math.sqrt(dim) @ weight[0]
    assert 0.8 < scores.std().item() < 1.2


def test_normalised_scores_have_mean_zero_and_deviation_one():
    torch.manual_seed(1)
    model, tokens, mask = (
        RewardModel(Running(), 6),
        torch.randint(0, 11, (40, 5)),
        torch.ones(40, 5, dtype=torch.bool),
    )
    raw = model(tokens, mask).detach()
    model.normalise(torch.tensor([5.0, 9.0, -2.0]))  # whatever the constants were before
    for _ in range(2):
        model.normalise(model(tokens, mask))
        scores = model(tokens, mask).detach()
        assert abs(scores.mean().item()) < 1e-6 and abs(scores.std(correction=0).item() - 1) < 1e-6
    torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(correction=0), rtol=1e-5, atol=1e-5)
    copy = RewardModel(Running(seed=5), 6)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(tokens, mask), model(tokens, mask))  # the constants are saved with the weights


def test_normalisation_constants_are_those_of_the_definition():
    samples = normal(7)
    mean, deviation = normalisation(samples)
    assert math.isclose(mean, oracles.mean(samples.tolist()), rel_tol=1e-12)
    assert math.isclose(deviation, math.sqrt(oracles.variance(samples.tolist())), rel_tol=1e-12)


def test_what_cannot_be_normalised_is_refused():
    for wrong, reason in [
        ([1.0], "1 scores given"),
        ([2.0, 2.0], "no spread"),
        ([1.0, math.nan], "1 of them finite"),
    ]:
        with pytest.raises(ValueError, match=reason):
            normalisation(torch.tensor(wrong))


def test_masks_without_a_single_run_are_refused():
    tokens = torch.arange(6).view(2, 3)
    moved, first = left_aligned(tokens, torch.tensor([[True, True, False], [False, True, True]]))
    assert moved.tolist() == [[0, 1], [4, 5]] and first.tolist() == [0, 1]
    for wrong in ([False, False, False], [True, False, True]):
        with pytest.raises(ValueError, match="hole"):
            left_aligned(tokens[:1], torch.tensor([wrong]))
    with pytest.raises(TypeError, match="int64"):
        left_aligned(tokens, torch.ones(2, 3, dtype=torch.int64))


def test_losses_without_a_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\)"):
        preference_loss(torch.zeros(2), torch.zeros(3))


plant = partial(Mutant, "minillama.rlhf.reward_model")
PAPER = test_preference_loss_is_the_papers_formula
NORMAL = test_normalised_scores_have_mean_zero_and_deviation_one
PADDING = test_padding_on_either_side_does_not_change_a_score
# fmt: off
MUTANTS = [
    plant("at_least_fp32(chosen) - at_least_fp32(rejected)", "at_least_fp32(rejected) - at_least_fp32(chosen)", PAPER),
    plant("else difference - margin", "else difference + margin", PAPER),
    plant("F.logsigmoid(difference)).mean()", "F.logsigmoid(difference)).sum()", PAPER),
    plant("- F.logsigmoid(difference)", "- torch.sigmoid(difference)", PAPER),
    plant("label_smoothing * difference", "label_smoothing", test_label_smoothing_weighs_in_the_swapped_pair),
    plant("- F.logsigmoid(difference)", "+ (1 + (-difference).exp()).log()",
          test_preference_loss_stays_finite_for_any_difference),
    plant("+ 0.5 * (chosen == rejected)", "+ (chosen == rejected)", test_pair_accuracy_counts_a_tie_as_half),
    plant("last_B = mask_BT.sum(-1) - 1", "last_B = mask_BT.shape[1] - 1 - mask_BT.flip(-1).int().argmax(-1)", PADDING),
    plant("device=hidden_BTD.device), last_B]", "device=hidden_BTD.device), -1]", PADDING),  # on a pad
    plant("self.body.hidden_states(tokens_BT)", "self.body.hidden_states(tokens_BT.roll(1, 1))", PADDING),
    plant("std=1.0 / math.sqrt(dim + 1)", "std=1.0 / (dim + 1)",
          test_the_head_starts_with_variance_one_over_d_plus_one),
    plant("self.mean += self.deviation * mean", "self.mean += mean", NORMAL),
    plant("self.deviation *= deviation", "self.deviation /= deviation", NORMAL),
    plant("scores.std(correction=0)", "scores.std(correction=1)", NORMAL),
]
# fmt: on
