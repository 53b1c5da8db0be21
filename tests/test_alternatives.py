"""Laws of the other ways to learn from feedback: exact on policies that can be enumerated, token by token on others."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from letters import Letters, bare
from mutants import Mutant
from test_train_ppo import a_model

from lessons.other_feedback import (
    DPOConfig,
    RuleReward,
    answer_sequences,
    best_of,
    best_of_n_bound,
    best_of_n_policy,
    expert_round,
    hindsight,
    hindsight_sequences,
    kl_divergence,
    n_answers,
    pair_log_probs,
    train_dpo,
)
from minillama.rlhf.preferences import Pair
from minillama.rlhf.rollout import sample_answers
from minillama.rlhf.train_ppo import PPOConfig, train_ppo
from minillama.train.sequence_loss import IGNORE, Sequence, encode_segments
from minillama.train.sft import SftConfig
from minillama.train.templates import text_of

PAIRS = [Pair("why?", "aab", "zz"), Pair("what", "ba", "zyz"), Pair("c", "aaaa", "zb"), Pair("d?", "ab", "yz")]
FEW = SftConfig(steps=3, batch_size=4, max_lr=1e-2, warmup_steps=1, eval_every=0)


def policies():
    """A policy over K texts with their scores, ties among them, for odd K first."""
    for K in (1, 2, 3, 7):
        generator = torch.Generator().manual_seed(K)
        p_K = torch.rand(K, generator=generator, dtype=torch.float64)
        yield p_K / p_K.sum(), torch.randint(0, 4, (K,), generator=generator).float()
    # texts that are never written: alone with the lowest, a middle and the highest score, and beside others of theirs
    yield torch.tensor([0.0, 0.25, 0.0, 0.0, 0.75, 0.0]).double(), torch.tensor([-1.0, 0.0, 0.0, 1.0, 2.0, 3.0])


def enumerated(p_K, scores_K, n):
    """Best of n by all K^n draws; which of equal answers is taken is a fair draw among the n places."""
    best = torch.zeros_like(p_K)
    for drawn in itertools.product(range(len(p_K)), repeat=n):
        chance = math.prod(p_K[i].item() for i in drawn)
        top = [i for i in drawn if scores_K[i] == max(scores_K[j] for j in drawn)]
        for i in top:
            best[i] += chance / len(top)
    return best


def test_the_best_of_n_policy_is_that_of_all_draws_enumerated():
    for p_K, scores_K in policies():
        for n in (1, 2, 3, 4):
            torch.testing.assert_close(best_of_n_policy(p_K, scores_K, n), enumerated(p_K, scores_K, n),
                                       rtol=1e-12, atol=1e-14)


def test_the_formula_for_the_kl_of_best_of_n_is_a_bound_and_the_limit_of_many_unlike_texts():
    for p_K, scores_K in policies():
        for n in (1, 2, 5, 64):
            assert kl_divergence(best_of_n_policy(p_K, scores_K, n), p_K) <= best_of_n_bound(n) + 1e-12
    many = torch.full((20000,), 1 / 20000, dtype=torch.float64)
    for n in (2, 16):  # sum over i of w log(K w), w = (i^n - (i - 1)^n) / K^n: a Riemann sum, off by about n / K
        best = best_of_n_policy(many, torch.arange(20000.0), n)
        assert kl_divergence(best, many) == pytest.approx(best_of_n_bound(n), abs=2 * n / 20000)
    assert best_of_n_bound(1) == 0.0


def test_kl_is_zero_at_home_and_a_text_never_written_adds_nothing():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert kl_divergence(p, p) == kl_divergence(q, q) == 0.0 and kl_divergence(p, q) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("p", "scores", "n"), [([0.5, 0.5], [1.0], 2), ([0.5, 0.6], [1.0, 2.0], 2), ([1.0], [1.0], 0),
                                                ([1.5, -0.5], [1.0, 2.0], 2)])
def test_what_is_no_policy_is_refused(p, scores, n):
    with pytest.raises(ValueError, match="allowed are n >= 1 and a distribution"):
        best_of_n_policy(torch.tensor(p), torch.tensor(scores), n)


def share_of_a(tokens_BT, mask_BT):
    return ((tokens_BT == Letters.alphabet.index("a")) & mask_BT).float().sum(-1)


def test_of_n_answers_the_best_is_kept_and_one_cut_off_has_its_own_score():
    prompts = [[1, 5], [1, 6, 7], [1]]
    rollout, scores_BN = n_answers(a_model(), share_of_a, prompts, 2, 7, max_new_tokens=24, missing_eos_score=-1.0)
    kept = best_of(rollout, scores_BN)
    assert scores_BN.shape == (3, 7) and len(kept.tokens_BT) == 3
    for row in range(3):
        first = rollout.prompt_places - len(prompts[row])
        assert kept.tokens_BT[row, first:rollout.prompt_places].tolist() == prompts[row]
        one = [slice(i, i + 1) for i in range(7 * row, 7 * row + 7)]
        scores = [share_of_a(rollout.tokens_BT[i], rollout.mask_BT[i]).item() if rollout.ended_B[i] else -1.0
                  for i in one]
        assert scores_BN[row].tolist() == scores
        assert torch.equal(kept.tokens_BT[row], rollout.tokens_BT[7 * row + scores.index(max(scores))])
    assert not rollout.ended_B.all() and rollout.ended_B.any(), "the case has both"
    with pytest.raises(ValueError, match="n is 0"):
        n_answers(a_model(), share_of_a, prompts, 2, 0)


def test_a_sampled_answer_becomes_a_sequence_that_learns_the_answer_alone():
    prompts = [[1, 5], [1, 6, 7, 8]]
    rollout = sample_answers(a_model(), prompts, 2, 6, seed=3)
    for row, (prompt, sequence) in enumerate(zip(prompts, answer_sequences(rollout), strict=True)):
        answer = rollout.answers_BA[row][rollout.answer_mask_BA[row]].tolist()
        assert sequence == Sequence(prompt + answer, [IGNORE] * len(prompt) + answer)


def test_rounds_of_expert_iteration_raise_the_score():
    policy, prompts = a_model(vocab_size=7), [[1, 3 + i % 4] for i in range(32)]
    rounds = [expert_round(policy, share_of_a, prompts, 2, 6, replace(FEW, steps=12, batch_size=16, seed=i), 10)
              for i in range(5)]
    assert all(row["best"] >= row["score"] for row in rounds)
    assert rounds[-1]["score"] > rounds[0]["score"] + 0.5


def test_a_rule_reads_the_text_that_the_policy_saw_without_its_control_tokens():
    seen = []
    rule = RuleReward(lambda text: seen.append(text) or len(text), Letters(), a_model(), 16)
    tokens = torch.tensor([[0, 1, 3, 4, 2, 0], [1, 5, 6, 7, 8, 9]])
    mask = torch.tensor([[False, True, True, True, True, False], [True] * 6])
    assert rule(tokens, mask).tolist() == [2.0, 5.0] and seen == ["ab", "cdefg"]


def test_ppo_learns_from_a_rule_as_from_a_reward_model():
    rule = RuleReward(lambda text: text.count("b") - 0.2 * len(text), Letters(), a_model(), 16)
    config = PPOConfig(iterations=24, batch_size=24, max_new_tokens=8, lr=1e-2, value_lr=3e-3,
                       kl_coefficient=0.05, kl_target=0.0, checkpoint_every=0)
    history = train_ppo(a_model(), rule, Letters(), ["a?", "b", "cc"], config, bare, progress=False)
    assert history[-1]["score"] > history[0]["score"] + 0.5


def test_dpos_first_gradient_is_the_papers():
    """At the start both rewards are 0: the gradient is -beta / 2 times that of log pi(chosen) - log pi(rejected)
    (2305.18290, the equation after 7, with sigmoid(0) = 1/2). Adam's first step is lr times its sign."""
    policy, start = a_model(), a_model()
    rows = [[encode_segments(bare(pair.prompt, side), Letters()) for side in pair[1:]] for pair in PAIRS]
    both_P2 = pair_log_probs(start, rows)
    (-0.25 * (both_P2[:, 0] - both_P2[:, 1]).mean()).backward()  # beta 0.5
    train_dpo(policy, PAIRS, Letters(), DPOConfig(batch_size=4, max_lr=1e-3, warmup_steps=0, beta=0.5, clip_norm=1e9),
              bare, progress=False)
    moved = 0
    for ours, theirs in zip(policy.parameters(), start.parameters(), strict=True):
        clear = theirs.grad.abs() > 1e-5  # far above Adam's epsilon of 1e-8, and the rounding of fp32
        torch.testing.assert_close((ours - theirs)[clear], -1e-4 * theirs.grad[clear].sign(), rtol=2e-2, atol=1e-7)
        moved += int(clear.sum())
    assert moved > 500


