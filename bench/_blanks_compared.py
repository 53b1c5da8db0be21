"""A blank in the middle of a question, asked of two models of one shape: `bench cloze`.

Both have read the same stories for the same steps: one from left to right, one by blank infilling. "Mia has a{blank}
kite. she is sad. Mia took the red kite to the park.": what is missing stands behind the blank, and the left context
alone tells nothing. A head of classes learns from the same labelled texts as the cloze question that is tuned.
"""

import copy
import random
import statistics
from pathlib import Path

import _methods_compared as compared

RULES = {"hero | she": ["Lily | she", "Anna | she", "Mia | she", "Tom | he"],
         "colour": ["red", "blue", "green", "white"], "mood": [("happy", 3), "sad"],
         "toy": ["ball", "kite", "drum", "boat"], "place": ["park", "wood", "river"]}
STORY = "{hero} has a {colour} {toy}. {she} is {mood}. {hero} took the {colour} {toy} to the {place}."
PATTERN, WORDS = "Mia has a{blank} kite. {text}", (" red", " blue", " green", " white")
SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 96}
BASES = ("causal", "blank")
SEEDS, STEPS, ROWS, TUNE_STEPS, BATCH, LABELLED, UNSEEN = (0, 1, 2), 500, 24, 40, 8, 30, 100
RATE = 2e-3  # of all that is tuned


def make_small():
    """Two steps of everything, to see that it runs."""
    globals().update(STEPS=2, TUNE_STEPS=2, BATCH=4, LABELLED=6, UNSEEN=6, SEEDS=(0,))


def stories():
    from minillama.corpus.grammar import Grammar

    return Grammar(RULES, STORY)


def tokenizer_of_stories():
    """A piece for each word, and the five tokens of blank infilling."""
    from minillama.tokenizer import train_bpe
    from minillama.train.blank_infilling import prepare_tokenizer

    draws, grammar = random.Random(0), stories()
    return prepare_tokenizer("blank", train_bpe([grammar.sample(draws).text for _ in range(500)], 370))


