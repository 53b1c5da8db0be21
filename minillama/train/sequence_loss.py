"""What a sequence teaches: the loss mask (which of its tokens are learned), and the loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minillama.backends import backend_of
from minillama.collate import IGNORE
from minillama.config_checks import Words, check

REDUCTIONS = Words(("tokens", "sum"))
HEAD_BYTES = 2**24  # of logits at once under a frozen head; the system hands out larger memory anew each time, zeroed


def at_least_fp32(x):
    """x in fp32, or as it is in fp64: losses are sums of many small terms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Sequence:
    """tokens and, of equal length, labels: the token itself where it is learned, -100 elsewhere.
    Labels stand at their own token's place; the loss does the shift by one."""

    tokens: list
    labels: list

    def __post_init__(self):
        if len(self.tokens) != len(self.labels):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.labels)} labels: one each")


def encode_segments(segments, tokenizer):
    """Tokens and labels of a list of segments (`templates.Segment`), a `Sequence`.

    All text between two control tokens is encoded in one call, so the model sees it cut as any text is cut; encoding
    the segments one by one would cut at their seams, and give LLaMA's tokenizer a leading space at each. Which token
    belongs to which segment follows from the characters the tokens decode to, one after another. A token is learned if
    it holds a learned character; so every character of an answer is learned, even where a tokenizer melts its first
    into the prompt's last. ValueError for an unknown control token, or text the tokenizer cannot give back.
    """
    tokens, labels = [], []
    for stretch in _stretches(segments):
        if stretch[0].control:
            ids, learned = [control_id(stretch[0].text, tokenizer)], [stretch[0].learn]
        else:
            text = "".join(segment.text for segment in stretch)
            behind = {"continues": True} if tokens and hasattr(tokenizer, "puts_space") else {}
            ids = tokenizer.encode(text, **behind)
            flags = [segment.learn for segment in stretch for _ in segment.text]
            spans = token_spans(ids, text, tokenizer, bool(tokens))
            learned = [any(flags[start:end]) for start, end in spans]
        tokens += ids
        labels += [token if learn else IGNORE for token, learn in zip(ids, learned, strict=True)]
    return Sequence(tokens, labels)


def left_aligned(tokens_BT, mask_BT):
    """Rows whose real tokens (mask_BT, bool, each row one unbroken run) begin at place 0, (B, longest row), and what
    each moved by, (B,). Such rows need no mask: causality hides the padding behind them, and none of it takes a
    position."""
    if mask_BT.dtype != torch.bool or mask_BT.dim() != 2:
        raise TypeError(f"the mask is {mask_BT.dtype} of shape {tuple(mask_BT.shape)}: expected bool, (B, T)")
    first_B = mask_BT.int().argmax(-1)
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(-1).int().argmax(-1)
    if not (mask_BT.sum(-1) == last_B - first_B + 1).all():
        raise ValueError("a row of the mask is empty or has a hole: its real tokens must stand side by side")
    places_BT = first_B[:, None] + torch.arange(int(mask_BT.sum(-1).max()), device=tokens_BT.device)
    return tokens_BT.gather(1, places_BT.clamp(max=tokens_BT.shape[1] - 1)), first_B


def _stretches(segments):
    """Segments grouped into what one call encodes: a control token, a segment that stands alone, or a run of text."""
    groups, joinable = [], False
    for segment in segments:
        if not segment.text:
            continue
        single = segment.control or segment.alone
        if joinable and not single:
            groups[-1].append(segment)
        else:
            groups.append([segment])
        joinable = not single
    return groups


def control_id(name, tokenizer):
    """Id of a control token: "<s>" and "</s>" are the tokenizer's begin and end, others its `special_tokens`."""
    ends = {"<s>": tokenizer.bos_id, "</s>": tokenizer.eos_id}
    known = {**getattr(tokenizer, "special_tokens", {}), **{k: v for k, v in ends.items() if v is not None}}
    if name not in known:
        raise ValueError(f"this tokenizer has no control token {name!r}: choose among {sorted(known)}")
    return known[name]


def token_spans(ids, text, tokenizer, continues=False):
    """[(start, end), ...]: the characters of `text` that each token holds, found by decoding token after token.

    A token that holds only some bytes of a character spans that character. Spans tile the text but for these.
    """
    space = {"space_in_front": tokenizer.puts_space(text, continues)} if hasattr(tokenizer, "puts_space") else {}
    decoder, spans, start = tokenizer.decoder(**space), [], 0
    pieces = [decoder.push(token) for token in ids]
    pieces[-1:] = [pieces[-1] + decoder.flush()] if pieces else []
    # SentencePiece writes spaces as U+2581, and gives a space back for one that stood in the text.
    if "".join(pieces).replace("\u2581", " ") != text.replace("\u2581", " "):
        raise ValueError(f"the tokenizer gives {''.join(pieces)[:60]!r} back for {text[:60]!r}: "
                         "characters it does not know, or rewrites, cannot be assigned to tokens. Use a "
                         "tokenizer with byte fallback and no normalising")
    for piece in pieces:
        spans.append((start, start + max(len(piece), 1)))
        start += len(piece)
    return spans


