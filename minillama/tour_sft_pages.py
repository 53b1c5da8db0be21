"""The pictures of the tour's fine-tuning: three falling losses, sixteen levels, answers before and after."""

import torch

from minillama.plots import CONTEXT, CONTRAST, OURS, figure, label_end, svg
from minillama.quant.nf4 import BLOCK, NF4_LEVELS, dequantize_nf4, quantize_nf4
from minillama.report import caption, quote, section, told


def tuning_page(histories, lessons, quantized_before):
    """The held-out losses of full tuning, LoRA and QLoRA, in bits per answer, above the entropy."""
    curves = {}
    for (name, history), colour in zip(histories.items(), (CONTEXT, OURS, CONTRAST), strict=True):
        points = [(row["step"], lessons.bits_of(row["held_out_loss"])) for row in history if "held_out_loss" in row]
        curves[name] = (*zip(*points, strict=True), colour)
    ends = {name: values[-1] for name, (_, values, _) in curves.items()}
    starts = {name: values[0] for name, (_, values, _) in curves.items()}
    words = ", ".join(f"{name} {bits:.2f}" for name, bits in ends.items())
    said = told("tuning", starts=starts, ends=words, bits=lessons.bits, quantized=quantized_before)
    return section(said["title"], said["text"], svg(tuning_picture(curves, lessons.bits), said["alt"]),
                   caption(said["caption"]))


def tuning_picture(curves, entropy):
    """What each needs beyond the entropy, on a log axis: near the floor the differences are small."""
    picture, axes = figure("Three ways down to the entropy of the answers", "training step", "bits above the entropy")
    ends = sorted(curves, key=lambda name: curves[name][1][-1])
    for name, (steps, values, colour) in curves.items():
        above = [max(value - entropy, 1e-3) for value in values]
        axes.plot(steps, above, color=colour)
        label_end(axes, steps, above, name, colour, dy=14 * ends.index(name) - 1)  # names of near ends stay apart
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low < tick < high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(right=axes.get_xlim()[1] * 1.15)
    return picture


def scaled_weights(model):
    """Every weight that QLoRA quantizes, divided by the largest magnitude of its block of 64: (n,) fp32, and what NF4
    makes of them."""
    weights = [p.detach() for name, p in model.named_parameters()
               if ".attention.w" in name or ".feed_forward.w" in name]
    scaled, stored = [], []
    for weight in weights:
        flat = weight.flatten().float()
        flat = flat[:len(flat) // BLOCK * BLOCK]
        absmax = flat.view(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK).clamp(min=1e-38)
        scaled.append(flat / absmax)
        stored.append(dequantize_nf4(quantize_nf4(flat)) / absmax)
    return torch.cat(scaled), torch.cat(stored)


def nf4_page(model):
    """The density of the weights, and the sixteen levels where they are stored."""
    scaled, stored = scaled_weights(model)
    error = float((stored - scaled).norm() / scaled.norm())
    picture, axes = figure("The levels stand where the weights are", "weight / largest of its block", "density")
    axes.hist(scaled.numpy(), bins=121, range=(-1, 1), density=True, color=OURS, alpha=0.45)
    top = axes.get_ylim()[1]
    axes.vlines(NF4_LEVELS, 0, -0.09 * top, color=CONTRAST)
    axes.annotate("16 levels", (NF4_LEVELS[-1], -0.045 * top), xytext=(6, 0), textcoords="offset points",
                  color=CONTRAST, va="center")
    axes.set_ylim(bottom=-0.1 * top)
    said = told("nf4", block=BLOCK, error=error, n=len(scaled))
    return section(said["title"], said["text"], svg(picture, said["alt"]))


def before_after_page(rows):
    """[(question, (text, ended) before, (text, ended) after)]: the same questions before and after tuning."""
    def said(answer):
        text, ended = answer
        return f" {text}" + ("" if ended else " ...")

    parts = []
    for question, before, after in rows[:4]:
        parts += [quote(f"before: {question}", said(before)), quote(f"after: {question}", said(after))]
    said = told("tuned")
    return section(said["title"], said["text"], *parts)
