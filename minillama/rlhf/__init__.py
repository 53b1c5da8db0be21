"""Learning from feedback: reward model, advantages, PPO and DPO."""
