"""The same exam for every way to learn from feedback: what a policy answers, what that is worth, how far it went."""

from dataclasses import dataclass

import torch

from minillama.rlhf.ppo import kl_estimate, punish_missing_eos
from minillama.rlhf.rollout import answer_logits, log_probs_of, sample_answers, with_prompts
from minillama.train.sequence_loss import encode_segments
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


def prompts_of(questions, tokenizer, template=question_answer):
    """The questions in the template, without answers, as lists of ids."""
    return [encode_segments(template(question), tokenizer).tokens for question in questions]
