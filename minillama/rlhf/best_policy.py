"""The best policy that a run has had: a run that collapses in the end still leaves a good one."""

import math

import torch

from minillama.evaluate.diagnosis import describe

EVERY, ANSWERS = 5, 64  # iterations between two exams; the least number of answers to each


class BestPolicy:
    """A copy of what a policy learns, from when it scored highest in an exam of questions that it does not practise.

    ppo: the run (`train_ppo.PPO`); prompts: the exam's, lists of ids, a few of them asked several times; without any
    the last policy is the best. A score counts up to a KL of twice the target: beyond, a reward model judges what it
    never saw, and a high score may be a cheat (arXiv 2210.10760). The first policy examined is kept in any case.
    """

    def __init__(self, ppo, prompts, end_id):
        self.ppo, self.prompts, self.end_id = ppo, prompts * -(-ANSWERS // max(len(prompts), 1)), end_id
        penalized = ppo.config.kl_coefficient and ppo.config.kl_target
        self.limit = 2 * ppo.config.kl_target if penalized else math.inf
        self.learned = [p for p in ppo.policy.parameters() if p.requires_grad]
        self.weights = [p.detach().clone() for p in self.learned]
        self.numbers = torch.zeros(2)  # its score, after how many iterations

    def check_policy(self):
        """Now and then, and at the end, the score and KL of the policy as it is, kept if it is the best so far ->
        metrics, "kept": after how many iterations the best was."""
        iteration, config = self.ppo.iteration, self.ppo.config
        if not self.prompts or iteration % EVERY and iteration != config.iterations:
            return {}
        rollout = self.ppo.sample(self.prompts, self.end_id, config.seed)  # the same random numbers every time
        found = self.ppo.agree(describe(self.ppo.make_experience(rollout)))
        self.keep_if_best(iteration, found["score"], found["kl"])
        return {"held_out_score": found["score"], "held_out_kl": found["kl"], "kept": int(self.numbers[1])}

    def keep_if_best(self, iteration, score, kl):
        """Keep the policy as it is now if it is the first, the best so far within the limit, or wanted for being the
        last."""
        keeps_last = self.ppo.config.keep == "last"
        if iteration == 0 or keeps_last or kl <= self.limit and score > self.numbers[0]:
            self.numbers = torch.tensor([score, float(iteration)])
            self.weights = [p.detach().clone() for p in self.learned]

    @torch.no_grad()
    def put_back(self):
        """Make the policy what it was at its best."""
        for parameter, kept in zip(self.learned, self.weights, strict=True):
            if self.prompts:
                parameter.copy_(kept)

    def state_dict(self):
        return {"weights": self.weights, "numbers": self.numbers}

    def load_state_dict(self, state):
        self.weights, self.numbers = state["weights"], state["numbers"]
