"""Llama 2-Chat's road (arXiv 2307.09288, section 3): two reward models joined by a rule, the best of several answers
learned before PPO, and a system instruction that lasts over turns (ghost attention)."""

import torch
from torch import nn

from minillama.config_checks import Range, check
from minillama.rlhf.ppo import punish_missing_eos, whiten
from minillama.rlhf.rollout import sample_answers
from minillama.train.sequence_loss import at_least_fp32

SAFE_ENOUGH = 0.15  # probability: below it an answer is judged by its safety alone (section 3.2.4)


def joined_score(helpful_B, safe_B, marked_B, threshold=SAFE_ENOUGH):
    """The score of each answer, (B,), at least fp32 (section 3.2.4):

        R_c = R_s  where the prompt is marked as one of safety, or sigmoid(R_s) < threshold
        R_c = R_h  elsewhere

    helpful_B, safe_B: scores before a sigmoid, so that the paper's logit of R_c is R_c itself here. safe_B has to be
    the logit of being safe: 0 where one cannot tell (`logit_level`).
    """
    check("threshold", threshold, float, Range(0, 1))
    helpful_B, safe_B = at_least_fp32(helpful_B), at_least_fp32(safe_B)
    return torch.where(marked_B | (safe_B.sigmoid() < threshold), safe_B, helpful_B)


def logit_level(chosen_N, rejected_N):
    """The score that is neither safe nor unsafe, halfway between those of the safe and of the unsafe sides of pairs. A
    loss of pairs leaves the level of scores open, and normalising puts it at the policy's mean answer, where 0.15 would
    be a rank and no probability; the paper fixes it by a loss on safe and unsafe texts (section 3.2.2)."""
    return ((at_least_fp32(chosen_N).mean() + at_least_fp32(rejected_N).mean()) / 2).item()


class JoinedReward(nn.Module):
    """Two `RewardModel`s as one: `joined_score` of a batch, whitened. What asks for its body (`value_model_of`) gets
    the helpful one's.

    marked: prompts of safety, lists of ids; an answer belongs to one if its tokens begin with it. level: the safe one's
    `logit_level`, in units of its own scores.
    """

    def __init__(self, helpful, safe, marked=(), threshold=SAFE_ENOUGH, level=0.0):
        super().__init__()
        self.helpful, self.safe, self.threshold = helpful, safe, threshold
        self.marked = {tuple(prompt) for prompt in marked}
        # Buffers, so that a run's signature knows them: it is not gone on with under another level or other marks.
        self.register_buffer("level", torch.tensor(float(level)))
        self.register_buffer("marks", torch.tensor([n for ids in sorted(self.marked) for n in (len(ids), *ids)]).long())
        self.lengths = sorted({len(prompt) for prompt in self.marked})

    @property
    def body(self):
        return self.helpful.body

    @property
    def head(self):
        return self.helpful.head

    def joined(self, tokens_BT, mask_BT):
        """(B,) before whitening: what two answers are compared by."""
        helpful_B, safe_B = (model(tokens_BT, mask_BT) for model in (self.helpful, self.safe))
        safe_B = (safe_B - self.level) * self.safe.deviation  # as it was learned, before `normalise`
        marked = [self.is_marked(row[real].tolist()) for row, real in zip(tokens_BT, mask_BT, strict=True)]
        return joined_score(helpful_B, safe_B, torch.tensor(marked, device=safe_B.device), self.threshold)

    def is_marked(self, ids):
        return any(tuple(ids[:length]) in self.marked for length in self.lengths)

    def forward(self, tokens_BT, mask_BT):
        """What PPO is paid, (B,): whitened, so that the KL penalty weighs the same whichever of the two judged."""
        return whiten(self.joined(tokens_BT, mask_BT), mask_BT.any(-1))


@torch.no_grad()
def best_answers(policy, score, prompts, eos_id, answers, max_new_tokens, temperature=1.0, seed=0):
    """Rejection sampling (section 3.2.3): of so many sampled answers to each prompt the one that score(tokens, mask)
    ranks highest -> (the `Rollout` of the best, their scores). One that was cut off counts -1."""
    check("answers", answers, int, Range(1))
    asked = [prompt for prompt in prompts for _ in range(answers)]
    rollout = sample_answers(policy, asked, eos_id, max_new_tokens, temperature, seed)
    score_B = punish_missing_eos(score(rollout.tokens_BT, rollout.mask_BT), rollout.ended_B)
    best_P = score_B.view(-1, answers).argmax(-1) + torch.arange(len(prompts), device=score_B.device) * answers
    return rollout.rows(best_P), score_B[best_P]


def told_each_time(instruction, messages):
    """The conversation with the instruction before each message of the user's: what the answers of ghost attention are
    sampled with (section 3.3). messages: [{"role": ..., "content": ...}], without a system message."""
    return [dict(message, content=f"{instruction}\n{message['content']}") if message["role"] == "user" else message
            for message in messages]


def told_once(instruction, messages):
    """The same conversation with the instruction as its system message alone: what is learned."""
    return [{"role": "system", "content": instruction}, *messages]
