"""The tour's three tunings over several seeds: where full tuning, LoRA and QLoRA end that begin at the same model.

The tour's own stages in the tour's own settings: corpus, tokenizer, pretraining, and the three tunings. Two minutes of
one core for each seed. What was trained is kept in --out, so that a run that was stopped goes on, and the table can be
had again; --record writes it to docs/tuning.md, where the bands of `minillama.tour.tour_sft` come from.

--methods prints another table instead: every method of `sft`, from the same pretrained model, in the same steps, each
at the best of the same RATES by its last training losses, so that no held-out answer has a say in the choice.
"""

import _rounds

RATES = (2e-3, 5e-3, 2e-2, 1e-1)
METHOD_COLUMNS = ("seed", "method", "numbers trained", "share", "rate", "held-out loss", "merges")
COLUMNS = ("seed", "entropy", "before", "full", "LoRA", "QLoRA", "LoRA - full", "QLoRA - LoRA", "numbers missed")
PAGE = """# Full tuning, LoRA and QLoRA over {seeds} seeds

Made by `python3 run.py bench tuning --record`, {date}, with torch {torch}, threads: {threads}.

Mean nats a learned token on {held_out} unseen answers, after {steps} steps of {batch} out of {records} questions and
answers of the forum; entropy: the least that any model could need, known from the grammar; before: the pretrained
model. All three begin at the same weights and see the same batches. A number is missed that falls out of its band in
the tour, or where a weight of the frozen base has moved or got a gradient. Full tuning at a rate of {full_lr};
adapters, rank {rank} and alpha {alpha} on all linear layers but the head, at {lora_lr}. The template is `{name}`:

```text
{template}
```

{table}
"""


def results(seed, out):
    """All numbers of one seed, in the order of COLUMNS."""
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


def method_rows(seed, out):
    """A row of METHOD_COLUMNS for the pretrained model itself, for full tuning, LoRA and its kin, and each method."""
    from minillama.peft.methods import METHODS
    from minillama.tour import tour_sft
    from minillama.tour.tour import TourConfig, TourReport, corpus_stage, pretrain_stage, tokenizer_stage
    from minillama.train.sft import answer_loss

    report = TourReport(f"{out}/{seed}", TourConfig(seed=seed, progress=False))
    train, held_out = corpus_stage(report)
    tokenizer = tokenizer_stage(report, train, held_out)
    model = pretrain_stage(report, tokenizer, train, held_out)
    lessons = tour_sft.lessons_of(seed, tokenizer)
    rows = [(seed, "none", 0, "", "", answer_loss(model, lessons.held_out), "")]
    for name in ("full", "lora", "rslora", "dora", *METHODS):
        _, rate, loss, trained = min(tuned_at(rate, name, model, lessons, seed) for rate in RATES)
        merges = "" if name == "full" else "no" if METHODS.get(name, ("", ""))[1] else "yes"
        rows.append((seed, name, trained, trained / model.config.n_parameters(), rate, loss, merges))
        print(rows[-1], flush=True)
    return rows


def tuned_at(rate, name, model, lessons, seed):
    """(mean of the last 25 training losses, rate, held-out loss, numbers trained) of one method at one rate."""
    import dataclasses
    import math
    import statistics

    from minillama.peft.dora import DoRALinear
    from minillama.peft.lora import LoRALinear, add_lora
    from minillama.peft.methods import METHODS, add_method
    from minillama.tour import tour_sft
    from minillama.train.resume import own_random_state
    from minillama.train.sft import fine_tune

    learner = tour_sft.copy_to_train(model)
    with own_random_state(seed, "cpu"):
        if name in METHODS:
            add_method(learner, name)
        elif name != "full":
            config = dataclasses.replace(tour_sft.LORA, rank_stabilized=name == "rslora")
            add_lora(learner, config, DoRALinear if name == "dora" else LoRALinear)
    settings = dataclasses.replace(tour_sft.FULL, max_lr=rate, eval_every=0, seed=seed)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    try:
        history = fine_tune(learner, lessons.train, lessons.held_out, settings, progress=False)
    except FloatingPointError:  # a rate too high for this method
        return math.inf, rate, math.inf, trained
    held_out = [row["held_out_loss"] for row in history if "held_out_loss" in row][-1]
    return statistics.mean([row["loss"] for row in history if "loss" in row][-25:]), rate, held_out, trained


def page(table, seeds):
    """docs/tuning.md."""
    import datetime

    import torch

    from minillama.tour import tour_sft
    from minillama.train.templates import TEMPLATES, text_of

    template = text_of(TEMPLATES[tour_sft.TEMPLATE]([{"role": "user", "content": "{question}"},
                                                     {"role": "assistant", "content": "{answer}"}]))
    return PAGE.format(seeds=seeds, date=datetime.date.today().isoformat(), torch=torch.__version__, table=table,
                       threads=torch.get_num_threads(),
                       held_out=tour_sft.HELD_OUT, steps=tour_sft.FULL.steps, batch=tour_sft.FULL.batch_size,
                       records=tour_sft.RECORDS, full_lr=tour_sft.FULL.max_lr, lora_lr=tour_sft.ADAPTER.max_lr,
                       rank=tour_sft.LORA.rank, alpha=tour_sft.LORA.alpha, name=tour_sft.TEMPLATE, template=template)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4"),
        parser.add_argument("--methods", action="store_true", help="the table of all methods; no page is written"),
        parser.add_argument("--record", action="store_true", help="write the table to docs/tuning.md"),
        parser.add_argument("--out", default="out/tuning", help="for what is trained (default: %(default)s)")))
    columns = METHOD_COLUMNS if chosen.methods else COLUMNS
    if chosen.methods:
        rows = [row for seed in chosen.seeds for row in method_rows(seed, chosen.out)]
    else:
        rows = [results(seed, chosen.out) for seed in chosen.seeds]
    lines = [columns, ["---"] * len(columns)]
    lines += [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(table)
    if chosen.record and not chosen.methods:
        (_rounds.ROOT / "docs" / "tuning.md").write_text(page(table, len(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
