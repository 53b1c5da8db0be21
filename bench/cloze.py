"""Cloze questions against a head of classes, on one task of understanding: docs/evaluation.md, and its record.

How an answer of the forum opens, politely, at once or rudely (`_classes_compared`), is asked as a cloze question whose
words are one for each class: of the pretrained model as it is, behind three worked examples, and tuned, all weights, on
many texts and on few. A new head over the same model, tuned with all weights and alone, has the same texts, steps and
rates, and the same rule chooses its rate: the least training loss on the first seed. Then a blank in the middle of a
question, of a causal model and of one that fills blanks (`_blanks_compared`). --record writes bench/cloze.json.
"""

import copy
import datetime
import json
import math
import random
import statistics
from pathlib import Path

import _blanks_compared as blanks_compared
import _classes_compared as classes_compared
import _methods_compared as compared
import _rounds

RECORD = _rounds.ROOT / "bench" / "cloze.json"
PATTERN, WORDS = "{text}\nThis answer is", (" kind", " plain", " rude")  # polite, at once, rude
COUNTS = (1000, 30)  # labelled texts
WAYS = ("cloze, tuned", "head, all weights", "head alone")
UNSEEN = 300


def untuned(shown, base, tokenizer, seed):
    """A row: the share of unseen texts whose class the base tells behind so many worked examples."""
    from minillama.evaluate.cloze import Cloze, label_scores

    examples = classes_compared.openings(seed, shown, "train")
    texts, labels = zip(*classes_compared.openings(seed, UNSEEN, "held-out"), strict=True)
    guessed = label_scores(base, tokenizer, Cloze(PATTERN, WORDS), texts, examples).argmax(1).tolist()
    right = statistics.mean(guess == label for guess, label in zip(guessed, labels, strict=True))
    return {"seed": seed, "method": f"cloze, {shown} shown", "texts": shown, "accuracy": right}


def tuned(way, count, rate, base, tokenizer, seed, steps):
    """A row: the same after tuning on `count` labelled texts."""
    import torch
    from torch.nn.functional import cross_entropy

    from minillama.evaluate.cloze import Cloze, cloze_loss, label_scores
    from minillama.train.learning_rate import learning_rate
    from minillama.train.optimizer import AdamW
    from minillama.train.training_run import train_step

    cloze, texts = Cloze(PATTERN, WORDS), classes_compared.openings(seed, count, "train")
    if way == "cloze, tuned":
        made = copy.deepcopy(base).requires_grad_()

        def loss_of(batch):
            return cloze_loss(made, tokenizer, cloze, *zip(*batch, strict=True))
    else:
        made = classes_compared.classifier("full and head" if way == "head, all weights" else way, base, seed)

        def loss_of(batch):
            rows = [(tokenizer.encode(text, bos=True), label) for text, label in batch]
            return cross_entropy(*classes_compared.scores_of(made, rows))
    optimizer, rng, losses = AdamW(made.parameters(), weight_decay=0.0), random.Random(seed), []
    for step in range(steps):
        optimizer.lr = learning_rate(step, steps, rate, warmup_steps=min(10, steps - 1))
        losses.append(train_step(optimizer, [loss_of(rng.sample(texts, compared.BATCH))], 1.0)[0].item())
    unseen = classes_compared.openings(seed, UNSEEN, "held-out")
    with torch.no_grad():
        if way == "cloze, tuned":
            scores, wanted = label_scores(made, tokenizer, cloze, [text for text, _ in unseen]), [n for _, n in unseen]
        else:
            scores, wanted = classes_compared.scores_of(
                made, [(tokenizer.encode(text, bos=True), label) for text, label in unseen])
    last = statistics.mean(losses[-25:])
    return {"seed": seed, "method": way, "texts": count, "rate": rate,
            "training_loss": last if math.isfinite(last) else compared.DIVERGED,
            "accuracy": (scores.argmax(1) == torch.as_tensor(wanted)).float().mean().item()}


def all_runs(out, seeds):
    """Every row, those of rates that were not chosen left out. What was run is kept in `out`."""
    tokenizer, found = compared.tokenizer_of_all(), []
    base = compared.base_of(out, tokenizer)
    for seed in seeds:
        for shown in (0, 3):
            found += compared.kept(Path(out) / f"cloze-{seed}-{shown}.json", untuned, shown, base, tokenizer, seed)
            print(found[-1], flush=True)
    for count in COUNTS:
        for way in WAYS:
            rows = []
            for seed in seeds:
                for rate in compared.RATES if seed == seeds[0] else [compared.chosen_rate(rows, way, seeds[0])]:
                    path = Path(out) / f"cloze-{seed}-{way}-{count}-{rate}.json"
                    rows += compared.kept(path, tuned, way, count, rate, base, tokenizer, seed,
                                          classes_compared.CLASS_STEPS)
                    print(rows[-1], flush=True)
            chosen = compared.chosen_rate(rows, way, seeds[0])
            found += [row for row in rows if row["rate"] == chosen]
    return found


def table(rows):
    """Lines of Markdown: of each way the mean accuracy, and the least and the most of the seeds."""
    lines = ["| what is asked | labelled texts | unseen texts classified rightly |", "|---|---:|---:|"]
    for method, count in dict.fromkeys((row["method"], row["texts"]) for row in rows):
        found = [100 * row["accuracy"] for row in rows if (row["method"], row["texts"]) == (method, count)]
        lines.append(f"| {method} | {count} | {statistics.mean(found):.0f} % ({min(found):.0f} to {max(found):.0f}) |")
    return lines


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 4"),
        parser.add_argument("--record", action="store_true", help="write bench/cloze.json"),
        parser.add_argument("--blanks", action="store_true", help="only the blank in the middle"),
        parser.add_argument("--out", default="out/tuning", help="for what is run (default: %(default)s)")))
    if chosen.small:
        compared.make_small()
        classes_compared.make_small()
        blanks_compared.make_small()
        globals().update(COUNTS=(30, 20), UNSEEN=6)
    out = f"{chosen.out}/{compared.STEPS}x{compared.BATCH}-{compared.FACTS}"
    made = json.loads(RECORD.read_text(encoding="utf-8")) if chosen.blanks else {}
    made |= {"date": datetime.date.today().isoformat(), "machine": _rounds.machine()}
    if not chosen.blanks:
        made["rows"] = all_runs(out, tuple(chosen.seeds or compared.SEEDS))
        print("\n".join(table(made["rows"])))
    made["blanks"] = blanks_compared.all_rows(out)
    print("\n".join(blanks_compared.table(made["blanks"])))
    if chosen.record and not chosen.small:
        RECORD.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
