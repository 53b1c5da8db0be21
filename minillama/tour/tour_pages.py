"""The pictures of the tour's report: each function turns numbers that were measured into one section."""

import math
from statistics import fmean

import torch

from minillama.attention import attention
from minillama.corpus.char_ngram import CharNgram, xz_bits_per_character
from minillama.corpus.forum import quality
from minillama.generate import generate_text
from minillama.plots import (
    CONTEXT,
    CONTRAST,
    OURS,
    bars,
    column_of_panels,
    figure,
    heat_maps,
    label_end,
    learning_curve,
)
from minillama.quant.nf4 import BLOCK, NF4_LEVELS, quantize_nf4
from minillama.sampling import Sampling
from minillama.tour.report import caption, coloured_tokens, page, quote

BINS = 40  # of the scores of a reward model


def corpus_page(documents, entropy, shared, n_held_out):
    """Two documents of the corpus, with the number of bits that each really holds."""
    story = next(d for d in documents if not d.text.startswith("How do I"))
    post = next(d for d in documents if d.text.startswith("How do I"))
    parts = []
    for document in (story, post):
        parts += [quote("", document.text), caption(f"{document.bits:.1f} bits")]
    return page("corpus", *parts, entropy=entropy, documents=len(documents), shared=shared, held_out=n_held_out)


def tokenizer_page(tokenizer, text):
    """A sentence, cut where the tokenizer cuts it."""
    ids = tokenizer.encode(text)
    pieces = [tokenizer.id_to_piece(i).replace("\u2581", " ") for i in ids]
    return page("tokenizer", coloured_tokens(pieces), vocab_size=tokenizer.vocab_size, characters=len(text),
                tokens=len(ids))


def curve(history, tokens):
    """(steps, bits per character) of the held-out evaluations of a training run."""
    scale = len(tokens) / tokens.characters / math.log(2)
    points = [(row["step"], row["held_out_loss"] * scale) for row in history if "held_out_loss" in row]
    return tuple(zip(*points, strict=True))


def pretrain_page(history, tokens, documents, entropy):
    """The fall of the loss towards the entropy."""
    steps, values = curve(history, tokens)
    level = entropy * len(documents) / tokens.characters
    picture = learning_curve("Pretraining falls towards the entropy of the corpus",
                             {"held-out": (steps, values, OURS)}, level, "entropy: no model can be below", log=True)
    return page("pretrain", picture, values=values, last=values[-1], level=level, steps=steps[-1],
                seconds=sum(row["seconds"] for row in history if "seconds" in row))


def attention_maps(model, ids):
    """What every head of every layer looks at, (L, H, T, T).

    A row of weights is what attention makes of values that are unit vectors, so that is what it is given.
    """
    maps, layers = [], [block.attention for block in model.layers]

    def recording(q_BHTd, k_BKSd, v_BKSd, **options):
        unit = torch.eye(k_BKSd.shape[2]).expand(*k_BKSd.shape[:3], -1)
        maps.append(attention(q_BHTd, k_BKSd, unit, **options)[0])
        return attention(q_BHTd, k_BKSd, v_BKSd, **options)

    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = recording
        with torch.inference_mode():
            model(torch.tensor([ids]))
    finally:
        for layer, attend in zip(layers, before, strict=True):
            layer.attend = attend
    return torch.stack(maps)


