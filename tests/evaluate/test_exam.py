"""Laws of the exam: the KL is that of the answers given, whatever the policy was asked with."""

import torch
from letters import Letters, bare
from mutants import Mutant
from test_train_ppo import a_model

from minillama.evaluate.exam import examine
from minillama.rlhf.rollout import prompts_of, sample_answers, with_prompts

QUESTIONS = ["a?", "what is b?", "c", "a?"]


def length(tokens_BT, mask_BT):
    return mask_BT.sum(-1).float()


def shouted(question, answer=None):
    return bare(question + " good ", answer)


def sat(policy, start=None, **options):
    return examine(policy, start or a_model(), length, Letters(), QUESTIONS, {"letters": lambda q, a: len(q + a)}, 6,
                   bare, **options)


def test_the_start_is_at_no_distance_from_itself_and_others_are():
    home = sat(a_model())
    assert home.kl == 0.0 and len(home.answers) == 4 and home.distinct == len(set(home.answers))
    assert home.measured["letters"] == sum(len(q + a) for q, a in zip(QUESTIONS, home.answers, strict=True)) / 4
    assert sat(a_model(seed=3)).kl != 0.0 and sat(a_model()) == home


def log_p(model, prompt, answer):
    """Sum of log p over the answer, token by token."""
    total, ids = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            total += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


def test_asked_otherwise_the_kl_is_between_the_answers_under_each_ones_own_prompt():
    policy, start = a_model(seed=2), a_model()
    exam = sat(policy, start, asked_with=shouted)
    asked, given = (prompts_of(QUESTIONS, Letters(), form) for form in (shouted, bare))
    rollout = sample_answers(policy, asked, 2, 6, seed=1)
    wanted, scores = [], []
    for row, (own, theirs) in enumerate(zip(asked, given, strict=True)):
        answer = rollout.answers_BA[row][rollout.answer_mask_BA[row]].tolist()
        wanted.append(log_p(policy, own, answer) - log_p(start, theirs, answer))
        scores.append(len(theirs) + len(answer) if rollout.ended_B[row] else -1.0)
    assert abs(exam.kl - sum(wanted) / 4) < 1e-4
    assert exam.score == sum(scores) / 4, "the judge reads the question as everybody asks it"


def test_the_same_answers_stand_behind_other_prompts():
    rollout = sample_answers(a_model(), [[1, 3], [1, 4, 5]], 2, 6)
    other = with_prompts(rollout, [[1, 9, 9, 9], [1]])
    assert torch.equal(other.answers_BA, rollout.answers_BA) and torch.equal(other.ended_B, rollout.ended_B)
    assert torch.equal(other.answer_mask_BA, rollout.answer_mask_BA)
    P = other.prompt_places
    assert [row[:P][mask[:P]].tolist() for row, mask in zip(other.tokens_BT, other.mask_BT, strict=True)] == [
        [1, 9, 9, 9], [1]]


MUTANTS = [
    Mutant("minillama.evaluate.exam", "rollout if given == asked else with_prompts(rollout, given)", "rollout",
           test_asked_otherwise_the_kl_is_between_the_answers_under_each_ones_own_prompt),
    Mutant("minillama.evaluate.exam", "kl_estimate(log_prob_BA, start_BA)", "kl_estimate(start_BA, log_prob_BA)",
           test_asked_otherwise_the_kl_is_between_the_answers_under_each_ones_own_prompt),
    Mutant("minillama.rlhf.rollout", "return _rollout([list(prompt) for prompt in prompts], rollout.answers_BA",
           "return _rollout([[*prompt, 0] for prompt in prompts], rollout.answers_BA",
           test_the_same_answers_stand_behind_other_prompts),
]
