"""What items come to: rows of means with their standard errors, and the tables that show them."""

import math

from benchmark_tasks import TASKS, groups_of

from minillama.evaluate.standard_error import mean_and_error, paired_difference, ratio_and_error
from minillama.system.terminal import one_line

SHARES = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi", "exact_match", "last_number")
TEXTS = ("bits_per_byte", "byte_perplexity", "word_perplexity")


def rows_of(items, theirs=None):
    """The table: {"task", "group", "items", "chance", measure: [mean, error], ...} for each task, below it for each
    group of subjects, below that for each subject. theirs: another model's items, for "difference" and its error in the
    first measure, paired item by item. A subject of two groups counts in both and is listed in the first."""
    rows, groups = [], {}
    for number, item in enumerate(items):
        name, subject = item["task"], item["subject"]
        mine = groups_of(name, subject)
        for key in dict.fromkeys([(name, "", ""), *((name, group, "") for group in mine), (name, mine[0], subject)]):
            groups.setdefault(key, []).append(number)
    order = {name: place for place, name in enumerate(dict.fromkeys(item["task"] for item in items))}
    for (name, group, subject), numbers in sorted(groups.items(), key=lambda one: (order[one[0][0]], one[0][1:])):
        mine = [items[number] for number in numbers]
        row = {"task": name, "group": group, "subject": subject, "items": len(mine)}
        other = None if theirs is None else [theirs[number] for number in numbers]
        rows.append(row | (_of_documents if TASKS[name].form == "document" else _of_answers)(name, mine, other))
    return rows


def _of_answers(name, mine, other):
    row = {} if TASKS[name].form == "written" else {
        "chance": sum(1 / len(item["log_likelihoods"]) for item in mine) / len(mine)}
    for measure in TASKS[name].measures:
        row[measure] = _finite(mean_and_error([item[measure] for item in mine]))
    if other is not None:
        first = TASKS[name].measures[0]
        row["difference"] = _finite(paired_difference([item[first] for item in mine], [item[first] for item in other]))
    return row


def _of_documents(name, mine, other):
    """Nats per byte and per word of all documents together, as bits and as perplexities; a perplexity's error is to
    first order it times that of the nats."""
    nats, n_bytes, n_words = ([item[key] for item in mine] for key in ("nats", "bytes", "words"))
    (per_byte, byte_error), (per_word, word_error) = (ratio_and_error(nats, whole) for whole in (n_bytes, n_words))
    row = {"bits_per_byte": (per_byte / math.log(2), byte_error / math.log(2)),
           "byte_perplexity": (exp(per_byte), exp(per_byte) * byte_error),
           "word_perplexity": (exp(per_word), exp(per_word) * word_error)}
    if other is not None:
        less = [item["nats"] - another["nats"] for item, another in zip(mine, other, strict=True)]
        row["difference"] = [part / math.log(2) for part in ratio_and_error(less, n_bytes)]
    return {name: _finite(numbers) for name, numbers in row.items()} | {
        "bytes": sum(n_bytes), "words": sum(n_words), "tokens": sum(item["tokens"] for item in mine)}


def exp(nats):
    """e to that power; infinite beyond what a float can be."""
    return math.exp(nats) if nats < 700 else math.inf


def _finite(numbers):
    return [number if math.isfinite(number) else None for number in numbers]


def table(rows):
    """The rows in Markdown, mean +- standard error: a table of shares in per cent, and one of texts."""
    texts = [row for row in rows if "bits_per_byte" in row]
    shares = [row for row in rows if "bits_per_byte" not in row]
    parts = [_table(shares, SHARES, "chance", 100, 1)] if shares else []
    parts += [_table(texts, TEXTS, "bytes", 1, 3)] if texts else []
    return "\n\n".join(parts)


def _table(rows, measures, second, scale, digits):
    names = [name for name in (*measures, "difference") if any(name in row for row in rows)]
    lines = [" | ".join(["| task", "items", second, *names]) + " |", "|---|" + "---:|" * (2 + len(names))]
    for row in rows:
        title = one_line(": ".join(part for part in (row["task"], row["group"], row["subject"]) if part))
        beside = f"{row['bytes']:,}" if second == "bytes" else f"{100 * row['chance']:.1f}" if "chance" in row else ""
        cells = [f"{row['items']:,}", beside, *(_cell(row.get(name), scale, digits) for name in names)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(numbers, scale, digits):
    if numbers is None:
        return ""
    mean, error = ("?" if number is None else f"{scale * number:.{digits}f}" for number in numbers)
    return f"{mean} ± {error}"
