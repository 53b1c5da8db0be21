"""Parameter-efficient fine-tuning: the base stays frozen, a few new parameters learn."""
