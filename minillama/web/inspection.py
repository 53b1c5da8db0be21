"""A look inside one step: what each head attended to, and what each layer would have said (the logit lens)."""

import contextlib

import torch
from torch import Tensor

from minillama.attention import attention_weights
from minillama.web.token_facts import LEAST, label

N_TOP = 64  # of the distribution's likeliest tokens, one by one; the others as a histogram
BINS = 32


@torch.inference_mode()
def inspect(model, ids) -> tuple[Tensor, Tensor]:
    """(attention (L, H, S) of the last token of `ids`, lens (L + 1, V)), both fp32, by one pass over the text.

    attention: the weights softmax(q k^T / sqrt(d)) of its query over the keys it sees; S counts virtual tokens too,
    which come first. lens: the final norm and the head on the residual stream as the embedding and as each layer leave
    it (the logit lens); its last row is what the model says. ValueError where `ids` is empty or too long.
    """
    if not ids:
        raise ValueError("nothing to look into: give at least one token")
    tokens_BT = torch.tensor([ids], device=model.tok_embeddings.weight.device)
    weights: list[torch.Tensor] = []
    stream: list[tuple[torch.Tensor, torch.Tensor]] = []
    with contextlib.ExitStack() as undo:
        for block in model.layers:
            undo.callback(setattr, block.attention, "attend", block.attention.attend)
            block.attention.attend = _recorded(block.attention.attend, weights)
            undo.callback(block.register_forward_hook(lambda _, given, made: stream.append((given[0], made))).remove)
        model.hidden_states(tokens_BT)
    streams = [stream[0][0], *(made for _, made in stream)]
    # In the shape in which `generate.prefill` reads the last place, so that the last row is the same bits.
    lens = [model.logits(model.norm(x_BTD)[:, -1:])[0, -1] for x_BTD in streams]
    return torch.stack(weights), torch.stack(lens)


def _recorded(attend, weights):
    def attend_and_keep(q_BHTd, k_BKSd, v_BKSd, causal=True, mask_BTS=None):
        last_mask = None if mask_BTS is None else mask_BTS[:, -1:].expand(-1, 1, -1)
        weights.append(attention_weights(q_BHTd[:, :, -1:], k_BKSd, causal, last_mask)[0, :, 0])
        return attend(q_BHTd, k_BKSd, v_BKSd, causal=causal, mask_BTS=mask_BTS)

    return attend_and_keep


def distribution(tokenizer, logits_V: Tensor, n_top: int = N_TOP) -> dict:
    """The scores of one step as the page filters them: {"top": [[id, text, logit], ...] the likeliest first, "rest":
    [[mean logit, count], ...] of all others in equal steps of logit}; scores are relative to the best one."""
    logits_V = (logits_V.float() - logits_V.max()).clamp(min=LEAST)
    best = logits_V.topk(min(n_top, len(logits_V)))
    top = [[index, label(tokenizer, index), round(value, 4)]
           for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    others = torch.ones_like(logits_V, dtype=torch.bool)
    others[best.indices] = False
    rest = logits_V[others]
    if not len(rest):
        return {"top": top, "rest": []}
    width = ((rest.max() - rest.min()) / BINS).clamp(min=1e-6)
    bin_of = ((rest.max() - rest) / width).long().clamp(max=BINS - 1)
    counts = torch.bincount(bin_of, minlength=BINS)
    sums = torch.zeros(BINS).index_add(0, bin_of.cpu(), rest.cpu())
    return {"top": top, "rest": [[round(float(total / count), 4), int(count)]
                                 for total, count in zip(sums, counts.cpu(), strict=True) if count]}


def inspection(model, tokenizer, ids, said=None, n_top=5, n_likeliest=N_TOP) -> dict:
    """`inspect` in words and numbers for the page: the step behind `ids`, after which `said` (an id or None) came."""
    weights_LHS, lens_LV = inspect(model, ids)
    layers = []
    for layer, log_V in enumerate(lens_LV.log_softmax(-1)):
        best = log_V.topk(min(n_top, len(log_V)))
        layers.append({"layer": layer, "top": [
            {"id": index, "token": label(tokenizer, index), "logprob": max(value, LEAST)}
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)],
            **({} if said is None else {"logprob": max(log_V[said].item(), LEAST),
                                        "rank": 1 + int((log_V > log_V[said]).sum())})})
    return {"heads": model.config.n_heads, "kv_heads": model.config.n_kv_heads,
            "virtual_tokens": weights_LHS.shape[-1] - len(ids), "lens": layers,
            "attention": [[[round(weight, 7) for weight in head] for head in layer] for layer in weights_LHS.tolist()],
            "distribution": distribution(tokenizer, lens_LV[-1], n_likeliest)}
