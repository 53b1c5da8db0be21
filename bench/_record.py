"""Records of long benchmarks: rows in a JSON file, each made once, and the tables of a page made from them.

A row has a key, the settings it was made with. A run that was stopped goes on behind the last row that it kept.
"""

import datetime
import json
import os
import re

import _rounds


def rows_of(path):
    """All rows that a record holds, dicts."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def find_row(path, **key):
    """The row of that key, or None."""
    return next((row for row in rows_of(path) if row.items() >= key.items()), None)


def keep_row(path, make, **key):
    """The row of that key; if there is none, what make() gives, a dict, is put there with date and machine."""
    row = find_row(path, **key)
    if row is None:
        row = key | make() | {"date": datetime.date.today().isoformat(), "machine": _rounds.machine()}
        rows = sorted([*rows_of(path), row], key=lambda each: [str(each.get(name)) for name in key])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        lines = ",\n".join(map(json.dumps, rows))
        part.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        os.replace(part, path)
    return row


def table(columns, rows):
    """A Markdown table; numbers with two digits behind the point, None as a dash."""
    cells = [[("-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x)) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, ["---"] * len(columns), *cells])


def put(page, name, text):
    """Put a text between the marks <!-- name --> and <!-- /name --> of a page."""
    old = page.read_text(encoding="utf-8")
    new, found = re.subn(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda marks: f"{marks[1]}{text}\n{marks[2]}",
                         old, flags=re.DOTALL)
    if found != 1:
        raise SystemExit(f"{page.name} has the marks {name} {found} times, not once")
    page.write_text(new, encoding="utf-8")
