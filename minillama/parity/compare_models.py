"""Parity: does this program compute what another does with the same weights, and if not, where do they part?

A ladder of values is taken on both sides, from the embeddings to greedy text, and compared rung by rung. The first
rung that fails bounds the mistake; how it fails (at which positions, in which rows) usually names it.
"""

from dataclasses import dataclass, field

import torch

from minillama.checkpoint.names import rows_to_meta
from minillama.generate import generate_tokens
from minillama.rope import apply_rope, half_split_order, rope_frequencies, rope_rotations

TOLERANCE = 1e-4  # of a rung's largest value (above 1): right fp32 programs differ by under a tenth of it
POSITIONS, NEW_TOKENS = 64, 32  # RoPE's classic mistakes hardly show before position 20
CAUSES = {
    "embeddings": "the embedding's rows: shards joined along the wrong axis, or another vocabulary",
    "first norm": "norm_eps, or its place (inside the root), or the norm's weights",
    "q after RoPE": "wq, or RoPE's settings", "k after RoPE": "wk, or RoPE's settings",
    "first block": "wv, wo or the feed-forward: w1 and w3 swapped, or shards joined along the wrong axis",
    "last block": "a later layer's weights, or their order",
    "logits": "the final norm, or the output head (tied or not)",
    "greedy tokens": "the KV cache: positions of later tokens"}


@dataclass(frozen=True)
class Rung:
    """One comparison: the largest difference found and the largest allowed."""

    name: str
    error: float
    allowed: float
    detail: str = ""

    @property
    def passed(self):
        """NaN never passes."""
        return self.error <= self.allowed


@dataclass
class Parity:
    """The whole ladder. `cause` says what usually makes the first failing rung fail so; difference: what two
    checkpoints differ in (`checkpoint_diff.Difference`), None for other peers. Where that is rounding alone, the rungs
    only show how far it carries."""

    rungs: list = field(default_factory=list)
    cause: str = ""
    difference: object = None

    @property
    def rounding(self):
        """The two sides hold one model, of which one is rounded."""
        return self.difference is not None and self.difference.harmless and bool(self.difference.found)

    @property
    def passed(self):
        named = self.difference is not None and not self.difference.harmless
        return not named and all(rung.passed or self.rounding for rung in self.rungs)

    def __str__(self):
        lines = [str(self.difference)] if self.difference else []
        lines.append(f"{'rung':<16}{'largest error':>15}{'allowed':>11}")
        for rung in self.rungs:
            verdict = "ok" if rung.passed else "rounding" if self.rounding else "FAILS"
            lines.append(f"{rung.name:<16}{rung.error:>15.2e}{rung.allowed:>11.1e}  {verdict}  {rung.detail}".rstrip())
        return "\n".join([*lines, *([f"usual cause: {self.cause}"] if self.cause and not self.rounding else [])])


def parity_tokens(vocab_size, max_seq_len):
    """Fixed ids, spread over the vocabulary, as many as there is room for: (1, T)."""
    length = max(1, min(POSITIONS, max_seq_len - NEW_TOKENS))
    return (torch.arange(length)[None] * 7919 + 1) % vocab_size


@torch.no_grad()
def ladder(model, tokens):
    """{rung: values} of our own model: (1, T, ...); q, k as (1, T, heads, d) in half-split order; greedy ids (N,)."""
    hidden = []
    hooks = [block.register_forward_hook(lambda _, __, out: hidden.append(out)) for block in model.layers]
    try:
        logits = model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    config, block = model.config, model.layers[0]
    embeddings = model.tok_embeddings(tokens)
    norm, order = block.attention_norm(embeddings), half_split_order(config.head_dim)
    rotations = rope_rotations(torch.arange(tokens.shape[1]), model.frequencies)
    values = {"embeddings": embeddings, "first norm": norm}
    for name, projection in (("q after RoPE", block.attention.wq), ("k after RoPE", block.attention.wk)):
        heads = projection(norm).unflatten(-1, (-1, config.head_dim))
        values[name] = apply_rope(heads, rotations)[..., order]
    steps = min(NEW_TOKENS, config.max_seq_len - tokens.shape[1])
    greedy = [row[0] for row in generate_tokens(model, tokens.tolist(), steps)]
    return {**values, "first block": hidden[0], "last block": hidden[-1], "logits": logits,
            "greedy tokens": torch.tensor(greedy)}


def compare(ours, theirs, config):
    """The `Parity` of two ladders; rungs that one side lacks are left out."""
    result = Parity()
    for name in CAUSES:
        if name in ours and name in theirs:
            result.rungs.append(_rung(name, ours[name].float(), theirs[name].float()))
            if not result.rungs[-1].passed and not result.cause:
                result.cause = _cause(name, ours, theirs, config)
    return result