def sequence_loss(logits_BTV, labels_BT, reduction="tokens", document_ids_BT=None):
    """Cross entropy of the next token over learned tokens, in at least fp32: logits t score label t + 1.

    reduction: "tokens", the mean over all learned tokens of the batch; "sum", to be divided by `learned_tokens` of all
    micro-batches when gradients are accumulated: a mean of means would give tokens of short batches more weight.
    document_ids_BT: for packed rows; the first token of a document is not predicted from the document before it.
    """
    if logits_BTV.shape[:2] != labels_BT.shape:
        raise ValueError(f"logits have shape {tuple(logits_BTV.shape)}, labels {tuple(labels_BT.shape)}: "
                         "expected (B, T, V) and (B, T), with labels at their own token's place")
    targets_BT = next_targets(labels_BT, document_ids_BT)
    return _reduce(learned_losses(logits_BTV, targets_BT)[0], reduction)


def model_loss(model, tokens_BT, labels_BT, reduction="tokens", document_ids_BT=None):
    """`sequence_loss` of the model's own logits, which are made only where they predict a learned token. Packed rows
    (document_ids_BT) do not see one another."""
    targets_BT = next_targets(labels_BT, document_ids_BT)
    learned_BT = targets_BT != IGNORE
    targets_N, logits_at_BT = targets_BT[learned_BT], F.pad(learned_BT, (0, 1))
    if _has_fused_loss(model):
        hidden_ND = model.hidden_states(tokens_BT, document_ids_BT=document_ids_BT)[logits_at_BT]
        return _fused_loss(hidden_ND, model.output.weight, targets_N, reduction)
    if torch.is_grad_enabled() and _has_large_frozen_head(model, len(targets_N)):
        hidden_ND = model.hidden_states(tokens_BT, document_ids_BT=document_ids_BT)[logits_at_BT]
        losses_N = _frozen_head_losses(hidden_ND, model.output.weight, targets_N)
    else:
        logits_NV = model(tokens_BT, document_ids_BT=document_ids_BT, logits_at_BT=logits_at_BT)
        losses_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    return _reduce(losses_N, reduction)


def next_token_loss(model, tokens_BT, targets_BT):
    """Mean cross entropy of the model's logits for targets_BT (B, T) int64, in at least fp32."""
    targets_N = targets_BT.flatten()
    if not _has_fused_loss(model):
        return F.cross_entropy(model(tokens_BT).flatten(0, 1), targets_N)
    return _fused_loss(model.hidden_states(tokens_BT).flatten(0, 1), model.output.weight, targets_N, "tokens")


def _has_fused_loss(model):
    """Whether the kernel for CPUs computes a loss with its gradient: under a plain head, not shared by processes."""
    head = getattr(model, "output", None)
    plain = type(head) is torch.nn.Linear and type(head.weight) is torch.nn.Parameter
    return torch.is_grad_enabled() and plain and backend_of(model) == "cpu"


def _fused_loss(hidden_ND, weight_VD, targets_N, reduction):
    """`_reduce` of the losses under a head, by that kernel."""
    ones_N = torch.ones(len(targets_N), requires_grad=True)
    (factors_N,) = torch.autograd.grad(_reduce(ones_N, reduction), ones_N)  # it is linear in losses
    return torch.ops.minillama.head_loss(hidden_ND, weight_VD, targets_N, factors_N)[0]


def _has_large_frozen_head(model, n):
    """Whether logits of n places are more than HEAD_BYTES, from a plain head that gets no gradient itself."""
    head = getattr(model, "output", None)
    return type(head) is torch.nn.Linear and not head.weight.requires_grad and 4 * n * head.out_features > HEAD_BYTES


def _frozen_head_losses(hidden_ND, weight_VD, targets_N):
    """-log softmax(h W^T)[target] of each row, (N,), at least fp32, for a frozen head W.

    Some rows at a time, HEAD_BYTES of logits, which the backward pass makes once more: all (N, V) of them, the largest
    tensor of a step, never are in memory.
    """
    def losses(hidden, targets):
        return -at_least_fp32(hidden @ weight_VD.T).log_softmax(-1).gather(1, targets)[:, 0]

    rows = max(1, HEAD_BYTES // (4 * len(weight_VD)))
    pieces = zip(hidden_ND.split(rows), targets_N[:, None].split(rows), strict=True)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def _reduce(losses_N, reduction):
    """One number of the losses of the learned tokens."""
    check("reduction", reduction, str, REDUCTIONS)
    if reduction == "tokens" and not len(losses_N):
        raise ValueError("no token of this batch is learned (answers cut off?): the mean would be 0/0")
    return losses_N.mean() if reduction == "tokens" else losses_N.sum()


def next_targets(labels_BT, document_ids_BT=None):
    """Labels moved one place to the left, (B, T - 1); -100 where the next token starts another document."""
    targets_BT = labels_BT[:, 1:]
    if document_ids_BT is None:
        return targets_BT
    return targets_BT.masked_fill(document_ids_BT[:, 1:] != document_ids_BT[:, :-1], IGNORE)


def learned_losses(logits_BTV, targets_BT):
    """-log p of each learned target, (N,), and the row it stands in, (N,). Only the N learned logits are
    touched: less memory, and nothing computed from the others can leak in."""
    learned_BT = targets_BT != IGNORE
    logits_NV = at_least_fp32(logits_BTV[:, :-1][learned_BT])
    return F.cross_entropy(logits_NV, targets_BT[learned_BT], reduction="none"), learned_BT.nonzero()[:, 0]


def learned_tokens(labels_BT, document_ids_BT=None):
    """How many tokens `sequence_loss` averages over."""
    return int((next_targets(labels_BT, document_ids_BT) != IGNORE).sum())
