"""The pictures of the tour's report: each function turns numbers that were measured into one section."""

import math

import torch

from minillama.attention import attention
from minillama.corpus.char_ngram import CharNgram, xz_bits_per_character
from minillama.corpus.forum import quality
from minillama.generate import generate_text
from minillama.plots import CONTEXT, CONTRAST, OURS, bars, heat_maps, learning_curve, svg
from minillama.report import caption, coloured_tokens, quote, section, told
from minillama.sampling import Sampling


def corpus_page(documents, entropy, shared, n_held_out):
    """Two documents of the corpus, with the number of bits that each really holds."""
    story = next(d for d in documents if not d.text.startswith("How do I"))
    post = next(d for d in documents if d.text.startswith("How do I"))
    said = told("corpus", entropy=entropy, documents=len(documents), shared=shared, held_out=n_held_out)
    parts = (part for d in (story, post) for part in (quote("", d.text), caption(f"{d.bits:.1f} bits")))
    return section(said["title"], said["text"], *parts, caption(said["caption"]))


def tokenizer_page(tokenizer, text):
    """A sentence, cut where the tokenizer cuts it."""
    ids = tokenizer.encode(text)
    said = told("tokenizer", vocab_size=tokenizer.vocab_size, characters=len(text), tokens=len(ids))
    pieces = [tokenizer.id_to_piece(i).replace("\u2581", " ") for i in ids]
    return section(said["title"], said["text"], coloured_tokens(pieces), caption(said["caption"]))


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
    said = told("pretrain", values=values, last=values[-1], level=level, steps=steps[-1],
                seconds=sum(row["seconds"] for row in history if "seconds" in row))
    return section(said["title"], said["text"], svg(picture, said["alt"]), caption(said["caption"]))


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
    said = told("attention", back=reach[chosen].tolist())
    return section(said["title"], said["text"],
                   svg(heat_maps("Near-sighted and far-sighted heads", maps, labels), said["alt"]))


def talk_page(answers):
    """Questions and what the model said."""
    mean = sum(quality(question, answer) for question, answer in answers) / len(answers)
    said = told("talk", n=len(answers), mean=mean)
    return section(said["title"], said["text"], *(quote(question, answer) for question, answer in answers[:5]),
                   caption(said["caption"]))


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
    said = told("text", name=name, ours=ours, best=best, level=levels[best], values=values, last=values[-1],
                steps=steps[-1])
    return section(
        said["title"], said["text"],
        svg(bars("The fewer, the better guessed", rows, f"bits per character of unseen text, {name}"), said["claim"]),
        svg(learning_curve(f"It learns {name}", curves, levels[best], f"{best}: {levels[best]:.2f}"), said["alt"]),
        *(quote(given, made) for given, made in samples), caption(said["caption"]))