def _rung(name, ours, theirs):
    if ours.shape != theirs.shape:
        return Rung(name, float("inf"), 0.0, f"shapes {list(ours.shape)} and {list(theirs.shape)}")
    if name == "greedy tokens":
        differ = (ours != theirs).sum().item()
        return Rung(name, float(differ), 0.0, f"{len(ours) - differ} of {len(ours)} equal")
    error = (ours - theirs).abs().max().item()
    detail = ""
    if name == "logits":
        same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        detail = f"same best token at {same:.0%} of {ours.shape[1]} positions"
    return Rung(name, error, TOLERANCE * max(1.0, theirs.abs().max().item()), detail)


def _cause(name, ours, theirs, config):
    if ours[name].shape != theirs[name].shape:
        return "the settings: the two sides do not even have the same shapes"
    if name in ("q after RoPE", "k after RoPE"):
        return _rope_cause(name[0], ours[name].double(), theirs[name].double(), config)
    if name == "first norm":
        return _norm_cause(ours, theirs)
    if name == "embeddings" and (ours[name] - theirs[name]).norm() < 0.1 * theirs[name].norm():
        return "rounding: one side holds the weights in a lower precision (quantized, or half)"
    return CAUSES[name]


def _norm_cause(ours, theirs):
    """Where the ratio of the two results does not depend on the column, only the factor in front differs: eps."""
    ratio = (ours["first norm"] / theirs["first norm"]).double().nan_to_num(1.0)
    if (ratio - ratio.median(-1, keepdim=True).values).abs().max() < 1e-3:
        return "norm_eps: every vector is scaled as a whole (1e-6 in LLaMA 1, 1e-5 since)"
    return CAUSES["first norm"]


def _rope_cause(letter, ours, theirs, config):
    """ours, theirs: (1, T, heads, d) half-split. At position 0 RoPE turns nothing, so what differs there is weights."""
    heads, near = ours.shape[2], TOLERANCE * theirs.abs().max().item()
    first, wanted = ours[0, 0], theirs[0, 0]
    if (first - wanted).abs().max() > near:
        grouped = letter == "k" and heads < config.n_heads
        if grouped and (_read_with_n_heads(wanted, config) - first).abs().max() <= near:
            return (f"the rows of wk were permuted with n_heads {config.n_heads} where there are {heads} key/value "
                    "heads")
        if _same_numbers(first, wanted, near):
            return (f"the rows of w{letter} are in the other order inside each head: they were not permuted between "
                    "Meta's and Hugging Face's RoPE layout, or were so twice")
        return f"the numbers of w{letter} themselves: another checkpoint, or shards joined along the wrong axis"
    angles = _angles(ours, theirs)
    wrong = (angles.abs() > 1e-3).flatten(1).any(-1).nonzero()
    place = wrong[0].item() if len(wrong) else 0
    if place > 1:
        return f"the RoPE table is too short: right up to position {place - 1}, wrong from {place} on"
    return _frequency_cause(angles, config)


def _read_with_n_heads(wanted, config):
    """What becomes of k (heads, d) when its rows are brought from Hugging Face's order with n_heads."""
    rows = rows_to_meta("attention.wk", wanted.flatten(), config.n_heads, config.n_heads)
    return rows.view(wanted.shape)[:, half_split_order(wanted.shape[1])]


def _same_numbers(left, right, near):
    return bool(((left.sort(-1).values - right.sort(-1).values).abs() <= near).all())


def _angles(ours, theirs):
    """How far each pair of ours is turned beyond theirs: (T, heads, d/2) radians, in (-pi, pi]."""
    def pairs(x):
        return torch.complex(*x[0].chunk(2, dim=-1))

    return (pairs(ours) * pairs(theirs).conj()).angle()


def _frequency_cause(angles, config):
    """theta changes all pairs but the first, each a little more than the one before; scaling leaves the fast pairs
    alone. Slow pairs are looked at late in the text, where they have turned far enough to measure."""
    mine = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling).double()
    places = (0.05 / mine).long().clamp(1, len(angles) - 1)
    extra = angles.median(1).values[places, torch.arange(len(mine))] / places  # radians per position, by pair
    ratio = (mine - extra).clamp(min=1e-12) / mine  # theirs / ours
    if len(ratio) > 1 and (ratio[1] - 1).abs() < 0.01:
        return ("RoPE scaling: only the slow pairs differ (Llama 3.1 and later: rope_scaling or use_scaled_rope is "
                "missing, or its factor is another: 8 in 3.1, 32 in 3.2)")
    i = len(ratio) // 2  # ratio_i = (theta' / theta)^(-2i / d)
    theta = config.rope_theta * ratio[i].item() ** (-config.head_dim / (2 * i)) if i else config.rope_theta
    return f"rope_theta: ours is {config.rope_theta:g}, the other side turns as with about {theta:.3g}"
