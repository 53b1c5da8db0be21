"""What a learner asks of its models: answers and their log-probabilities, scores, values. One process asks for all rows
of a batch at once; `sharded_ppo` overrides these few calls, and everything that learners compute from them stays."""

from torch.nn import functional as F

from minillama.backends import backend_of
from minillama.rlhf import ppo
from minillama.rlhf.rollout import answer_logits, log_probs_of, sample_answers
from minillama.rlhf.trust_region import distance
from minillama.train.resume import crc_of, model_facts
from minillama.train.sequence_loss import at_least_fp32


class ModelCalls:
    """The calls of a learner (`train_ppo.PPO`), which brings `policy`, `score`, `value`, `reference` and `config`."""

    def facts(self):
        """What a run depends on in its models."""
        return {**model_facts(self.policy), "reward_kernels": backend_of(self.score),
                "reward_model": crc_of(self.score.state_dict().values())}

    def sample(self, prompts, eos_id, seed):
        """An answer of the policy to each prompt, a list of ids: a `Rollout`."""
        return sample_answers(self.policy, prompts, eos_id, self.config.max_new_tokens, self.config.temperature, seed)

    def scores(self, rollout):
        """What the reward model, or a rule, gives each row, (B,)."""
        return self.score(rollout.tokens_BT, rollout.mask_BT)

    def values(self, rollout):
        """What the value model guesses before each token of the answers, (B, A)."""
        return self.value(rollout)

    def log_probs(self, model, rollout):
        """log p of each token of the answers under a model, (B, A)."""
        return log_probs_of(answer_logits(model, rollout, self.config.temperature), rollout)

    def reference_log_probs(self, rollout):
        """Those under the policy as it was at the start."""
        with self.reference.as_it_began() as policy:
            return self.log_probs(policy, rollout)

    def logits(self, rollout):
        """The policy's scores of the vocabulary, (B, A, V), for `measure`."""
        return answer_logits(self.policy, rollout, self.config.temperature)

    def measure(self, logits_BAV, experience, began_BAV=None):
        """(log p of the answers' tokens, (B, A); the `distance` from the policy that sampled them, whose logits may be
        given, and "entropy": nats a token)."""
        rollout, clip = experience.rollout, self.config.clip
        return log_probs_of(logits_BAV, rollout), {
            **distance(logits_BAV, experience, clip, began_BAV),
            "entropy": ppo.entropy(logits_BAV.detach(), rollout.answer_mask_BA).item()}

    def text_losses(self, tokens_BT, targets_BT):
        """The policy's cross-entropy at each place of a text, (B, T)."""
        return losses_at(self.policy, tokens_BT, targets_BT)

    def agree(self, numbers):
        """{name: number} that decide how a run goes on; of processes that share it all get the same."""
        return numbers


def losses_at(model, tokens_BT, targets_BT):
    """-log p of each target, (B, T), at least fp32."""
    logits_BTV = at_least_fp32(model(tokens_BT))
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none").view_as(targets_BT)
