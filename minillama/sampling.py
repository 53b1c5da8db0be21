"""Sampling: from scores over the vocabulary to one token. Temperature, top-k, top-p sampling (nucleus), min-p."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillama.config_checks import MOST, check_config, number


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The filters act in this order: penalty, temperature, top-k, top-p, min-p."""

    temperature: float = number(1.0, 1e-6, 1e6, or_zero=True)  # 0: the likeliest token; 1: the model's own distribution
    top_k: int = number(0, 0, MOST)  # keep the k likeliest; 0 keeps all
    top_p: float = number(1.0, 1e-6, 1)  # keep the smallest set of tokens whose probabilities reach p; 1 keeps all
    min_p: float = number(0.0, 0, 1)  # drop tokens below this share of the likeliest one's probability; 0 drops none
    repetition_penalty: float = number(1.0, 1e-3, 1e3)  # above 1 makes tokens already in the text less likely

    def __post_init__(self) -> None:
        check_config(self)


def repetition_penalty(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Positive scores of tokens already seen are divided by `penalty`, negative ones multiplied (arXiv 1909.05858,
    section 4.1, with the sign rule that later implementations added). seen_BV: bool."""
    punished = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, punished, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Everything below the k-th best score becomes -inf; ties with it stay."""
    kth_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < kth_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Nucleus sampling: keep the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751, eq. 2)."""
    sorted_BV, order_BV = logits_BV.sort(descending=True, stable=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV  # mass of the likelier tokens
    dropped_BV = before_BV >= p  # in sorted order: scatter takes each verdict back to its token
    return logits_BV.masked_fill(dropped_BV.scatter(-1, order_BV, dropped_BV), -math.inf)


def keep_min_p(logits_BV: Tensor, share: float) -> Tensor:
    """Keep the tokens whose probability is at least `share` of the likeliest one's (arXiv 2407.01082, section 3)."""
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(share), -math.inf)


def next_token_distribution(logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor | None = None) -> Tensor:
    """The probabilities that `sample` draws from, (B, V) fp32; temperature 0 puts all on the first of the best."""
    logits_BV = logits_BV.float()
    if sampling.repetition_penalty != 1.0:
        if seen_BV is None:
            raise ValueError("repetition_penalty needs seen_BV: which tokens each text holds already")
        logits_BV = repetition_penalty(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter(-1, logits_BV.argmax(-1, keepdim=True), 1.0)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p < 1:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return logits_BV.softmax(-1)


def sample(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator | None = None,
           seen_BV: Tensor | None = None, u_B: Tensor | None = None) -> Tensor:
    """Draw one token per row from `next_token_distribution`: (B,) int64.

    Chance enters by one number u in [0, 1) a row: the token is the first at which the summed probabilities exceed u.
    u_B brings these numbers, in the dtype of the sums (fp64, where the device has it); else `generator` draws them.
    """
    if not logits_BV.amax(-1).isfinite().all():  # NaN, +inf, or a row of nothing but -inf
        raise ValueError(f"the best score of a row is {logits_BV.amax(-1).tolist()}, not a finite number: the weights "
                         "are damaged, the dtype overflowed (try float32), or every token was forbidden")
    probabilities_BV = next_token_distribution(logits_BV, sampling, seen_BV)
    if sampling.temperature == 0:
        return probabilities_BV.argmax(-1)
    if u_B is None:
        u_B = torch.rand(len(logits_BV), generator=generator, device=logits_BV.device,
                         dtype=sum_dtype(logits_BV.device))
    sums_BV = probabilities_BV.to(u_B.dtype).cumsum(-1)
    reached_B1 = u_B[:, None] * sums_BV[:, -1:]  # their sum is 1 but for rounding; u < 1 keeps this below it
    return torch.searchsorted(sums_BV, reached_B1, right=True).squeeze(-1)


def sum_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype in which probabilities are summed: fp64, or fp32 on Apple's GPUs."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def row_chances(prompts: Sequence[Sequence[int]], n: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """The numbers u of n draws for each prompt (a list of ids), (B, n), uniform in [0, 1).

    They depend on the seed, on the prompt, and on how often the same prompt stands before it: not on other prompts,
    nor on n, nor (but for rounding) on the device. So a row draws beside others what it draws alone.
    """
    copies: Counter[str] = Counter()
    rows = []
    for prompt in (str([int(i) for i in prompt]) for prompt in prompts):
        name = hashlib.sha256(f"{seed} {copies[prompt]} {prompt}".encode()).digest()
        rows.append(np.random.PCG64(int.from_bytes(name, "big")).random_raw(n) >> 11)  # 53 bits, as fp64 holds
        copies[prompt] += 1
    u_Bn = torch.tensor(np.array(rows) * 2.0**-53, dtype=sum_dtype(device), device=device)
    return u_Bn.clamp(max=1 - torch.finfo(u_Bn.dtype).eps / 2)  # rounded to fp32 some would be 1
