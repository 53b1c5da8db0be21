"""Sampling: the exact distribution by brute force, the draws by chi-square, the filters as everybody else's."""

import math

import numpy as np
import oracles
import pytest
import torch
from mutants import Mutant

from minillama.sampling import (
    Sampling,
    keep_top_k,
    keep_top_p,
    next_token_distribution,
    repetition_penalty,
    row_chances,
    sample,
)

LOGITS = [2.0, -1.5, 0.3, 1.1, -0.2, 3.1, 0.9, -2.2, 1.7, 0.5]  # ten tokens, no ties
SEEN = (0, 1, 5)
SETTINGS = [
    {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 1}, {"top_k": 3}, {"top_k": 99}, {"top_p": 0.05},
    {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999}, {"repetition_penalty": 1.7}, {"repetition_penalty": 0.6},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.5, "top_k": 4, "top_p": 0.6}, {"min_p": 0.03}, {"min_p": 0.5}, {"min_p": 1.0},
    {"temperature": 0.6, "top_p": 0.95, "min_p": 0.1}]
EACH = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def exact(settings):
    settings = dict(settings)
    penalty = settings.pop("repetition_penalty", 1.0)
    return oracles.next_token_probabilities(LOGITS, seen=SEEN, penalty=penalty, **settings)


def seen_row():
    return torch.tensor([[i in SEEN for i in range(10)]])


@EACH
def test_the_distribution_is_the_one_defined(settings):
    ours = next_token_distribution(torch.tensor([LOGITS]), Sampling(**settings), seen_row())
    assert ours.dtype == torch.float32
    wanted = torch.tensor([exact(settings)])
    assert torch.equal(ours > 0, wanted > 0) and (ours - wanted).abs().max() < 1e-6  # a dozen fp32 roundings


@EACH
def test_draws_follow_the_distribution(settings):
    """Chi-square over the tokens that are possible at all, p > 0.01; the seed is fixed."""
    from_scipy = pytest.importorskip("scipy.stats", reason="the oracle is scipy")
    n, probabilities = 4000, exact(settings)
    drawn = sample(torch.tensor([LOGITS]).expand(n, -1), Sampling(**settings), torch.Generator().manual_seed(3),
                   seen_row().expand(n, -1))
    counts = torch.bincount(drawn, minlength=10).tolist()
    possible = [i for i, p in enumerate(probabilities) if p > 0]
    assert sum(counts[i] for i in possible) == n, "an excluded token was drawn"
    if len(possible) > 1:
        expected = [n * probabilities[i] for i in possible]
        assert from_scipy.chisquare([counts[i] for i in possible], expected, sum_check=False).pvalue > 0.01


@EACH
def test_the_filters_equal_those_of_transformers(settings):
    theirs = pytest.importorskip("transformers.generation.logits_process", reason="oracle: transformers")
    torch.manual_seed(0)
    logits, sampling = torch.randn(5, 100) * 3, Sampling(**settings)
    ids = torch.randint(100, (5, 7))
    seen = torch.zeros(5, 100, dtype=torch.bool).scatter(1, ids, True)
    scores = theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, logits.clone())
    scores = theirs.TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = theirs.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = theirs.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = theirs.MinPLogitsWarper(sampling.min_p)(ids, scores)
    assert torch.equal(next_token_distribution(logits, sampling, seen), scores.softmax(-1))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.25, 0.3, 0.5, 0.625, 0.75, 0.875, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    torch.manual_seed(1)
    for probabilities in [*torch.rand(20, 8, dtype=torch.float64).softmax(-1).tolist(), [0.25] * 4,
                          [0.5, 0.125, 0.125, 0.125, 0.125], [1.0, 0.0, 0.0]]:
        row = torch.tensor([probabilities], dtype=torch.float64)
        kept = keep_top_p(row.log(), p) > -math.inf
        assert kept[0, row.argmax()] and (row[kept].sum() >= p)
        assert kept.sum() == oracles.smallest_nucleus(probabilities, p), (probabilities, p)


