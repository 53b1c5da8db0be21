"""Learning from feedback: preferences, a reward model, PPO, GRPO, RLOO and DPO.

`train_reward` turns pairs of answers into a reward model; `train_ppo` improves a policy by it: `rollout` samples
answers, `experience` and `gae` judge each token, `ppo` is the loss, and `best_policy` keeps the policy that did best.
`grpo` needs no value model, `dpo` no reward model. Read `train_ppo` first.
"""

FLOOR = 5  # imports from its own floor or a lower one
