"""Training: token files and batches, the optimizer, pretraining, and the losses of fine-tuning."""
