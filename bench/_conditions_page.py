"""The part of docs/tuning.md on other conditions than the main table's, from the record alone."""

import statistics

SECTION = """## Fewer questions, another topic

Seeds: {seeds}. The rates are those of the main table, so the data alone differ: {few} questions instead of {facts}, and
questions about animals, on which no method was tuned. The answer to an unseen question was drawn at random as well, so
its loss tells how well the form of an answer was learned, and what tuning made worse.

{data}

## Examples in the prompt, or tuning on them

Mean nats on the answers to unseen questions, with so many questions and answers before each one in the prompt and
nothing trained, and behind tuning on the same ones. This base has read windows of 64 tokens: more examples than fit one
are strange to it.

{shown}

## A soft prompt in models of three widths

Telling classes apart, as above. What a few virtual tokens can ask for, the model must be able to do.

{widths}

## Sequence labelling and extraction

The same ways, a head on each token: the kind of each word, and the first and last token of what a text asks for, found
exactly. {easy}

{labels}
"""


def section(part, markdown, spread):
    """The markdown of all conditions; `markdown(columns, rows)` and `spread(values, form)` are the page's own."""
    found, few, facts = part["conditions"], part["settings"]["few"], part["settings"]["facts"]
    told = label_shares(found["labels"])
    head = statistics.mean(told["labels", "head alone"])
    easy = (f"A head alone tells {head:.0%} of the words: the base knows them, and labelling compares nothing."
            if head > 0.95 else "")
    seeds = ", ".join(map(str, sorted({row["seed"] for row in found["data"]})))
    return SECTION.format(few=few, facts=facts, seeds=seeds, easy=easy,
                          data=data_table(found["data"], few, facts, markdown, spread),
                          shown=shown_table(found, markdown, spread),
                          widths=width_table(found["widths"], markdown, spread),
                          labels=label_table(told, markdown, spread))


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
    return markdown(("method", f"exact answers, of {few}", f"unseen questions, behind {few}", f"behind {facts}",
                     f"another topic, behind {few}", f"behind {facts}"), lines)


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
            for task in ("labels", "spans") for way in dict.fromkeys(row["method"] for row in rows)}


def label_table(told, markdown, spread):
    ways = dict.fromkeys(way for _, way in told)
    return markdown(("what is trained", "words labelled", "spans found"),
                    [[way, *(spread([100 * share for share in told[task, way]], "{:.0f} %")
                             for task in ("labels", "spans"))] for way in ways])
