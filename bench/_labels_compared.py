"""Sequence labelling and extraction by the same ways as classes of texts: `bench tuning`.

Labelling: which kind of word each token of a question with its answer belongs to (TAGS; 0: none of them); a word in
the question and the same word in the answer have different tags. Participants: a question names two objects, and each
object of its answer is the first of them, the second, or a third one (MEANT), so a label hangs on the words to its
left. Extraction: a text begins with what is asked for (ASKED), and the first and the last token of that have to be
found in it.
"""

import random
import statistics
from functools import cache
from pathlib import Path

import _classes_compared as classes_compared
import _methods_compared as compared

SEEDS = (0, 1, 2)
TAGS = ("verb", "condition", "paint", "object", "get", "tool", "verb again", "object again", "spot")
MEANT = ("first", "second", "third")
ASKED = ("tool", "place", "paint")
HEADS = {"labels": len(TAGS) + 1, "participants": len(MEANT) + 1, "spans": 2}  # scores of a token
TEXT = ("How do I ", "verb", " a ", "condition", " ", "paint", " ", "object", "? First ", "get", " a ", "tool",
        ". Then ", "verb again", " the ", "object again", " ", "spot", ".")
OF_TWO = ("How do I ", "verb", " a ", "first", " and a ", "second", "? First ", "get", " the ", "step 1", ". Then ",
          "verb", " the ", "step 2", ". Then ", "verb", " the ", "step 3", " ", "spot", ".")
SLOTS = {"place": "spot"}
UNSEEN = 300


def make_small():
    """One seed and few texts, to see that it runs."""
    globals().update(SEEDS=(0,), UNSEEN=30)


def drawn(rng, *names):
    """{name: word}, drawn from the forum's grammar."""
    from minillama.corpus import forum

    return {name: forum.GRAMMAR.sample(rng, f"{{{name}}}").text for name in names}


def words_of(rng):
    """{place in TEXT: word}"""
    words = drawn(rng, "verb", "condition", "paint", "object", "get", "tool", "spot")
    return words | {"verb again": words["verb"], "object again": words["object"]}


def words_of_two(rng):
    """({place in OF_TWO: word}, {step: which of MEANT its object is})"""
    objects = []
    while len(objects) < len(MEANT):
        [word] = drawn(rng, "object").values()
        objects += [word] * (word not in objects)
    meant = {f"step {n}": rng.choice(MEANT) for n in (1, 2, 3)}
    named = dict(zip(MEANT, objects, strict=True))
    return drawn(rng, "verb", "get", "spot") | named | {step: named[who] for step, who in meant.items()}, meant


def tokens_and_tags(opening, words, tokenizer, parts=TEXT):
    """(tokens, the place in the parts that each token's last letter belongs to, or "") of an opening and a text."""
    text, letters = opening, [""] * len(opening)
    for part in parts:
        text += words.get(part, part)
        letters += [part if part in words else ""] * len(words.get(part, part))
    tokens = tokenizer.encode(text, bos=True)
    ends = [len(tokenizer.decode(tokens[:i + 1])) for i in range(len(tokens))]
    return tokens, [letters[end - 1] if end else "" for end in ends]


def participants(rng, tokenizer):
    """(tokens, tags): which object the last token of each step's object means; its other tokens are not asked for."""
    words, meant = words_of_two(rng)
    tokens, places = tokens_and_tags("", words, tokenizer, OF_TWO)
    tags = []
    for place, following in zip(places, [*places[1:], ""], strict=True):
        is_last = place in meant and following != place
        tags.append(MEANT.index(meant[place]) + 1 if is_last else -100 if place in meant else 0)
    return tokens, tags


