"""The tour's report: one HTML file, no network, light and dark, readable without the pictures."""

import html
import json
from pathlib import Path
from string import Template

from minillama.plots import svg
from minillama.system.files import atomic_write
from minillama.system.terminal import visible

PAGES = json.loads(Path(__file__).with_name("report_pages.json").read_text(encoding="utf-8"))
ROWS = json.loads(Path(__file__).with_name("report_rows.json").read_text(encoding="utf-8"))
PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def _escape(text):
    return html.escape(visible(text))


def table(rows):
    """The rows of report.json as a table: expected, got, pass. Folded away, unless a row failed."""
    cells = "".join(
        f"<tr><td>{_escape(row['stage'])}</td><td>{_escape(row['expected'])}</td>"
        f"<td>{_escape(row['got'])}</td><td class=\"{'pass' if row['pass'] else 'fail'}\">"
        f"{'pass' if row['pass'] else 'FAIL'}</td><td>{row['seconds']:.1f}</td><td>{_places(row)}</td></tr>"
        for row in rows)
    head = "".join(f"<th>{name}</th>" for name in ("stage", "expected", "got", "", "seconds", "where it is written"))
    fold = "<details>" if all(row["pass"] for row in rows) else "<details open>"
    return (f"{fold}<summary>Every number, and the band that was set for it before</summary>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></details>")


def _places(row):
    return "<br>".join(f"<code>{_escape(row[key])}</code>" for key in ("module", "lesson") if row[key])


def page(name, /, *blocks, more="", **numbers):
    """A page of the tour in the words of report_pages.json, with these numbers: heading, sentence, blocks, caption.

    A block is a text made by the functions below, a figure, whose words for those who do not see it are the page's
    "alt", or (figure, which words). more: the name of a further sentence.
    """
    said = {part: words.format(**numbers) for part, words in PAGES[name].items()}
    shown = []
    for block in blocks:
        picture, words = block if isinstance(block, tuple) else (block, "alt")
        shown.append(picture if isinstance(picture, str) else svg(picture, said[words]))
    if "caption" in said:
        shown.append(caption(said["caption"]))
    return section(said["title"], said["text"] + said.get(more, ""), *shown)


def section(title, sentence, *parts):
    """A heading, one sentence, then figures (SVG) or blocks made by the functions below."""
    return f"<h2>{_escape(title)}</h2>\n<p>{_escape(sentence)}</p>\n" + "\n".join(parts)


def quote(given, made=""):
    """A text: what was given to the model in grey, what it wrote in ink."""
    return f'<blockquote><span class="given">{_escape(given)}</span>{_escape(made)}</blockquote>'


def coloured_tokens(pieces):
    """Each token on a ground of its own, in four turns, so that the cuts show."""
    spans = (f'<span class="token" style="background:var(--t{i % 4})">{_escape(piece)}</span>'
             for i, piece in enumerate(pieces))
    return f"<blockquote>{''.join(spans)}</blockquote>"


def caption(text):
    """A small line under a figure."""
    return f'<p class="soft">{_escape(text)}</p>'


def write_report(path, title, summary, parts):
    """Write the page atomically; all texts were escaped by the functions above."""
    with atomic_write(path, "w") as file:
        file.write(PAGE.substitute(title=_escape(title), summary=_escape(summary), body="\n".join(parts)))
