"""How one checkpoint differs from another of the same model: the settings, then tensor by tensor."""

from collections import defaultdict
from dataclasses import dataclass, field, fields

import torch

from minillama.checkpoint.names import LAYER_NAMES
from minillama.parity.tensor_diff import Fit, explain, factor_words, fit, leftovers, list_some, span

HEAD, TABLE = "output.weight", "tok_embeddings.weight"
MATRICES = {f"{name}.weight" for name in LAYER_NAMES if "." in name}  # the norms of two layers may well be equal
LEAST = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")  # types whose blocks store their least number beside a scale
SAMPLES, SUSPECTS = 512, 4  # numbers by which a tensor is recognised elsewhere, and how many are then compared in full
HARMLESS = ("max_seq_len", "tie_embeddings")  # the first changes no logits; where the second does, the head tells it


@dataclass
class Difference:
    """`found`: {what is wrong: names of what it is wrong with}; harmless: but for rounding both hold one model."""

    found: dict = field(default_factory=lambda: defaultdict(list))
    harmless: bool = True

    def add(self, name, words, harmless=False):
        """One mistake more."""
        self.found[words].append(name)
        self.harmless = self.harmless and harmless

    def __str__(self):
        if not self.found:
            return "settings and tensors: equal"
        return "\n".join(f"{list_some(names, 4)}: {words}" for words, names in self.found.items())


def compare_checkpoints(here, there):
    """The `Difference` of two `Weights`. Two tensors are in memory at a time, and what is made of them."""
    result, both_tied = Difference(), here.config.tie_embeddings and there.config.tie_embeddings
    ours, theirs = (weights.tensors if both_tied else _tensors(weights) for weights in (here, there))
    for name in (item.name for item in fields(there.config)):
        mine, other = getattr(here.config, name), getattr(there.config, name)
        if mine != other:
            result.add(name, f"{mine} here, {other} there", name in HARMLESS)
    for side, weights in (("here", here), ("there", there)):
        for note in weights.notes:
            result.add(side, note, True)
    sources, suspects = {}, _Suspects(theirs)
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if name in ours and name in theirs:
            _compare(name, ours[name], theirs[name], suspects, there.config, result, sources)
        else:
            result.add(name, f"only {'here' if name in ours else 'there'}")
    _name_swaps(sources, result)
    return result


def _tensors(weights):
    """The tensors by name; a head that is tied is the table under another name."""
    tied = {HEAD: weights.tensors[TABLE]} if weights.config.tie_embeddings else {}
    return tied | weights.tensors


def _compare(name, ours, theirs, suspects, config, result, sources):
    here, there = ours.read().float(), theirs.read().float()
    if here.shape != there.shape:
        if here.dim() != 2 or here.shape[1] != there.shape[1]:
            result.add(name, f"shape {list(here.shape)} here, {list(there.shape)} there")
            return
        here, there, words = _same_rows(here, there)
        result.add(name, words)
    if torch.equal(here, there):
        return
    if grain := find_rounding(there, here):
        result.add(name, f"differs by rounding to {grain} alone", True)
        return
    blocks = [tensor.block for tensor in (ours, theirs) if tensor.block and tensor.block.numbers > 1]
    if blocks and (found := fit_quantization(there, here, blocks)):
        wrong = [factor_words(found.factor, config)] if found.factor != 1 else []
        wrong += [leftovers(found, there, here)] if found.left else []
        said = f"differs by quantization to {found.grain}"
        result.add(name, "; ".join([said, *wrong]) if wrong else f"{said} alone", not wrong)
        return
    source, said, grain = explain(name, here, there, lambda: suspects.of(name, here), config)
    words = said + ([f"rounded to {grain}"] if grain else [])
    if source != name:
        sources[name] = source, words, not said
    else:
        alone = f"differs by rounding to {grain or 'fp32'} alone"
        result.add(name, "; ".join(words) if said else alone, not said)


def find_rounding(there, here):
    """The dtype to which one of the two is the other rounded, weight for weight, or ""."""
    def cut(x):
        return (x.contiguous().view(torch.int32) & -65536).view(torch.float32)

    ways = (("fp16", lambda x: x.half().float()), ("bf16", lambda x: x.bfloat16().float()),
            ("bf16", lambda x: x.half().bfloat16().float()), ("bf16 (bits cut off)", cut))
    return next((name for name, way in ways if torch.equal(way(there), here) or torch.equal(way(here), there)), "")