def base_of(objective, seed, out, tokenizer):
    """A model that has read stories; made once and kept in `out`."""
    import torch
    from torch.nn.functional import cross_entropy

    from minillama.attention import torch_attention
    from minillama.collate import IGNORE, pad_rows
    from minillama.config import ModelConfig
    from minillama.train.blank_infilling import Corruption, blank_losses
    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step
    from minillama.transformer import Transformer

    path = Path(out) / f"stories-{STEPS}-{objective}-{seed}.pt"
    torch.manual_seed(seed)
    config = ModelConfig(**SHAPE, vocab_size=tokenizer.vocab_size, objective=objective)
    model, draws, grammar = Transformer(config, torch_attention), random.Random(seed), stories()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    optimizer, corrupt = AdamW(model.parameters()), Corruption(tokenizer, ("spans",))
    for step in range(STEPS):
        optimizer.lr = learning_rate(step, STEPS, 6e-3, warmup_steps=min(30, STEPS - 1))
        ids = [tokenizer.encode(grammar.sample(draws).text, bos=True, eos=True) for _ in range(ROWS)]
        if objective == "blank":
            loss = blank_losses(model, [corrupt(row, (seed, step, n)) for n, row in enumerate(ids)], config).mean()
        else:
            inputs_BT, targets_BT = pad_rows([row[:-1] for row in ids]), pad_rows([row[1:] for row in ids], IGNORE)
            loss = cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        train_step(optimizer, [loss], 1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def asked(seed, n, split):
    """[(what stands behind the blank and the toy, the number of the colour that is missing), ...] of Mia's kites."""
    rng, rows, grammar = random.Random(f"blanks {split} {seed}"), [], stories()
    while len(rows) < n:
        first, _, rest = grammar.sample(rng).text.partition(" kite. ")
        if rest and first.startswith("Mia has a"):
            rows.append((rest, WORDS.index(first.removeprefix("Mia has a"))))
    return rows


def features(model, tokenizer, cloze, texts):
    """The hidden state that a head reads, (texts, D): at the blank's start token, or at the last of the question
    without a word."""
    import torch

    from minillama.collate import pad_rows
    from minillama.train.blank_infilling import prefix_mask, rotations_2d

    if model.config.objective == "blank":
        rows = cloze.rows(tokenizer, texts)[::len(cloze.words)]
        ids, split_B = [row.tokens[:row.split + 1] for row in rows], torch.tensor([row.split for row in rows])
        tokens_BT = pad_rows(ids)
        places = [row.positions[:row.split + 1] + [(0, 0)] * (tokens_BT.shape[1] - row.split - 1) for row in rows]
        layout = rotations_2d(torch.tensor(places), model.config), prefix_mask(split_B, tokens_BT.shape[1])
    else:
        ids, layout = [tokenizer.encode("".join(cloze.question(text)), bos=True) for text in texts], None
        tokens_BT = pad_rows(ids)
    return model.hidden_states(tokens_BT, layout=layout)[range(len(ids)), [len(row) - 1 for row in ids]]


def row_of(objective, way, seed, base, tokenizer):
    """A row: the share of unseen texts whose missing word is told."""
    import torch
    from torch.nn.functional import cross_entropy

    from minillama.evaluate.cloze import Cloze, cloze_loss, label_scores
    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step

    cloze, labelled, model = Cloze(PATTERN, WORDS), asked(seed, LABELLED, "train"), copy.deepcopy(base)
    texts, wanted = zip(*asked(seed, UNSEEN, "held-out"), strict=True)
    torch.manual_seed(seed)
    head, rng = torch.nn.Linear(model.config.dim, len(WORDS)), random.Random(seed)
    optimizer = AdamW([*model.parameters(), *head.parameters()], weight_decay=0.0)
    for step in range(TUNE_STEPS if way in ("tuned", "head") else 0):
        optimizer.lr = learning_rate(step, TUNE_STEPS, RATE, warmup_steps=min(10, TUNE_STEPS - 1))
        some, labels = zip(*rng.sample(labelled, min(BATCH, LABELLED)), strict=True)
        loss = cloze_loss(model, tokenizer, cloze, some, labels) if way == "tuned" else cross_entropy(
            head(features(model, tokenizer, cloze, some)), torch.tensor(labels))
        train_step(optimizer, [loss], 1.0)
    with torch.no_grad():
        scores = head(features(model.eval(), tokenizer, cloze, texts)) if way == "head" else label_scores(
            model, tokenizer, cloze, texts, labelled[:3] if way == "3 shown" else ())
    right = (scores.argmax(-1) == torch.tensor(wanted)).double().mean().item()
    return {"seed": seed, "objective": objective, "method": way, "accuracy": right}


def all_rows(out):
    """Every row; what was run is kept in `out`."""
    tokenizer, rows = tokenizer_of_stories(), []
    for seed in SEEDS:
        for objective in BASES:
            base = base_of(objective, seed, out, tokenizer)
            for way in ("0 shown", "3 shown", "tuned", "head"):
                path = Path(out) / f"stories-{STEPS}-{objective}-{way}-{seed}.json"
                rows += compared.kept(path, row_of, objective, way, seed, base, tokenizer)
                print(rows[-1], flush=True)
    return rows


def table(rows):
    """Lines of Markdown: of each way the mean accuracy, and the least and the most of the seeds."""
    names = {"0 shown": "cloze, 0 shown", "3 shown": "cloze, 3 shown", "tuned": "cloze, tuned on 30 texts",
             "head": "head, all weights, on 30 texts"}
    lines = ["| what is asked | reads from left to right | fills blanks |", "|---|---:|---:|"]
    for way, name in names.items():
        cells = []
        for objective in BASES:
            found = [100 * row["accuracy"] for row in rows if (row["method"], row["objective"]) == (way, objective)]
            cells.append(f"{statistics.mean(found):.0f} % ({min(found):.0f} to {max(found):.0f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
