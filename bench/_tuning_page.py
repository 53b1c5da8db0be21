"""docs/tuning.md, made from bench/tuning.json alone: tables, and in each sentence the numbers that it rests on."""

import statistics

import _conditions_page
import _methods_compared
import _rounds
import _survey

PAGE = _rounds.ROOT / "docs" / "tuning.md"
TOUR_COLUMNS = ("seed", "entropy", "before", "full", "LoRA", "QLoRA", "LoRA - full", "QLoRA - LoRA", "numbers missed")
METHOD_COLUMNS = ("method", "trained parameters", "share", "rate", "loss on the answers", "exact answers",
                  "loss on unseen questions", "forgotten", "a step, ms", "kept for backward, MiB",
                  "step in all, MiB", "file, kB", "merges")
CLASS_COLUMNS = ("what is trained", "trained parameters", "rate", "classes told, of unseen texts")
METHODS = """# Every method of tuning, on one task

Made by `python3 run.py bench tuning --record` from [its record](../bench/tuning.json), {date}, with torch {torch}.

**The task tells methods apart.** A LLaMA of {parameters:,} weights, which has read stories and a forum, learns {facts}
of the forum's questions whose answers are drawn at random: "{example}" The form of an answer can be learned by few
numbers; which words belong to which question only by as many as hold them, 8 bits a question. All methods make {steps}
steps of {batch} from the same weights on the same batches. The rate is the one of {rates} whose last 25 training losses
are least on seed {first}; it then serves all {seeds} seeds. Ranks, virtual tokens and inner widths are {size}. Full
tuning and LoRA of rank 1 end {gap:.3f} nats apart, {times:.0f} times the wider of their ranges over seeds.

{table}

Losses are mean nats a learned token; a range in brackets is that of the seeds. Exact answers: greedy decoding gives
every word. Unseen questions have no right answer but its form. Forgotten: how much the loss on pretraining text rose,
with the method in place; all but full and embeddings can be taken off again, and the base is as it was. A step: CPU
time of one thread, median of turns. Kept for backward: what autograd holds, counted; in all: with gradients and
AdamW's averages too. File: what is saved.

## Understanding: which of three ways an answer opens

{class_steps} steps of {batch} out of {class_texts} texts of the forum; a head of three classes learns at the last
token. A third is chance.

{classes}

Virtual tokens learn slowly. After {long_class_steps} steps, on seed {first} alone, at the best of the same rates by the
last training losses, p-tuning-v2 tells {long_v2:.0f} % and a soft prompt {long_prompt:.0f} %.

{conditions}
## Which method for my data and my memory?

{advice}

{not_run}Where the rate is the highest of the sweep, a method might do better
beyond it.

"""
TOUR = """## Full tuning, LoRA and QLoRA in the tour, over {seeds} seeds

Made by `python3 run.py bench tuning --tour --record`, {date}, with torch {torch}, threads: {threads}.

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


def page(record):
    """docs/tuning.md."""
    methods = methods_section(record["methods"]) if "methods" in record else ""
    return methods + _survey.section() + "\n" + tour_section(record["tour"])


def markdown(columns, rows):
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *rows])


def tour_table(part):
    return markdown(TOUR_COLUMNS, [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row]
                                   for row in part["rows"]])


def tour_section(part):
    from minillama.tour import tour_sft
    from minillama.train.templates import TEMPLATES, text_of

    template = text_of(TEMPLATES[tour_sft.TEMPLATE]([{"role": "user", "content": "{question}"},
                                                     {"role": "assistant", "content": "{answer}"}]))
    return TOUR.format(seeds=len(part["rows"]), **{name: part["made"][name] for name in ("date", "torch", "threads")},
                       table=tour_table(part), held_out=tour_sft.HELD_OUT, steps=tour_sft.FULL.steps,
                       batch=tour_sft.FULL.batch_size, records=tour_sft.RECORDS, full_lr=tour_sft.FULL.max_lr,
                       lora_lr=tour_sft.ADAPTER.max_lr, rank=tour_sft.LORA.rank, alpha=tour_sft.LORA.alpha,
                       name=tour_sft.TEMPLATE, template=template)


def spread(values, form="{:.3f}"):
    """The mean, and the least and the most in brackets."""
    mean, least, most = (form.format(value) for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def methods_table(part):
    rows = []
    for row in part["summary"]:
        learned = [spread(row["loss"]), spread([100 * share for share in row["exact"]], "{:.0f} %"),
                   spread(row["unseen"]), spread(row["forgot"], "{:+.3f}")]
        if not row["trained"]:
            rows.append(["none: the base", "0", "", "", *learned, "", "", "", "", ""])
            continue
        rows.append([row["method"], f"{row['trained']:,}", f"{row['share']:.2%}", f"{row['rate']:g}", *learned,
                     f"{1e3 * row['step_seconds']:.0f}", f"{row['saved_bytes'] / 2**20:.1f}",
                     f"{row['step_bytes'] / 2**20:.1f}", f"{row['file_bytes'] / 1e3:.0f}", row["merges"]])
    return markdown(METHOD_COLUMNS, rows)


def class_table(part):
    return markdown(CLASS_COLUMNS, [[row["method"], f"{row['trained']:,}", f"{row['rate']:g}",
                                     spread([100 * share for share in row["accuracy"]], "{:.0f} %")]
                                    for row in part["classes"]])


def gap(summary):
    """(how far full tuning and LoRA of rank 1 end apart, in nats; that as a multiple of the wider range of seeds)."""
    full, one = (next(row["loss"] for row in summary if row["method"] == name) for name in ("full", "lora of rank 1"))
    apart = statistics.mean(one) - statistics.mean(full)
    return apart, apart / max(max(row) - min(row) for row in (full, one))


def longest(part, way):
    """The longer run of a way, at the rate whose last training losses are least."""
    return min((run for run in part["longer"] if run["method"] == way), key=lambda run: run["training_loss"])


def methods_section(part):
    from minillama.config import ModelConfig

    settings, (apart, times) = part["settings"], gap(part["summary"])
    not_run = sorted(set(_methods_compared.RACE) - {row["method"] for row in part["summary"]})
    given = {name: settings[name] for name in ("facts", "steps", "batch", "size", "class_steps", "class_texts",
                                                "long_class_steps")}
    long_v2, long_prompt = (100 * longest(part, way)["accuracy"] for way in ("p-tuning-v2", "prompt and head"))
    return METHODS.format(**given, date=part["made"]["date"], torch=part["made"]["torch"], gap=apart, times=times,
                          parameters=ModelConfig(**settings["model"]).n_parameters(), example=settings["example"],
                          rates=", ".join(f"{rate:g}" for rate in settings["rates"]), first=settings["seeds"][0],
                          seeds=len(settings["seeds"]), table=methods_table(part), classes=class_table(part),
                          advice=advice(part), long_v2=long_v2, long_prompt=long_prompt,
                          not_run=f"Missing: runs of {', '.join(not_run)}. " if not_run else "",
                          conditions=_conditions_page.section(part, markdown, spread))


def few_data_clause(part, added):
    """What a few questions teach: the method whose answers to unseen ones are the least surprising."""
    rows, few = part["conditions"]["data"], part["settings"]["few"]
    unseen = {name: statistics.mean(_conditions_page.column(rows, "unseen", method=name, count=few))
              for name in ("none", "full", *added)}
    best = min(unseen, key=unseen.get)
    yield (f"**Little data**: behind {few} questions {best} has {unseen[best]:.2f} nats on unseen ones, full tuning "
           f"{unseen['full']:.2f}, the base {unseen['none']:.2f}.")


def advice(part):
    """The short answer: each clause with the numbers of this record."""
    rows = {row["method"]: row for row in part["summary"]}
    classes = {row["method"]: 100 * statistics.mean(row["accuracy"]) for row in part["classes"]}
    mean = {name: {key: statistics.mean(row[key]) for key in ("loss", "exact", "unseen", "forgot")}
            for name, row in rows.items()}
    added = [name for name in rows if name not in ("none", "full", "embeddings")]
    best = max(added, key=lambda name: (mean[name]["exact"], -mean[name]["loss"]))
    frozen = [name for name in added if rows[name]["merges"] == "yes"]
    merged = max(frozen, key=lambda name: (mean[name]["exact"], -mean[name]["loss"]))
    light, least = min(added, key=lambda name: rows[name]["step_bytes"]), min(added, key=lambda n: rows[n]["trained"])
    calm = min(added, key=lambda name: mean[name]["forgot"])
    clauses = [
        f"**Much that is new, and memory for it**: full tuning, {mean['full']['exact']:.0%} of the answers exact with "
        f"{rows['full']['step_bytes'] / 2**20:.1f} MiB a step and a file of {rows['full']['file_bytes'] / 1e3:.0f} kB. "
        f"The next best that leaves the base frozen is {best}: {mean[best]['exact']:.0%} exact with "
        f"{rows[best]['share']:.1%} of the numbers.",
        f"**No slower afterwards**: what merges; of those {merged} knows most, {mean[merged]['exact']:.0%} exact, in a "
        f"file of {rows[merged]['file_bytes'] / 1e3:.0f} kB.",
        *([f"**A base that hardly fits**: qlora, {mean['qlora']['exact']:.0%} exact against "
           f"{mean['lora']['exact']:.0%} of lora, over a base of a quarter of the bytes of 16 bits."]
          if "qlora" in rows else []),
        f"**Little memory for a step**: {light}, {rows[light]['step_bytes'] / 2**20:.1f} MiB where lora takes "
        f"{rows['lora']['step_bytes'] / 2**20:.1f}; the ladder keeps "
        f"{rows['ladder']['saved_bytes'] / rows['lora']['saved_bytes']:.0%} of what lora keeps for the backward pass, "
        f"and knows {mean['ladder']['exact']:.0%}.",
        f"**A form alone, nothing to be known by heart**: any method will do. On unseen questions the base has "
        f"{mean['none']['unseen']:.2f} nats, {least} with {rows[least]['trained']:,} numbers "
        f"{mean[least]['unseen']:.2f}, and full tuning, which has learned answers by heart, "
        f"{mean['full']['unseen']:.2f}.",
        f"**What was known before must stay**: with {calm} in place the loss on the old text moves least, by "
        f"{mean[calm]['forgot']:+.3f} nats; full tuning moves it by {mean['full']['forgot']:+.3f}, for good.",
        *few_data_clause(part, added),
        f"**Classes of texts**: p-tuning-v2 tells {classes['p-tuning-v2']:.0f} %, a soft prompt "
        f"{classes['prompt and head']:.0f} %, a head alone {classes['head alone']:.0f} %, full tuning "
        f"{classes['full and head']:.0f} %; over {part['settings']['long_class_steps']} steps p-tuning-v2 comes to "
        f"{100 * longest(part, 'p-tuning-v2')['accuracy']:.0f} %, a soft prompt to "
        f"{100 * longest(part, 'prompt and head')['accuracy']:.0f} %."]
    return "\n".join(f"- {clause}" for clause in clauses)