def test_top_k_keeps_the_best_and_ties_with_the_last_of_them():
    row = torch.tensor([[1.0, 5.0, 3.0, 3.0, -2.0]])
    kept = [(keep_top_k(row, k) > -math.inf)[0].tolist() for k in (1, 2, 4, 5, 100)]
    assert kept == [[False, True, False, False, False], [False, True, True, True, False],
                    [True, True, True, True, False], [True] * 5, [True] * 5]


def test_the_penalty_only_ever_lowers_tokens_already_seen():
    logits = torch.tensor([[2.0, -2.0, 0.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, True, False, False]])
    assert repetition_penalty(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 2.0, -2.0]]


def test_temperature_zero_takes_the_first_of_the_best():
    logits = torch.tensor([[0.0, 7.0, 7.0, 1.0], [-5.0, -9.0, -8.0, -5.0]])
    assert sample(logits, Sampling(temperature=0.0)).tolist() == [1, 0]
    assert next_token_distribution(logits, Sampling(temperature=0.0)).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    low = Sampling(temperature=1e-6)
    assert next_token_distribution(torch.tensor([LOGITS]), low).argmax() == 5, "and is where low ones lead"


def test_greedy_heeds_the_penalty():
    logits, seen = torch.tensor([[3.0, 2.0]]), torch.tensor([[True, False]])
    assert sample(logits, Sampling(temperature=0.0, repetition_penalty=2.0), seen_BV=seen).tolist() == [1]


def test_the_same_seed_draws_the_same_tokens():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    draws = [sample(logits, Sampling(), torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_sampled_in_fp32(dtype):
    logits = torch.tensor([LOGITS], dtype=dtype)
    ours = next_token_distribution(logits, Sampling(temperature=0.7))
    assert ours.dtype == torch.float32 and torch.equal(ours, (logits.float() / 0.7).softmax(-1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_scores_that_are_no_numbers_are_refused(bad, temperature):
    with pytest.raises(ValueError, match="not a finite number"):
        sample(torch.tensor([[0.0, 1.0], bad]), Sampling(temperature=temperature))


def test_a_forbidden_token_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(100, -1)
    for settings in ({}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 0.0}):
        assert (sample(logits, Sampling(**settings)) == 1).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -0.1}, "temperature is -0.1: it must be 0 or a number from 1e-06"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"top_k": -1}, "top_k is -1: it must be a whole number from 0"),
    ({"top_k": 2.0}, "top_k is 2.0"),
    ({"top_p": 0.0}, "top_p is 0.0: it must be a number from 1e-06 to 1"),
    ({"top_p": 1.1}, "top_p is 1.1"),
    ({"top_p": math.nan}, "top_p is nan"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0: it must be a number from 0.001"),
    ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
])
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Sampling(**settings)


def test_u_picks_the_token_at_which_the_summed_probabilities_exceed_it():
    logits = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25, 0.0]]).log().expand(7, -1)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert sample(logits, Sampling(), u_B=u).tolist() == [1, 1, 2, 2, 4, 4, 4], "never one of probability 0"
    last = torch.full((1,), 1 - 2**-24)
    for seed in range(200):  # the sums of fp32 end at 1 but for rounding
        row = torch.randn(1, 1000, generator=torch.Generator().manual_seed(seed))
        assert sample(row, Sampling(), u_B=last) == sample(row, Sampling(), u_B=last.double()) == 999


