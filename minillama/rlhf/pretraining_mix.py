"""Pretraining text beside practice, so that it does not cost the model its other abilities (PPO-ptx)."""

from minillama.train.data import Batches

PRETRAINING_ROWS, PRETRAINING_LENGTH = 8, 128  # of text beside each update


def check_mixing(config, text):
    """ValueError where a weight for pretraining text stands without a text, or the other way round."""
    if (text is None) != (config.pretraining_weight == 0):
        raise ValueError(f"pretraining_weight is {config.pretraining_weight} {'without' if text is None else 'with'} "
                         "a text to mix in: give both or neither")


def pretraining_loss(learner, tokens):
    """other_loss(number of the update) for `advance` of a `PPO`, or None where its weight is 0: the weighted mean
    cross-entropy of a batch of pretraining text, so that practice does not cost the model its other abilities (PPO-ptx,
    arXiv 2203.02155 eq. 2). Which batch depends on the seed and the number alone: a resumed run goes on bit for bit."""
    policy, config = learner.policy, learner.config
    check_mixing(config, tokens)
    if tokens is None:
        return None
    if tokens.vocab_size != policy.config.vocab_size:
        raise ValueError(f"the pretraining text has a vocabulary of {tokens.vocab_size} pieces, the policy one of "
                         f"{policy.config.vocab_size}: encode it with the policy's tokenizer")
    batches = Batches(tokens, PRETRAINING_ROWS, min(PRETRAINING_LENGTH, policy.config.max_seq_len), config.seed)

    def other_loss(number):
        batch = (ids.to(policy.tok_embeddings.weight.device) for ids in batches(number))
        return config.pretraining_weight * learner.text_losses(*batch).mean()

    return other_loss
