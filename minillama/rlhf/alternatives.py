"""Best of n in closed form, and DPO's training: what a judge's opinion makes of a policy without PPO.

Best of n as it is sampled, expert iteration, a written rule and chain of hindsight need nothing but PPO's parts and
`sft.fine_tune`: they stand beside lesson 28, in lessons/other_feedback.py, with a table of all ways.
"""

import math
from dataclasses import dataclass

import torch

from minillama.bounds import MOST, check_config, number, seed
from minillama.rlhf.dpo import dpo_loss, sequence_log_probs
from minillama.terminal import tqdm
from minillama.train.data import permutation
from minillama.train.optimizer import AdamW, learning_rate
from minillama.train.sequence_loss import encode_segments, pad_right
from minillama.train.templates import question_answer
from minillama.train.training_run import train_step


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
                            for x in pad_right([sequence for row in rows for sequence in row], 0))
    return sequence_log_probs(policy(tokens_BT), labels_BT).view(-1, 2)