def attention_page(model, tokenizer, text, shown=26):
    """Three heads that do different things: the nearest-sighted, a middling one, and the farthest-sighted."""
    ids = tokenizer.encode(text, bos=True)[:shown]
    maps_LHTT = attention_maps(model, ids)
    T, H = len(ids), maps_LHTT.shape[1]
    back = torch.arange(T)[:, None] - torch.arange(T)  # how many tokens back a place lies
    reach = (maps_LHTT * back).sum(-1).mean(-1).flatten()
    order = reach.argsort().tolist()
    chosen = [order[0], order[len(order) // 2], order[-1]]
    maps = {f"layer {i // H}, head {i % H}: {reach[i]:.1f} back": maps_LHTT[i // H, i % H].numpy() for i in chosen}
    labels = [tokenizer.id_to_piece(i).replace("\u2581", "_") for i in ids]
    return page("attention", heat_maps("Near-sighted and far-sighted heads", maps, labels), back=reach[chosen].tolist())


def talk_page(answers):
    """Questions and what the model said."""
    mean = sum(quality(question, answer) for question, answer in answers) / len(answers)
    return page("talk", *(quote(question, answer) for question, answer in answers[:5]), n=len(answers), mean=mean)


def text_levels(split):
    """What simpler means need on the held-out text, in bits per character."""
    train, held_out = ("\n".join(documents) for documents in split)
    levels = {context(n): CharNgram(n + 1).fit(train).bits_per_character(held_out) for n in (2, 3, 5)}
    return levels | {"xz -9, having read the rest": xz_bits_per_character(held_out, train),
                     "xz -9 alone": xz_bits_per_character(held_out)}


def context(n):
    """The name of a character model that looks n characters back (a Markov chain of order n)."""
    return f"{n} characters of context"


def continuations(model, tokenizer, documents, n=3):
    """The openings of unseen documents and what the model makes of them: [(given, made)]."""
    openings = [" ".join(text.split()[:6]) for text in documents if len(text.split()) > 12][:n]
    sampling = Sampling(temperature=0.7, top_p=0.95)
    return [(text, "".join(generate_text(model, tokenizer, text, 60, sampling, seed=i)))
            for i, text in enumerate(openings)]


def text_page(name, history, tokens, levels, ours, samples):
    """Real text: the model beside a compressor and models that count letters, and what it writes."""
    steps, values = curve(history, tokens)
    rows = [("minillama", ours, OURS)] + [(level, value, CONTRAST if "context" in level else CONTEXT)
                                          for level, value in levels.items()]
    best = min(levels, key=levels.get)
    curves = {"minillama": (steps, values, OURS)}
    levels_picture = bars("The fewer, the better guessed", rows, f"bits per character of unseen text, {name}")
    curve_picture = learning_curve(f"It learns {name}", curves, levels[best], f"{best}: {levels[best]:.2f}")
    return page("text", (levels_picture, "claim"), curve_picture, *(quote(given, made) for given, made in samples),
                name=name, ours=ours, best=best, level=levels[best], values=values, last=values[-1], steps=steps[-1])


def tuning_page(histories, lessons, quantized_before):
    """The held-out losses of full tuning, LoRA and QLoRA, in bits per answer, above the entropy."""
    curves = {}
    for (name, history), colour in zip(histories.items(), (CONTEXT, OURS, CONTRAST), strict=True):
        points = [(row["step"], lessons.bits_of(row["held_out_loss"])) for row in history if "held_out_loss" in row]
        curves[name] = (*zip(*points, strict=True), colour)
    ends = {name: values[-1] for name, (_, values, _) in curves.items()}
    starts = {name: values[0] for name, (_, values, _) in curves.items()}
    words = ", ".join(f"{name} {bits:.2f}" for name, bits in ends.items())
    return page("tuning", tuning_picture(curves, lessons.bits), starts=starts, ends=words, bits=lessons.bits,
                quantized=quantized_before)


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
        stored.append(quantize_nf4(flat).dequantize() / absmax)
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
    return page("nf4", picture, block=BLOCK, error=error, n=len(scaled))


def before_after_page(rows):
    """[(question, (text, ended) before, (text, ended) after)]: the same questions before and after tuning."""
    def said(answer):
        text, ended = answer
        return f" {text}" + ("" if ended else " ...")

    parts = []
    for question, before, after in rows[:4]:
        parts += [quote(f"before: {question}", said(before)), quote(f"after: {question}", said(after))]
    return page("tuned", *parts)


def reward_page(chosen, rejected, accuracy, ceiling=None, true=None):
    """Scores of the better and of the worse answers of held-out pairs; beside the ceiling of noisy labels and the
    accuracy in truth, where there is a truth."""
    low, high = min(chosen + rejected), max(chosen + rejected)
    edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    picture, axes = figure("The reward model tells better from worse", "score, in standard deviations", "answers")
    for name, scores, colour, side in (("rejected", rejected, CONTRAST, "left"), ("chosen", chosen, OURS, "right")):
        axes.hist(scores, edges, color=colour, alpha=0.55)
        axes.annotate(name, (0.02 if side == "left" else 0.98, 0.92), xycoords="axes fraction", color=colour, ha=side)
    return page("reward", picture, more="" if ceiling is None else "noise", accuracy=accuracy, n=len(chosen),
                chosen=fmean(chosen), rejected=fmean(rejected), ceiling=ceiling or 0.0, true=true or 0.0)


def ppo_page(history):
    """Score and KL over the iterations, one above the other."""
    picture, (top, bottom) = column_of_panels("PPO raises the score and pays in KL", ("score", "KL, nats an answer"))
    steps = [row["iteration"] for row in history]
    line(top, steps, [row["score"] for row in history], "reward model", OURS)
    line(bottom, steps, [row["kl"] for row in history], "from the start", OURS)
    first, last = history[0], history[-1]
    return page("ppo", picture, first=first, last=last, n=len(history), odds=math.exp(last["kl"]))


def hacking_page(penalized, free, after, gamed):
    """What the reward model sees, and beside it the truth, with the KL penalty and without."""
    measures = {"score": "reward model's score", "quality": "hidden quality", "sound": "share of sound answers"}
    picture, panels = column_of_panels("Without the KL penalty the score rises and the text decays", measures.values())
    for name, history, colour in (("with KL penalty", penalized, OURS), ("without", free, CONTRAST)):
        for axes, measure in zip(panels, measures, strict=True):
            line(axes, [row["iteration"] for row in history], [row[measure] for row in history], name, colour)
    return page("hacking", picture, after=after, gamed=gamed, good=after.measured, bad=gamed.measured,
                n=len(after.answers))


def answers_page(questions, exams, shown=3):
    """The same questions, answered by each of {name: Exam}."""
    blocks = []
    for i, question in enumerate(questions[:shown]):
        blocks += [caption(question), *(quote(f"{name}: ", exam.answers[i]) for name, exam in exams.items())]
    known = [f"{exam.measured['quality']:+.2f} ({name})" for name, exam in exams.items() if "quality" in exam.measured]
    scores = ", ".join(f"{exam.score:+.2f} ({name})" for name, exam in exams.items())
    return page("answers", *blocks, more="quality" if known else "score", n=len(questions), known=", ".join(known),
                scores=scores)


def line(axes, xs, ys, name, colour):
    """A curve with its name at its end."""
    axes.plot(xs, ys, color=colour)
    label_end(axes, xs, ys, name, colour)
    axes.set_xlim(right=max(xs) * 1.22 + 1)