def test_dpo_raises_the_better_answer_above_the_worse_and_leaves_the_reference_where_it_was():
    policy = a_model()
    config = DPOConfig(epochs=20, batch_size=3, max_lr=3e-3)
    history = train_dpo(policy, PAIRS, Letters(), config, bare, progress=False)
    assert len(history) == 20 and history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert history[0]["accuracy"] == 0.0 and history[-1]["accuracy"] == 1.0 and history[-1]["loss"] < 0.4
    assert train_dpo(a_model(), PAIRS, Letters(), config, bare, progress=False) == history


def test_pairs_that_fill_no_batch_and_settings_of_no_sense_are_named():
    with pytest.raises(ValueError, match="4 pairs do not fill one batch of 16"):
        train_dpo(a_model(), PAIRS, Letters(), DPOConfig(), bare, progress=False)
    with pytest.raises(ValueError, match="beta is 0"):
        DPOConfig(beta=0.0)


class Text(Letters):
    """Letters that can write hindsight's template."""

    alphabet = Letters.alphabet + "\nABDGQ:"
    vocab_size = len(alphabet)

    def decoder(self):
        class Decoder:
            push = staticmethod(lambda i: Text.alphabet[i])
            flush = staticmethod(lambda: "")
        return Decoder()


def test_hindsight_shows_both_answers_under_their_names_and_asks_for_a_good_one():
    assert text_of(hindsight("q", "x", "y")) == "<s>Question: q\n\nGood: x</s>Bad: y</s>"
    assert text_of(hindsight("q", "x", "y", good_first=False)) == "<s>Question: q\n\nBad: y</s>Good: x</s>"
    asked, told = (encode_segments(hindsight("q", *more), Text()).tokens for more in ((), ("x", "y")))
    assert told[:len(asked)] == asked, "what it is asked with is the beginning of what it learned"


