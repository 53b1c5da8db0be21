"""Every method of tuning on one model and one task, in equal steps: docs/tuning.md, and the record it is made from.

All methods of `sft` learn the same questions, whose answers were drawn at random, from the same pretrained model,
at the best of the same rates (`_methods_compared`). --tour makes the page's other table instead: the tour's own full
tuning, LoRA and QLoRA, two minutes of one core for each seed. What was run is kept in --out, so that a run that was
stopped goes on. --record puts the numbers into bench/tuning.json, and makes the page anew from that file alone.
"""

import datetime
import json
from pathlib import Path

import _classes_compared as classes_compared
import _conditions_compared as conditions_compared
import _labels_compared as labels_compared
import _methods_compared as compared
import _rounds
import _tuning_page

RECORD = _rounds.ROOT / "bench" / "tuning.json"
TOUR_SEEDS = (0, 1, 2, 3, 4)


def results(seed, out):
    """All numbers of one seed of the tour, in the order of `_tuning_page.TOUR_COLUMNS`."""
    from minillama.tour import tour_sft
    from minillama.tour.tour import TourConfig, TourReport, corpus_stage, pretrain_stage, tokenizer_stage

    report = TourReport(f"{out}/{seed}", TourConfig(seed=seed, progress=False))
    train, held_out = corpus_stage(report)
    tokenizer = tokenizer_stage(report, train, held_out)
    model = pretrain_stage(report, tokenizer, train, held_out)
    lessons = tour_sft.lessons_of(seed, tokenizer)
    full = tour_sft.sft_stage(report, model, tokenizer, lessons)
    lora = tour_sft.lora_stage(report, model, tokenizer, lessons, full)
    qlora = tour_sft.qlora_stage(report, model, tokenizer, lessons, full, lora)
    entropy, before = lessons.bits / lessons.bits_of(1.0), full.history[0]["held_out_loss"]
    return (seed, entropy, before, full.loss, lora.loss, qlora.loss, lora.loss - full.loss, qlora.loss - lora.loss,
            sum(not row["pass"] for row in report.rows))


def tour_part(chosen):
    """The tour's record: a row for each seed."""
    return {"rows": [results(seed, chosen.out) for seed in chosen.seeds or TOUR_SEEDS]}


def methods_part(chosen):
    """The record of all methods: every run, their summary, and how they tell classes apart."""
    seeds = tuple(chosen.seeds or compared.SEEDS)
    out = f"{chosen.out}/{compared.STEPS}x{compared.BATCH}-{compared.FACTS}"  # runs of other settings lie elsewhere
    names = [name for name in compared.RACE if name in (chosen.methods or compared.RACE)]
    runs, classes = compared.race(out, seeds, names), classes_compared.understanding(out, seeds)
    [costs] = compared.kept(Path(out) / "costs.json", compared.costs, out)
    rows = summary(runs, costs, names, seeds)
    rates = {row["method"]: row["rate"] for row in rows if row["rate"]}
    other = {"data": conditions_compared.data_runs(out, rates), "shown": conditions_compared.few_shot_runs(out),
             "widths": conditions_compared.width_runs(out), "labels": labels_compared.label_runs(out)}
    settings = {"seeds": seeds, "few": conditions_compared.FEW, "rates": compared.RATES, "facts": compared.FACTS,
                "unseen": compared.UNSEEN, "steps": compared.STEPS, "batch": compared.BATCH, "size": compared.SIZE,
                "class_steps": classes_compared.CLASS_STEPS, "class_texts": classes_compared.CLASS_TEXTS,
                "long_class_steps": classes_compared.LONG_CLASS_STEPS,
                "model": compared.SHAPE, "example": compared.example(seeds[0])}
    return {"settings": settings, "runs": runs, "class_runs": classes, "longer": classes_compared.longer(out, seeds),
            "summary": rows, "conditions": other,
            "classes": [class_summary(classes, way, seeds) for way in classes_compared.WAYS]}


def summary(runs, costs, names, seeds):
    """A row for the base and for each method, at its chosen rate: lists hold a number for each seed."""
    rows = []
    for name in ("none", *names):
        rate = compared.chosen_rate(runs, name, seeds[0])
        found = [run for run in runs if run["method"] == name and run["rate"] == rate]
        learned = {column: [run[column] for run in found] for column in ("loss", "exact", "unseen", "forgot")}
        rows.append({"method": name, "rate": rate, **learned, **costs.get(name, {"trained": 0})})
    return rows


def class_summary(runs, way, seeds):
    rate = compared.chosen_rate(runs, way, seeds[0])
    found = [run for run in runs if run["method"] == way and run["rate"] == rate]
    return {"method": way, "rate": rate, "trained": found[0]["trained"],
            "accuracy": [run["accuracy"] for run in found]}


def made():
    """Where and when a record was made."""
    import torch

    return {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "threads": torch.get_num_threads(),
            "machine": _rounds.machine()}


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 4"),
        parser.add_argument("--methods", nargs="+", choices=compared.RACE, help="default: all"),
        parser.add_argument("--tour", action="store_true", help="the tour's three tunings instead"),
        parser.add_argument("--record", action="store_true", help="write bench/tuning.json and docs/tuning.md"),
        parser.add_argument("--out", default="out/tuning", help="for what is run (default: %(default)s)")))
    if chosen.small:
        compared.make_small()
        classes_compared.make_small()
        conditions_compared.make_small()
        labels_compared.make_small()
    if chosen.small and (chosen.tour or chosen.record):
        raise SystemExit("--small shows that the race runs: leave out --tour and --record")
    part = "tour" if chosen.tour else "methods"
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    record[part] = (tour_part if chosen.tour else methods_part)(chosen) | {"made": made()}
    record = json.loads(json.dumps(record))
    print({"tour": _tuning_page.tour_table, "methods": _tuning_page.methods_table}[part](record[part]))
    if chosen.record:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        _tuning_page.PAGE.write_text(_tuning_page.page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