def test_chances_are_uniform_and_belong_to_seed_and_prompt():
    u = row_chances([[1, 2], [1, 2], [3]], 20000, 5)
    assert u.shape == (3, 20000) and u.dtype == torch.float64 and (0 <= u).all() and (u < 1).all()
    counts = (u * 10).long().flatten().bincount(minlength=10)
    assert ((counts - 6000).square() / 6000).sum() < 27.9  # chi-square, 9 degrees: passed by 999 of 1,000
    assert torch.corrcoef(u)[~torch.eye(3, dtype=bool)].abs().max() < 4 / 20000**0.5, "four deviations from 0"
    assert torch.equal(row_chances([[3], [1, 2]], 7, 5), u[[2, 0], :7])
    assert not (row_chances([[3]], 7, 6) == u[2, :7]).any()
    assert torch.equal(row_chances(np.array([[3]]), 7, 5), u[2:, :7]), "whatever brings the ids"


def test_a_penalty_without_the_text_is_refused():
    with pytest.raises(ValueError, match="repetition_penalty needs seen_BV"):
        sample(torch.tensor([LOGITS]), Sampling(repetition_penalty=1.1))


def _defined(**settings):
    return lambda: test_the_distribution_is_the_one_defined(settings)


MUTANTS = [
    Mutant("minillama.sampling", "logits_BV.amax(-1, keepdim=True) + math.log(share)",
           "logits_BV.amax(-1, keepdim=True) - math.log(share)", _defined(min_p=0.5)),
    Mutant("minillama.sampling", "logits_BV = logits_BV / sampling.temperature", "logits_BV *= sampling.temperature",
           _defined(temperature=0.5)),
    Mutant("minillama.sampling", "dropped_BV = before_BV >= p", "dropped_BV = before_BV + probabilities_BV >= p",
           lambda: test_top_p_keeps_the_smallest_set_that_reaches_p(0.5)),
    Mutant("minillama.sampling", "before_BV = probabilities_BV.cumsum(-1) - probabilities_BV",
           "before_BV = probabilities_BV.cumsum(-1) - 2 * probabilities_BV",
           lambda: test_top_p_keeps_the_smallest_set_that_reaches_p(0.5)),
    Mutant("minillama.sampling", "dropped_BV.scatter(-1, order_BV, dropped_BV)", "dropped_BV",
           _defined(top_p=0.5)),
    Mutant("minillama.sampling", "dropped_BV = before_BV >= p", "dropped_BV = before_BV > p",
           lambda: test_top_p_keeps_the_smallest_set_that_reaches_p(0.5)),
    Mutant("minillama.sampling", "logits_BV < kth_B1", "logits_BV <= kth_B1",
           test_top_k_keeps_the_best_and_ties_with_the_last_of_them),
    Mutant("minillama.sampling", ".topk(min(k, logits_BV.shape[-1]))", ".topk(min(k + 1, logits_BV.shape[-1]))",
           _defined(top_k=3)),
    Mutant("minillama.sampling", "torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)",
           "logits_BV / penalty", test_the_penalty_only_ever_lowers_tokens_already_seen),
    Mutant("minillama.sampling", "torch.where(seen_BV, punished, logits_BV)", "punished",
           test_the_penalty_only_ever_lowers_tokens_already_seen),
    Mutant("minillama.sampling", "logits_BV = logits_BV.float()", "logits_BV = logits_BV + 0",
           lambda: test_half_precision_scores_are_sampled_in_fp32(torch.bfloat16)),
    Mutant("minillama.sampling", "probabilities_BV.to(u_B.dtype).cumsum(-1)",
           "probabilities_BV.sqrt().to(u_B.dtype).cumsum(-1)", lambda: test_draws_follow_the_distribution({})),
    Mutant("minillama.sampling", "reached_B1, right=True)", "reached_B1)",
           test_u_picks_the_token_at_which_the_summed_probabilities_exceed_it),
    Mutant("minillama.sampling", "generator=generator, ", "", test_the_same_seed_draws_the_same_tokens),
    Mutant("minillama.sampling", "logits_BV.amax(-1).isfinite().all()", "logits_BV.isfinite().any()",
           lambda: test_scores_that_are_no_numbers_are_refused([math.nan, 1.0], 0.0)),
]
