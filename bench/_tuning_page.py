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
CLASS_COLUMNS = ("what is trained", "trained parameters", "rate", "classes told, of unseen texts", "in more steps")
METHODS = """# Every method of tuning, on one task

Made by `python3 run.py bench tuning --record` from [its record](../bench/tuning.json), {date}, with torch {torch}. The
short answer stands [at the end](#which-method-for-my-data-and-my-memory).

**The task tells methods apart.** A LLaMA of {parameters:,} weights, which has read stories and a forum, learns {facts}
of the forum's questions. Their answers are drawn at random: "{example}" A few trained numbers are enough to learn the
form of such an answer. Its words have to be stored, 8 bits for each question, so they take more. The losses of full
tuning and of LoRA of rank 1 differ by {gap:.3f} nats, {times:.0f} times as much as the seeds of either differ.

**The race is fair.** All methods make {steps} steps of {batch} examples from the same weights on the same batches. Each
method tries the learning rates {rates} on seed {first}; the one with the lowest mean of the last 25 training losses is
used for all {seeds} seeds. Every rank, number of virtual tokens and inner width is {size}.

{table}

- A loss is in nats, the mean over the tokens of the answers. Brackets hold the least and the most of the seeds.
- Exact answers: greedy decoding gives every word.
- Unseen questions: nobody can know their answers, so this loss tells only how well the form was learned.
- Forgotten: how much the loss on the pretraining text rose while the method is in place. All but full and embeddings
  can be taken off again; then the base is as it was.
- A step: CPU time of one thread, the median over turns in which every method takes one step.
- Kept for backward: the bytes that autograd holds for the backward pass, counted tensor by tensor. Step in all: these
  bytes, the gradients and AdamW's two averages.
- File: the size of what is saved.

## Understanding: which of three ways an answer opens

An answer of the forum opens politely, at once or rudely. A head of three classes learns to tell which at the last token
of the text, in {class_steps} steps of {batch} out of {class_texts} texts. A third is chance. Virtual tokens learn
slowly, so the two ways with them have {long_class_steps} steps as well, on the same {seeds} seeds and with the rate
chosen by the same rule.

{classes}

After {long_class_steps} steps p-tuning-v2 is {ahead:.1f} points ahead of a soft prompt ({least_ahead:.0f} to
{most_ahead:.0f}, seed by seed), and {behind:.1f} behind full tuning after {class_steps}.

{conditions}
"""
ADVICE = """
## Which method for my data and my memory?

{advice}

{not_run}A method whose rate is the highest of the three might do better at a higher one.
"""
TOUR = """## Full tuning, LoRA and QLoRA in the tour, over {seeds} seeds

Made by `python3 run.py bench tuning --tour --record`, {date}, with torch {torch}, threads: {threads}.

Mean nats a learned token on {held_out} unseen answers, after {steps} steps of {batch} out of {records} questions and
answers of the forum; entropy: the least that any model could need, known from the grammar; before: the pretrained
model. All three begin at the same weights and see the same batches. Numbers missed: how many of the tour's checks
failed, because a number left its band or a weight of the frozen base changed or got a gradient. Full tuning at a rate
of {full_lr}; adapters, rank {rank} and alpha {alpha} on all linear layers but the head, at {lora_lr}. The template is
`{name}`:

```text
{template}
```

{table}
"""


def page(record):
    """docs/tuning.md."""
    methods, short_answer = ("", "") if "methods" not in record else (
        methods_section(record["methods"]), advice_section(record["methods"]))
    return methods + _survey.section() + "\n" + tour_section(record["tour"]) + short_answer


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
    """A row for each way; what it tells in more steps, where it ran for them."""
    rows = []
    for row in part["classes"]:
        told = [[100 * share for share in shares] for shares in (row["accuracy"], longer_shares(part, row["method"]))]
        rows.append([row["method"], f"{row['trained']:,}", f"{row['rate']:g}",
                     *(spread(shares, "{:.0f} %") if shares else "" for shares in told)])
    return markdown(CLASS_COLUMNS, rows)


def longer_shares(part, way):
    """The shares of classes told by the longer runs of a way, one for each seed, at its chosen rate; [] without any."""
    found = [row for row in part["longer"] if row["method"] == way]
    return [row["accuracy"] for row in _conditions_page.chosen(found, way)] if found else []


def gap(summary):
    """(how far full tuning and LoRA of rank 1 end apart, in nats; that as a multiple of the wider range of seeds)."""
    full, one = (next(row["loss"] for row in summary if row["method"] == name) for name in ("full", "lora of rank 1"))
    apart = statistics.mean(one) - statistics.mean(full)
    return apart, apart / max(max(row) - min(row) for row in (full, one))


def class_distances(part):
    """{name in METHODS: points} between p-tuning-v2 and a soft prompt in more steps, and full tuning in fewer."""
    v2, prompt = ([100 * share for share in longer_shares(part, way)] for way in ("p-tuning-v2", "prompt and head"))
    ahead = [one - other for one, other in zip(v2, prompt, strict=True)]
    full = next(row["accuracy"] for row in part["classes"] if row["method"] == "full and head")
    return {"ahead": statistics.mean(ahead), "least_ahead": min(ahead), "most_ahead": max(ahead),
            "behind": 100 * statistics.mean(full) - statistics.mean(v2)}


