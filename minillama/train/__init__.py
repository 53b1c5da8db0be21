"""Training: text files become batches, and batches become a model.

`pretrain` learns from plain text, `sft` from instructions; `training_run` is the loop under both and `resume` lets a
stopped run go on bit for bit. `sequence_loss` is the loss that counts each learned token once, whatever its batch.
Read `pretrain` first.
"""

FLOOR = 4  # imports from its own floor or a lower one
