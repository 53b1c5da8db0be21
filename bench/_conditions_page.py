"""The part of docs/tuning.md on other conditions than the main table's, from the record alone."""

import statistics

TASKS = ("labels", "participants", "spans")
SECTION = """## Fewer questions, another topic

Seeds: {seeds}. The rates are those of the main table; only the data differ. A method learns {few} questions instead of
{facts}. It is then asked unseen questions of the same kind, and questions about animals, a topic that it was not tuned
on. Their answers were drawn at random, so these losses tell how well the form of an answer was learned. Where one is
above the base's, tuning has made the model worse.

{data}

## Examples in the prompt, or tuning on them

The loss on the answers to unseen questions, in nats. In the prompt: so many questions with their answers stand before
each one, and nothing is trained. Other columns: the model was tuned on the same few questions instead. This base was
pretrained on windows of 64 tokens, so a longer prompt is strange to it.

{shown}

## A soft prompt in models of three widths

Classes of texts, as above, over bases of other widths. A soft prompt can only call up what the frozen model is able to
do, so it gains from a wider one; full tuning does not need it.

{widths}

## Sequence labelling and extraction

The same ways, with a head on each token.

- Words labelled: the kind of each word. {easy}
- Participants told: a question names two objects, and each step of its answer is about the first, the second or a third
  one. Which it is hangs on words far to the left, so these runs have {steps} steps. A third is chance.
  {participants}
- Spans found: the first and the last token of what a text asks for, both of them right.

{labels}
"""


def section(part, markdown, spread):
    """The markdown of all conditions; `markdown(columns, rows)` and `spread(values, form)` are the page's own."""
    found, few, facts = part["conditions"], part["settings"]["few"], part["settings"]["facts"]
    told = label_shares(found["labels"])
    head = statistics.mean(told["labels", "head alone"])
    easy = f"A head alone tells {head:.0%} of them: the base knows them, and labelling compares nothing."
    seeds = ", ".join(map(str, sorted({row["seed"] for row in found["data"]})))
    return SECTION.format(few=few, facts=facts, seeds=seeds, easy=easy, steps=part["settings"]["long_class_steps"],
                          participants=participants_sentence(told),
                          data=data_table(found["data"], few, facts, markdown, spread),
                          shown=shown_table(found, markdown, spread),
                          widths=width_table(found["widths"], markdown, spread),
                          labels=label_table(told, markdown, spread))


def participants_sentence(told):
    """How far the ways are apart where labels hang on words to the left."""
    head, prompt, v2, full = (statistics.mean(told["participants", way]) for way in (
        "head alone", "prompt and head", "p-tuning-v2", "full and head"))
    return (f"A head alone tells {head:.0%} of them, a soft prompt {prompt:.0%}, p-tuning-v2 {v2:.0%}, full tuning "
            f"{full:.0%}: virtual tokens hardly make a frozen base compare words, and all its weights learn to.")


def column(rows, name, **wanted):
    """The numbers of one name in the rows that have all that is wanted."""
    return [row[name] for row in rows if all(row[key] == value for key, value in wanted.items())]


def chosen(rows, way):
    """The rows of a way at the rate that serves all its seeds: the only one that the last seed ran at."""
    found = [row for row in rows if row["method"] == way]
    rate = next(row["rate"] for row in found if row["seed"] == max(row["seed"] for row in found))
    return [row for row in found if row["rate"] == rate]


def data_table(rows, few, facts, markdown, spread):
    lines, shown = [], (("exact", few), ("unseen", few), ("unseen", facts), ("topic", few), ("topic", facts))
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = [column(rows, key, method=name, count=count) for key, count in shown]
        words = [spread([100 * share for share in cells[0]], "{:.0f} %")]
        words += [spread(cell, "{:.2f}") if cell else "" for cell in cells[1:]]
        lines.append(["none: the base" if name == "none" else name, *words])
    return markdown(("method", f"exact answers, of {few}", f"unseen questions, {few} learned", f"{facts} learned",
                     f"another topic, {few} learned", f"{facts} learned"), lines)


def shown_table(found, markdown, spread):
    lines = []
    for count in sorted({row["count"] for row in found["shown"]}):
        cells = [column(found["shown"], "unseen", count=count)]
        cells += [column(found["data"], "unseen", method=name, count=count) for name in ("prompt", "lora", "full")]
        lines.append([str(count), *(spread(cell, "{:.2f}") if cell else "" for cell in cells)])
    return markdown(("questions", "in the prompt", "soft prompt tuned", "lora", "full"), lines)


def width_table(rows, markdown, spread):
    lines = []
    for width in sorted({row["width"] for row in rows}):
        here = [row for row in rows if row["width"] == width]
        shares = [[100 * row["accuracy"] for row in chosen(here, way)] for way in ("prompt and head", "full and head")]
        lines.append([str(width), *(spread(share, "{:.0f} %") for share in shares)])
    return markdown(("width", "soft prompt and head", "full and head"), lines)


def label_shares(rows):
    """{(task, way): shares, one for each seed} at the rate chosen for the way."""
    return {(task, way): [row["accuracy"] for row in chosen([row for row in rows if row["task"] == task], way)]
            for task in TASKS for way in dict.fromkeys(row["method"] for row in rows)}


def label_table(told, markdown, spread):
    ways = dict.fromkeys(way for _, way in told)
    return markdown(("what is trained", "words labelled", "participants told", "spans found"),
                    [[way, *(spread([100 * share for share in told[task, way]], "{:.0f} %")
                             for task in TASKS)] for way in ways])
