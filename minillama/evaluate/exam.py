"""The same exam for every way to learn from feedback: what a policy answers, what that is worth, how far it went,
and what a judge who knew the truth would say of labels and scores."""

from dataclasses import dataclass

import torch

from minillama.rlhf.ppo import kl_estimate, punish_missing_eos
from minillama.rlhf.reward_model import pair_accuracy
from minillama.rlhf.rollout import answer_logits, log_probs_of, prompts_of, sample_answers, with_prompts
from minillama.train.templates import question_answer


@dataclass(frozen=True)
class Exam:
    """A policy's answers to questions that were never practised, and means of what they are worth."""

    answers: list  # texts
    score: float  # the reward model's; -1 for an answer that was cut off
    kl: float  # nats an answer, from the starting policy
    distinct: int  # answers unlike all before them
    measured: dict  # {name: mean}, what else was asked about each answer, such as its hidden quality


@torch.no_grad()
def examine(policy, start, score, tokenizer, questions, measures=None, max_new_tokens=40, template=question_answer,
            asked_with=None, seed=1):
    """One sampled answer of `policy` to each question -> an `Exam`.

    start: the policy that all began as. score(tokens_BT, mask_BT) -> (B,). measures: {name: f(question, answer)}.
    template: what `start` and `score` read; asked_with: what `policy` is asked with where that is another (chain of
    hindsight). The KL is estimated from these answers, sum of log pi - log pi_start over the tokens of each.
    """
    given, asked = (prompts_of(questions, tokenizer, form) for form in (template, asked_with or template))
    rollout = sample_answers(policy, asked, tokenizer.eos_id, max_new_tokens, seed=seed)
    log_prob_BA = log_probs_of(answer_logits(policy, rollout), rollout)
    rollout = rollout if given == asked else with_prompts(rollout, given)
    start_BA = log_probs_of(answer_logits(start, rollout), rollout)
    kl_BA = kl_estimate(log_prob_BA, start_BA).masked_fill(~rollout.answer_mask_BA, 0.0)
    score_B = punish_missing_eos(score(rollout.tokens_BT, rollout.mask_BT), rollout.ended_B)
    texts = [text.strip() for text in rollout.texts(tokenizer)]
    return Exam(texts, score_B.mean().item(), kl_BA.sum(-1).mean().item(), len(set(texts)),
                means(measures, questions, texts))


def means(measures, questions, texts):
    """{name: mean of f(question, text)} of each measure."""
    return {name: sum(map(measure, questions, texts)) / len(texts) for name, measure in (measures or {}).items()}


def label_ceiling(pairs, quality):
    """Share of pairs whose label agrees with the hidden `quality(prompt, answer)`, equal quality counting
    one half: what a reward model that knew the truth would score on these noisy labels. One that scores
    more has learned the noise, or was tested on what it had seen."""
    return pair_accuracy(*_qualities(pairs, quality))


def order_in_truth(chosen, rejected, pairs, quality):
    """Share of pairs that scores put in the order of the hidden quality, whatever their labels say; pairs of equal
    quality have no order and are left out. chosen, rejected: the scores of each pair's two answers, (P,)."""
    better, worse = _qualities(pairs, quality)
    labelled_well, unequal = better > worse, better != worse
    high, low = torch.where(labelled_well, chosen, rejected), torch.where(labelled_well, rejected, chosen)
    return pair_accuracy(high[unequal], low[unequal])


def verdict(chosen, rejected, feedback):
    """(expected, got, passed, (label ceiling, accuracy in truth) or ()) for a reward model's scores of unseen pairs."""
    accuracy, n = pair_accuracy(chosen, rejected), len(chosen)
    if feedback.truth is None:
        chance = 0.5 + n**-0.5  # two standard errors of a coin
        return (f"more than a coin and two standard errors ({chance:.3f})", f"{accuracy:.3f} of {n} unseen pairs",
                accuracy > chance, ())
    ceiling = label_ceiling(feedback.held_out, feedback.truth)
    true = order_in_truth(chosen, rejected, feedback.held_out, feedback.truth)
    return (f"0.92 or more of unseen pairs in the order of the truth; of the noisy labels at most 0.03 fewer than a "
            f"judge who knew the truth ({ceiling:.3f})", f"{true:.3f} in truth, {accuracy:.3f} by the labels, of {n}",
            true >= 0.92 and accuracy > ceiling - 0.03, (ceiling, true))


def _qualities(pairs, quality):
    return [torch.tensor([float(quality(pair.prompt, getattr(pair, side))) for pair in pairs])
            for side in ("chosen", "rejected")]
