"""The tour's three tunings over several seeds: where full tuning, LoRA and QLoRA end that begin at the same model.

The tour's own stages in the tour's own settings: corpus, tokenizer, pretraining, and the three tunings. Two minutes of
one core for each seed. What was trained is kept in --out, so that a run that was stopped goes on, and the table can be
had again; --record writes it to docs/tuning.md, where the bands of `minillama.tour.tour_sft` come from.
"""

import _rounds

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
        parser.add_argument("--record", action="store_true", help="write the table to docs/tuning.md"),
        parser.add_argument("--out", default="out/tuning", help="for what is trained (default: %(default)s)")))
    rows = [results(seed, chosen.out) for seed in chosen.seeds]
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(table)
    if chosen.record:
        (_rounds.ROOT / "docs" / "tuning.md").write_text(page(table, len(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
