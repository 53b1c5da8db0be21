"""Telling classes of texts apart with virtual tokens, with every weight, and with a head alone: `bench tuning`.

How an answer of the forum opens, politely, at once or rudely, has to be told at its last token.
"""

import copy
import math
import random
import statistics
from pathlib import Path

from _methods_compared import (
    BATCH,
    DIVERGED,
    RATES,
    SEEDS,
    SIZE,
    base_of,
    chosen_rate,
    kept,
    numbers_trained,
    tokenizer_of_all,
)

CLASS_STEPS, LONG_CLASS_STEPS, CLASS_TEXTS = 80, 300, 1000
WAYS = ("p-tuning-v2", "prompt and head", "full and head", "head alone")  # of telling classes apart
CLASSES = ("polite", "steps", "rude")  # how an answer opens: politely, at once, rudely


def make_small():
    """Two steps, to see that it runs."""
    globals().update(CLASS_STEPS=2, LONG_CLASS_STEPS=2, CLASS_TEXTS=40)


def openings(seed, n, split):
    """[(a question with its answer, number of the class)]: how the answer opens."""
    from minillama.corpus import forum

    rng, rows = random.Random(f"openings {split} {seed}"), []
    for i in range(n):
        question = forum.GRAMMAR.sample(rng, "{question}")
        opening = {"polite": "{polite} ", "steps": "", "rude": "{rude} "}[CLASSES[i % len(CLASSES)]]
        answer = forum.GRAMMAR.sample(rng, opening + "{steps} {closing}", question.chosen)
        rows.append((f"{question.text} {answer.text}", i % len(CLASSES)))
    return rows


def labelled(seed, n, tokenizer, split):
    """`openings` with their tokens in the place of the text."""
    return [(tokenizer.encode(text, bos=True), label) for text, label in openings(seed, n, split)]


def classifier(way, base, seed, classes=None):
    """A copy of the base with a head of classes, and what else the way trains."""
    from minillama.peft.p_tuning_v2 import PrefixClassifier
    from minillama.peft.prompt_tuning import add_prompt
    from minillama.train.resume import own_random_state

    with own_random_state(seed, "cpu"):
        made = PrefixClassifier(copy.deepcopy(base), SIZE, classes or len(CLASSES))
        if way != "p-tuning-v2":
            made.model.virtual_tokens = None
        if way == "prompt and head":
            add_prompt(made.model, SIZE)
    made.model.requires_grad_(way == "full and head")
    if made.model.virtual_tokens is not None:
        made.model.virtual_tokens.requires_grad_()
    return made


def scores_of(made, rows):
    """(scores of the classes, the right ones) of some texts, padded on the left."""
    import torch

    from minillama.collate import pad_rows

    texts, wanted = zip(*rows, strict=True)
    tokens_BT = pad_rows(texts, left=True)
    pads_B = torch.tensor([tokens_BT.shape[1] - len(text) for text in texts])
    return made(tokens_BT, pads_B), torch.tensor(wanted)


def longer(out, seeds=SEEDS):
    """Rows of the two ways with virtual tokens once more, for LONG_CLASS_STEPS; rates are chosen as in `race`."""
    return runs_of(out, "longer", WAYS[:2], seeds, LONG_CLASS_STEPS)


def runs_of(out, name, ways, seeds, steps):
    """Rows of telling classes apart: each way at every one of RATES on the first seed, and on the others at the one
    whose last training losses were least there."""
    tokenizer, rows = tokenizer_of_all(), []
    base = base_of(out, tokenizer)
    for seed in seeds:
        for way in ways:
            for rate in RATES if seed == seeds[0] else [chosen_rate(rows, way, seeds[0])]:
                path = Path(out) / f"{name}-{seed}-{way}-{rate}.json"
                rows += kept(path, classified, way, rate, base, tokenizer, seed, steps)
                print(rows[-1], flush=True)
    return rows


def classified(way, rate, base, tokenizer, seed, steps):
    """A row: the share of unseen texts whose class one run tells."""
    import torch
    from torch.nn.functional import cross_entropy

    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step

    made, texts = classifier(way, base, seed), labelled(seed, CLASS_TEXTS, tokenizer, "train")
    trained, rng, losses = numbers_trained(made), random.Random(seed), []
    optimizer = AdamW(made.parameters(), weight_decay=0.0)
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, rate, warmup_steps=10)
        loss = cross_entropy(*scores_of(made, rng.sample(texts, BATCH)))
        losses.append(train_step(optimizer, [loss], 1.0)[0].item())
    with torch.no_grad():
        scores, wanted = scores_of(made, labelled(seed, 300, tokenizer, "held-out"))
    last = statistics.mean(losses[-25:])
    return {"seed": seed, "method": way, "rate": rate, "trained": trained,
            "training_loss": last if math.isfinite(last) else DIVERGED,
            "accuracy": (scores.argmax(1) == wanted).float().mean().item()}


def understanding(out, seeds=SEEDS):
    """Rows of all ways, for CLASS_STEPS."""
    return runs_of(out, "classes", WAYS, seeds, CLASS_STEPS)