def methods_section(part):
    from minillama.config import ModelConfig

    settings, (apart, times) = part["settings"], gap(part["summary"])
    given = {name: settings[name] for name in ("facts", "steps", "batch", "size", "class_steps", "class_texts",
                                                "long_class_steps")}
    return METHODS.format(**given, date=part["made"]["date"], torch=part["made"]["torch"], gap=apart, times=times,
                          parameters=ModelConfig(**settings["model"]).n_parameters(), example=settings["example"],
                          rates=", ".join(f"{rate:g}" for rate in settings["rates"]), first=settings["seeds"][0],
                          seeds=len(settings["seeds"]), table=methods_table(part), classes=class_table(part),
                          **class_distances(part),
                          conditions=_conditions_page.section(part, markdown, spread))


def few_data_clause(part, added):
    """What a few questions teach: the method whose answers to unseen ones are the least surprising."""
    rows, few = part["conditions"]["data"], part["settings"]["few"]
    unseen = {name: statistics.mean(_conditions_page.column(rows, "unseen", method=name, count=few))
              for name in ("none", "full", *added)}
    best = min(unseen, key=unseen.get)
    yield (f"**Little data**: after learning {few} questions {best} has {unseen[best]:.2f} nats on unseen ones, full "
           f"tuning {unseen['full']:.2f}, and the base, which learned none, {unseen['none']:.2f}.")


def labels_clause(part):
    """Which way tells labels that hang on other words, and spans."""
    told = _conditions_page.label_shares(part["conditions"]["labels"])
    words = [f"{way} {statistics.mean(told['participants', way]):.0%} and {statistics.mean(told['spans', way]):.0%}"
             for way in ("full and head", "p-tuning-v2", "prompt and head", "head alone")]
    return f"of labels that hang on words to the left, and of spans, are told: {', '.join(words)}."


def advice_section(part):
    not_run = sorted(set(_methods_compared.RACE) - {row["method"] for row in part["summary"]})
    return ADVICE.format(advice=advice(part), not_run=f"Missing: runs of {', '.join(not_run)}. " if not_run else "")


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
        f"**Many new facts, and memory enough**: full tuning, {mean['full']['exact']:.0%} of the answers exact with "
        f"{rows['full']['step_bytes'] / 2**20:.1f} MiB a step and a file of {rows['full']['file_bytes'] / 1e3:.0f} kB. "
        f"The best that leaves the base frozen is {best}: {mean[best]['exact']:.0%} exact with "
        f"{rows[best]['share']:.1%} of the numbers.",
        f"**No slower generation afterwards**: a method that merges into the weights. Of those {merged} knows most, "
        f"{mean[merged]['exact']:.0%} exact, in a file of {rows[merged]['file_bytes'] / 1e3:.0f} kB.",
        *([f"**A base that hardly fits**: qlora, {mean['qlora']['exact']:.0%} exact against "
           f"{mean['lora']['exact']:.0%} of lora, over a base of a quarter of the bytes of 16 bits."]
          if "qlora" in rows else []),
        f"**Little memory for a step**: {light}, {rows[light]['step_bytes'] / 2**20:.1f} MiB where lora takes "
        f"{rows['lora']['step_bytes'] / 2**20:.1f}; the ladder keeps "
        f"{rows['ladder']['saved_bytes'] / rows['lora']['saved_bytes']:.0%} of what lora keeps for the backward pass, "
        f"and knows {mean['ladder']['exact']:.0%}.",
        f"**A form to learn, and no facts**: any method will do. On unseen questions the base has "
        f"{mean['none']['unseen']:.2f} nats, {least} with {rows[least]['trained']:,} numbers "
        f"{mean[least]['unseen']:.2f}, and full tuning, which has learned its own answers by heart, "
        f"{mean['full']['unseen']:.2f}.",
        f"**What was known before must stay**: the loss on the old text rises least with {calm}, by "
        f"{mean[calm]['forgot']:.3f} nats, and only while it is in place; full tuning raises it by "
        f"{mean['full']['forgot']:.3f}, for good.",
        *few_data_clause(part, added),
        f"**Classes of texts**: p-tuning-v2 tells {classes['p-tuning-v2']:.0f} %, a soft prompt "
        f"{classes['prompt and head']:.0f} %, a head alone {classes['head alone']:.0f} %, full tuning "
        f"{classes['full and head']:.0f} %; over {part['settings']['long_class_steps']} steps p-tuning-v2 comes to "
        f"{100 * statistics.mean(longer_shares(part, 'p-tuning-v2')):.0f} %, a soft prompt to "
        f"{100 * statistics.mean(longer_shares(part, 'prompt and head')):.0f} %.",
        f"**Labels and spans within a text**: {labels_clause(part)}"]
    return "\n".join(f"- {clause}" for clause in clauses)