def fit_quantization(there, here, blocks):
    """The `Fit` of a tensor of which the sides hold what GGUF's types `blocks` made of one matrix; None where they
    differ by more. A type of b bits has 2^b - 1 steps for the range of a block's numbers. A number is off by half a
    step, and by up to two where the scale is rounded, or chosen for the least error of all numbers of its part."""
    step = torch.zeros_like(there)
    for block in blocks:
        if there.numel() % block.numbers:
            return None
        x = there.reshape(-1, block.numbers)
        span = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0) if block.name in LEAST else 2 * x.abs().amax(1)
        step += (span / (2 ** int(block.name[1]) - 1)).repeat_interleave(block.numbers).view_as(there)
    factor = 1.0
    for _ in range(2):  # as it is, then scaled; the least error shrinks numbers too, but by no more than its square
        off = here - factor * there
        mask = ~(off.abs() <= 2 * step)
        off = off.where(~mask, 0)
        error, further = off.norm() / there.norm(), ((off * there).sum() / there.square().sum()).item()
        factor += further if abs(further) > 2 * error ** 2 + 1e-3 else 0
    found = Fit(factor, " and ".join(block.name for block in blocks), mask)
    return found if off.norm() <= 0.5 * step.norm() and found.left <= there.numel() // 200 else None


def _same_rows(here, there):
    """Both without the rows that one of them has more, at the end or, where the rest agrees better so, in front."""
    n, more = min(len(here), len(there)), abs(len(here) - len(there))
    ends = (here[:n], there[:n]), (here[-n:], there[-n:])
    left = [fit(b, a).left for a, b in ends]
    first = left[1] < left[0]
    longer, side = (here, "here") if len(here) > n else (there, "there")
    extra = longer[:more] if first else longer[n:]
    words = f"{span('row', *((0, more) if first else (n, n + more)))} only {side}{'' if extra.any() else ', all zeros'}"
    return *ends[first], words


class _Suspects:
    """Whose numbers a tensor may hold: those of like samples or like size, the likest first."""

    def __init__(self, tensors):
        self.tensors, self.samples = tensors, {}

    def of(self, name, here):
        if not self.samples:
            self.samples = {other: self._sample(tensor.read().float()) for other, tensor in self.tensors.items()}
        mine, size = self._sample(here)
        likeness = {other: abs((mine @ sample).item()) for other, (sample, length) in self.samples.items()
                    if other != name and self.tensors[other].shape in (here.shape, here.shape[::-1])
                    and len(sample) == len(mine) and (abs(mine @ sample) > 0.5 or abs(length / size - 1) < 0.01)}
        for other in sorted(likeness, key=likeness.get, reverse=True)[:SUSPECTS]:
            yield other, self.tensors[other].read().float()

    def _sample(self, tensor):
        places = torch.linspace(0, tensor.numel() - 1, min(SAMPLES, tensor.numel())).long()
        sample = tensor.flatten()[places].nan_to_num(0, 0, 0)
        sample = sample - sample.median()
        return sample / sample.norm().clamp(min=1e-30), tensor.norm().clamp(min=1e-30)


def _name_swaps(sources, result):
    """Whole layers first; then two tensors that hold each other's numbers in one line, and the rest one by one."""
    layers = defaultdict(set)
    for name, (source, *_) in sources.items():
        (layer, part), (other, same) = _in_layer(name), _in_layer(source)
        if part == same:
            layers[layer, other].add(part)
    whole = {pair for pair, parts in layers.items() if parts >= MATRICES}
    alone = {name: found for name, found in sources.items()
             if not found[2] or (_in_layer(name)[0], _in_layer(found[0])[0]) not in whole}
    sources = {layer: (other, [], True) for layer, other in sorted(whole)} | alone
    for name, (source, said, _) in sources.items():
        mutual = sources.get(source, ("", []))[:2] == (name, said)
        if not mutual or name < source:
            result.add(name, "; ".join([f"{'is swapped with' if mutual else 'holds'} {source}", *said]))


def _in_layer(name):
    """'layers.3.ffn_norm.weight' -> ('layers.3', 'ffn_norm.weight'); a tensor outside the layers is its own part."""
    parts = name.split(".", 2)
    return (".".join(parts[:2]), parts[2]) if parts[0] == "layers" else ("", name)