def test_hindsight_learns_both_answers_and_their_ends_and_nothing_else():
    pairs = [Pair("q", "ab", "z")] * 40
    made = hindsight_sequences(pairs, Text())
    for sequence in made:
        shown = ["<s>" if i == 1 else "</s>" if i == 2 else Text.alphabet[i] for i in sequence.tokens]
        learned = "".join("." if label == IGNORE else piece
                          for piece, label in zip(shown, sequence.labels, strict=True))
        good, bad = "." * len("Good:") + " ab</s>", "." * len("Bad:") + " z</s>"
        head = "." * (1 + len("Question: q\n\n"))
        assert learned in (head + good + bad, head + bad + good)
        assert all(label in (IGNORE, token) for label, token in zip(sequence.labels, sequence.tokens, strict=True))
    firsts = ["".join(Text.alphabet[i] for i in s.tokens).index("Good") < 16 for s in made]
    assert firsts.count(True) == 20, "half of them in either order"


plant = partial(Mutant, "lessons.other_feedback")
ALL_DRAWS, BOUND = (test_the_best_of_n_policy_is_that_of_all_draws_enumerated,
                    test_the_formula_for_the_kl_of_best_of_n_is_a_bound_and_the_limit_of_many_unlike_texts)
# fmt: off
MUTANTS = [
    plant("upto_L.pow(n) - (", "upto_L.pow(n) - 0 * (", ALL_DRAWS),
    plant("_, level_K = scores_K.unique(return_inverse=True)",
          "_, level_K = (-scores_K).unique(return_inverse=True)", ALL_DRAWS),
    plant("p_K * (best_L / mass_L.clamp(min=1e-300))[level_K]", "best_L[level_K]", ALL_DRAWS),
    plant("(p_K < 0).any()", "(p_K <= 0).any()", ALL_DRAWS),
    plant("mass_L.clamp(min=1e-300)", "mass_L", ALL_DRAWS),
    plant(".where(p_K > 0, 1)", "", BOUND),
    plant("return math.log(n) - (n - 1) / n", "return math.log(n) - (n - 1) / (n + 1)", BOUND),
    plant("xlogy(p_K, p_K / q_K", "xlogy(q_K, p_K / q_K",
          test_kl_is_zero_at_home_and_a_text_never_written_adds_nothing),
    plant("scores_BN.argmax(-1) + n", "scores_BN.argmin(-1) + n",
          test_of_n_answers_the_best_is_kept_and_one_cut_off_has_its_own_score),
    plant("n * torch.arange(B", "torch.arange(B",
                 test_of_n_answers_the_best_is_kept_and_one_cut_off_has_its_own_score),
    plant("[IGNORE] * int(mask[:rollout.prompt_places].sum())", "tokens[:rollout.prompt_places]"
          "[mask[:rollout.prompt_places]].tolist()",
          test_a_sampled_answer_becomes_a_sequence_that_learns_the_answer_alone),
    plant("if i not in control", "", test_a_rule_reads_the_text_that_the_policy_saw_without_its_control_tokens),
    plant("*ours_P2.T, *theirs_P2.T", "*ours_P2.T.flip(0), *theirs_P2.T.flip(0)",
          test_dpos_first_gradient_is_the_papers),
    plant("*theirs_P2.T, config.beta", "*ours_P2.T, config.beta",
          test_dpo_raises_the_better_answer_above_the_worse_and_leaves_the_reference_where_it_was),
    plant("Segment(name), Segment", "Segment(name, learn=True), Segment",
          test_hindsight_learns_both_answers_and_their_ends_and_nothing_else),
    plant('learn=True), EOS]', 'learn=True)]',
          test_hindsight_shows_both_answers_under_their_names_and_asks_for_a_good_one),
    plant("::1 if good_first else -1", "::1",
                 test_hindsight_learns_both_answers_and_their_ends_and_nothing_else),
]
# fmt: on