@cache
def examples(task, seed, n, tokenizer, split):
    """[(tokens, what is to be told)]: a tag for each token, or the places of the first and the last of a span."""
    rng, rows = random.Random(f"{task} {split} {seed}"), []
    if task == "participants":
        return [participants(rng, tokenizer) for _ in range(n)]
    for i in range(n):
        asked, words = ASKED[i % len(ASKED)], words_of(rng)
        tokens, tags = tokens_and_tags(f"The {asked}? " if task == "spans" else "", words, tokenizer)
        if task == "labels":
            rows.append((tokens, [TAGS.index(tag) + 1 if tag else 0 for tag in tags]))
        else:
            found = [place for place, tag in enumerate(tags) if tag == SLOTS.get(asked, asked)]
            rows.append((tokens, [found[0], found[-1]]))
    return rows


def token_scores(made, rows):
    """(scores of each token, (B, T, heads); how many pads stand before each text, (B,)), texts padded on the left."""
    import torch

    from minillama.collate import pad_rows

    tokens_BT = pad_rows([tokens for tokens, _ in rows], left=True)
    pads_B = torch.tensor([tokens_BT.shape[1] - len(tokens) for tokens, _ in rows])
    return made.head(made.model.hidden_states(tokens_BT, left_pad_B=pads_B).float()), pads_B


def loss_and_share(task, made, rows):
    """(mean loss; share of the tokens with a tag above 0 that get it, or of the texts whose span is found exactly)."""
    import torch
    from torch.nn.functional import cross_entropy

    scores, pads_B = token_scores(made, rows)
    if task != "spans":
        wanted = torch.tensor([[-100] * pads + tags for pads, (_, tags) in zip(pads_B.tolist(), rows, strict=True)])
        right = scores.argmax(-1) == wanted
        return cross_entropy(scores.flatten(0, 1), wanted.flatten()), right[wanted > 0].float().mean().item()
    places = torch.arange(scores.shape[1])
    scores = scores.masked_fill((places < pads_B[:, None])[..., None], -torch.inf).transpose(1, 2)  # (B, 2, T)
    wanted = torch.tensor([span for _, span in rows]) + pads_B[:, None]
    right = (scores.argmax(-1) == wanted).all(1)
    return cross_entropy(scores.flatten(0, 1), wanted.flatten()), right.float().mean().item()


def steps_of(task):
    """Participants are learned for longer: comparing words is learned late."""
    return classes_compared.LONG_CLASS_STEPS if task == "participants" else classes_compared.CLASS_STEPS


def told(task, way, rate, base, tokenizer, seed):
    """A row: what one run tells of unseen texts."""
    import torch

    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step

    steps = steps_of(task)
    made, rng, losses = classes_compared.classifier(way, base, seed, HEADS[task]), random.Random(seed), []
    texts = examples(task, seed, classes_compared.CLASS_TEXTS, tokenizer, "train")
    optimizer = AdamW(made.parameters(), weight_decay=0.0)
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, rate, warmup_steps=min(10, steps - 1))
        loss, _ = loss_and_share(task, made, rng.sample(texts, compared.BATCH))
        losses.append(train_step(optimizer, [loss], 1.0)[0].item())
    with torch.no_grad():
        _, share = loss_and_share(task, made, examples(task, seed, UNSEEN, tokenizer, "held-out"))
    return {"task": task, "seed": seed, "method": way, "rate": rate, "trained": compared.numbers_trained(made),
            "training_loss": statistics.mean(losses[-25:]), "accuracy": share}


def label_runs(out, seeds=None):
    """Rows of all runs of all tasks; rates are chosen as in `race`."""
    tokenizer, rows, seeds = compared.tokenizer_of_all(), [], seeds or SEEDS
    base = compared.base_of(out, tokenizer)
    for task in HEADS:
        found = []
        for way in classes_compared.WAYS:
            for seed in seeds:
                first = seed == seeds[0]
                for rate in compared.RATES if first else [compared.chosen_rate(found, way, seeds[0])]:
                    path = Path(out) / f"{task}-{seed}-{way}-{rate}.json"
                    found += compared.kept(path, told, task, way, rate, base, tokenizer, seed)
                    print(found[-1], flush=True)
        rows += found
    return rows
