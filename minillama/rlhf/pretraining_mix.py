"""Pretraining text beside practice, so that it does not cost the model its other abilities (PPO-ptx)."""

from torch.nn import functional as F

from minillama.train.data import Batches
from minillama.train.sequence_loss import at_least_fp32

PRETRAINING_ROWS, PRETRAINING_LENGTH = 8, 128  # of text beside each update


def check_mixing(config, text):
    """ValueError where a weight for pretraining text stands without a text, or the other way round."""
    if (text is None) != (config.pretraining_weight == 0):
        raise ValueError(f"pretraining_weight is {config.pretraining_weight} {'without' if text is None else 'with'} "
                         "a text to mix in: give both or neither")


def pretraining_loss(policy, tokens, config):
    """other_loss(number of the update) for `PPO.advance`, or None where the weight is 0: the weighted mean
    cross-entropy of a batch of pretraining text, so that practice does not cost the model its other abilities (PPO-ptx,
    arXiv 2203.02155 eq. 2). Which batch depends on the seed and the number alone: a resumed run goes on bit for bit."""
    check_mixing(config, tokens)
    if tokens is None:
        return None
    if tokens.vocab_size != policy.config.vocab_size:
        raise ValueError(f"the pretraining text has a vocabulary of {tokens.vocab_size} pieces, the policy one of "
                         f"{policy.config.vocab_size}: encode it with the policy's tokenizer")
    batches = Batches(tokens, PRETRAINING_ROWS, min(PRETRAINING_LENGTH, policy.config.max_seq_len), config.seed)

    def other_loss(number):
        tokens_BT, targets_BT = (ids.to(policy.tok_embeddings.weight.device) for ids in batches(number))
        logits_BTV = at_least_fp32(policy(tokens_BT))
        return config.pretraining_weight * F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    return other_loss
