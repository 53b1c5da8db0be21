"""Other ways to learn from the same feedback: best of n, expert iteration, a written rule, DPO, chain of hindsight.

| way | learns from | changes the weights | source |
|---|---|---|---|
| best of n (`best_of`) | a score | no: n answers are written, the best is shown | 2009.01325; 2112.09332 |
| expert iteration (`expert_round`) | a score | tunes on its own best answers, again and again | 2307.09288, 3.2.3 |
| rule (`RuleReward`) | a rule in a judge's place | PPO as ever | 2209.14375; GPT-4's RBRMs |
| DPO (`train_dpo`) | pairs | raises the better, lowers the worse answer | 2305.18290 |
| chain of hindsight (`hindsight_sequences`) | pairs | reads both, each under its name | 2302.02676 |

All start from the same fine-tuned model, and `exam.examine` holds all to the same measures; bench/alternatives.py
draws them in one picture. What best of n makes of a policy, and how far it moves it, is also here in closed form.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from minillama.collate import collate
from minillama.config_checks import MOST, check_config, number, seed
from minillama.rlhf.dpo import dpo_loss, sequence_log_probs
from minillama.rlhf.ppo import punish_missing_eos
from minillama.rlhf.rollout import sample_answers
from minillama.system.terminal import tqdm
from minillama.train.data import permutation
from minillama.train.learning_rate import learning_rate
from minillama.train.optimizer import AdamW
from minillama.train.sequence_loss import IGNORE, Sequence, encode_segments
from minillama.train.sft import fine_tune
from minillama.train.templates import BOS, EOS, Segment, question_answer
from minillama.train.training_run import train_step

SIDES = "Good:", "Bad:"  # what chain of hindsight calls the better and the worse


def best_of_n_policy(p_K, scores_K, n):
    """Probabilities of the best of n draws from a distribution over K texts, (K,) fp64.

    The best has at most the score s in F(s)^n of all cases, F the distribution of the scores. Texts of one score share
    what it gets in proportion to p.

    >>> best_of_n_policy(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 1.0, 2.0]), 2)
    tensor([0.2500, 0.3125, 0.4375], dtype=torch.float64)
    """
    p_K = p_K.double()
    if n < 1 or p_K.shape != scores_K.shape or (p_K < 0).any() or abs(p_K.sum().item() - 1) > 1e-6:
        raise ValueError(f"n is {n}, probabilities {tuple(p_K.shape)} sum to {p_K.sum().item():.6f}, scores "
                         f"{tuple(scores_K.shape)}: allowed are n >= 1 and a distribution with one score each")
    _, level_K = scores_K.unique(return_inverse=True)  # sorted
    mass_L = p_K.new_zeros(int(level_K.max()) + 1).index_add(0, level_K, p_K)
    upto_L = mass_L.cumsum(0).clamp(max=1.0)
    best_L = upto_L.pow(n) - (upto_L - mass_L).clamp(min=0.0).pow(n)
    return p_K * (best_L / mass_L.clamp(min=1e-300))[level_K]


def best_of_n_bound(n):
    """log n - (n - 1) / n, nats: the KL from the policy to its best of n (2112.09332, section 3) where no two draws are
    ever alike; where they can be, it is an upper bound (2401.01879)."""
    return math.log(n) - (n - 1) / n


def kl_divergence(p_K, q_K):
    """sum p log(p / q), nats; a text that p never writes adds 0."""
    return torch.special.xlogy(p_K, p_K / q_K.to(p_K.dtype).where(p_K > 0, 1)).sum().item()


def n_answers(policy, score, prompts, eos_id, n, max_new_tokens=40, seed=0, missing_eos_score=-1.0):
    """n sampled answers to each of B prompts (lists of ids) -> (`Rollout` of B n rows, their scores (B, n)).

    score(tokens_BT, mask_BT) -> (rows,): a reward model. An answer that was cut off has `missing_eos_score`.
    """
    if n < 1:
        raise ValueError(f"n is {n}: the best of none is nothing")
    asked = [prompt for prompt in prompts for _ in range(n)]
    rollout = sample_answers(policy, asked, eos_id, max_new_tokens, seed=seed)
    with torch.no_grad():
        scores_N = punish_missing_eos(score(rollout.tokens_BT, rollout.mask_BT), rollout.ended_B, missing_eos_score)
    return rollout, scores_N.view(-1, n)


def best_of(rollout, scores_BN):
    """Of each n answers the one with the highest score, the first of equals: a `Rollout` of B rows."""
    B, n = scores_BN.shape
    return rollout.rows(scores_BN.argmax(-1) + n * torch.arange(B, device=scores_BN.device))


def answer_sequences(rollout):
    """The rows of a rollout as `Sequence`s whose answers are learned, their prompts read."""
    return [Sequence(tokens[mask].tolist(), [IGNORE] * int(mask[:rollout.prompt_places].sum())
                     + tokens[rollout.prompt_places:][mask[rollout.prompt_places:]].tolist())
            for tokens, mask in zip(rollout.tokens_BT, rollout.mask_BT, strict=True)]


def expert_round(policy, score, prompts, eos_id, n, config, max_new_tokens=40):
    """One round of expert iteration (rejection sampling, as Llama 2 calls it): `policy` answers each prompt n times,
    and is tuned in place on the best answers that ended -> {"score", "best"}, the means of all and of the best.

    config: `SftConfig`; its seed also draws the answers, so each round wants another. Again and again the policy
    becomes about its own best of n, and drifts as far as rounds allow: nothing but their number holds it.
    """
    rollout, scores_BN = n_answers(policy, score, prompts, eos_id, n, max_new_tokens, config.seed)
    best = best_of(rollout, scores_BN)
    if not best.ended_B.any():
        raise ValueError(f"none of the {len(best.ended_B)} best answers ended within {max_new_tokens} tokens: tune the "
                         "policy on answers first, or allow more tokens")
    sequences = answer_sequences(best.rows(best.ended_B))
    fine_tune(policy.requires_grad_(), sequences, sequences[:1], config, progress=False)
    return {"score": scores_BN.mean().item(), "best": scores_BN.amax(-1).mean().item()}


class RuleReward(nn.Module):
    """A rule in a reward model's place: rule(text) -> points, of prompt and answer together as the policy saw them.

    body: what PPO's value model starts from, as it would from a reward model's; width D. Nothing here is learned, so
    nothing is fooled by strange texts; but a rule pays for what is written in it and for nothing else.
    """

    def __init__(self, rule, tokenizer, body, dim):
        super().__init__()
        self.rule, self.tokenizer, self.body, self.head = rule, tokenizer, body, nn.Linear(dim, 1, bias=False)

    def forward(self, tokens_BT, mask_BT):
        """Points of each text, (B,) fp32."""
        control = {self.tokenizer.bos_id, self.tokenizer.eos_id}
        texts = [self.tokenizer.decode([i for i in tokens[mask].tolist() if i not in control])
                 for tokens, mask in zip(tokens_BT, mask_BT, strict=True)]
        return torch.tensor([float(self.rule(text)) for text in texts], device=tokens_BT.device)


@dataclass(frozen=True)
class DPOConfig:
    """How DPO trains; the rate suits models of less than a million parameters (the paper's: 1e-6)."""

    epochs: int = number(1, 1, 1000)
    batch_size: int = number(16, 1, MOST)  # pairs of one update
    max_lr: float = number(5e-4, 1e-12, 10)
    warmup_steps: int = number(10, 0, MOST)
    beta: float = number(0.1, 1e-6, 1e6)  # how dear it is to leave the reference
    label_smoothing: float = number(0.0, 0, below=0.5)  # share of pairs believed to be labelled the wrong way round
    clip_norm: float = number(1.0, 1e-9, 1e9)
    seed: int = seed()  # order of the pairs

    def __post_init__(self):
        check_config(self)


def train_dpo(policy, pairs, tokenizer, config=DPOConfig(), template=question_answer, progress=True):
    """Tune `policy` in place on `preferences.Pair`s by `dpo.dpo_loss` -> history, {"step", "loss", "accuracy"} of each
    batch before it was learned; accuracy: share of pairs whose better answer has gained more than the worse.

    The reference is the policy as it is given: its log-probabilities are computed once, so there is no second model.
    """
    rows = [[encode_segments(template(pair.prompt, answer), tokenizer) for answer in (pair.chosen, pair.rejected)]
            for pair in pairs]
    per_epoch = len(rows) // config.batch_size
    if not per_epoch:
        raise ValueError(f"{len(rows)} pairs do not fill one batch of {config.batch_size}: give more, or a smaller "
                         "batch_size")
    policy.eval().requires_grad_()  # eval: no dropout, as for the reference
    with torch.no_grad():
        reference = torch.cat([pair_log_probs(policy, rows[i:i + 64]) for i in range(0, len(rows), 64)])
    steps, history = config.epochs * per_epoch, []
    optimizer = AdamW(policy.parameters(), eps=1e-8, weight_decay=0.0)
    for step in tqdm(range(steps), desc="dpo", unit="step", disable=not progress):
        order = permutation(len(rows), config.seed, step // per_epoch)
        batch = order[step % per_epoch * config.batch_size:][:config.batch_size].tolist()
        optimizer.lr = learning_rate(step, steps, config.max_lr, min(config.warmup_steps, steps - 1))
        ours_P2, theirs_P2 = pair_log_probs(policy, [rows[i] for i in batch]), reference[batch]
        loss = dpo_loss(*ours_P2.T, *theirs_P2.T, config.beta, config.label_smoothing)
        train_step(optimizer, [loss], config.clip_norm)
        gained_P2 = ours_P2.detach() - theirs_P2
        history.append({"step": step, "loss": loss.item(),
                        "accuracy": (gained_P2[:, 0] > gained_P2[:, 1]).double().mean().item()})
    return history


def pair_log_probs(policy, rows):
    """log pi(answer | prompt) of both answers of each row [better, worse] of `Sequence`s, (P, 2)."""
    tokens_BT, labels_BT = (x.to(policy.tok_embeddings.weight.device)
                            for x in collate([sequence for row in rows for sequence in row]))
    return sequence_log_probs(policy(tokens_BT), labels_BT).view(-1, 2)


def hindsight(question, good=None, bad=None, good_first=True):
    """Chain of hindsight's template: the question, and each answer under the name of what people thought of it; both
    are learned. Without answers it ends where a good one is to be written: what the tuned model is asked with.

    (The paper also hides a random part of what was read; short answers do without.)
    """
    segments = [BOS, Segment(f"Question: {question}\n\n")]
    answered = list(zip(SIDES, (good, bad), strict=True))[::1 if good_first else -1]
    if good is None:
        return [*segments, Segment(SIDES[0])]
    for name, answer in answered:
        segments += [Segment(name), Segment(f" {answer}", learn=True), EOS]
    return segments


def hindsight_sequences(pairs, tokenizer, seed=0):
    """Each pair as one `Sequence` to tune on, the better answer first in half of them: an answer that stands second may
    learn from the one before it, one that stands first is written as it will be when the model is asked."""
    coins = permutation(len(pairs), seed, 0) % 2 == 0
    return [encode_segments(hindsight(*pair, good_first), tokenizer)
            for pair, good_first in zip(pairs, coins.tolist(), strict=True)]
