"""The tour's report: one HTML file, no network, light and dark, readable without the pictures."""

import html

from minillama.files import atomic_write
from minillama.terminal import visible

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #1c2430; --soft: #5d6875; --line: #d9dee4; --tint: #f3f6f9;
  --good: #1d7f5f; --bad: #b3401d; --t0: #d5e5fb; --t1: #fbe2d0; --t2: #d3f0e5; --t3: #e6e8ec; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #12161c; --ink: #e4e9ef; --soft: #9aa6b3; --line: #2d3540;
  --tint: #1a2028; --good: #56c9a1; --bad: #f08a62; --t0: #1e3f6e; --t1: #6a3a1a; --t2: #17533f; --t3: #3a424d; }} }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; max-width: 46rem;
  margin: 2.5rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.4rem; }}
.soft {{ color: var(--soft); font-size: .9rem; }} svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; display: block; overflow-x: auto; }}
th, td {{ text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
.pass {{ color: var(--good); font-weight: 600; }} .miss {{ color: var(--bad); font-weight: 600; }}
blockquote, pre {{ background: var(--tint); margin: .8rem 0; padding: .7rem 1rem; border-radius: 6px; font-size: .92rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }}
.given {{ color: var(--soft); }} .token {{ border-radius: 3px; padding: .1rem 0; white-space: pre-wrap; }}
code {{ font-size: .88em; }}
</style></head><body>
<h1>{title}</h1>
<p class="soft">{summary}</p>
{body}
</body></html>
"""


def _escape(text):
    return html.escape(visible(text))


def table(rows):
    """The rows of report.json as a table: expected, got, pass."""
    cells = "".join(
        f"<tr><td>{_escape(row['stage'])}</td><td>{_escape(row['expected'])}</td>"
        f"<td>{_escape(row['got'])}</td><td class=\"{'pass' if row['pass'] else 'miss'}\">"
        f"{'pass' if row['pass'] else 'MISS'}</td><td>{row['seconds']:.1f}</td><td>{_places(row)}</td></tr>"
        for row in rows)
    head = "".join(f"<th>{name}</th>" for name in ("stage", "expected", "got", "", "seconds", "where it is written"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"


def _places(row):
    return "<br>".join(f"<code>{_escape(row[key])}</code>" for key in ("module", "lesson") if row[key])


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
        file.write(PAGE.format(title=_escape(title), summary=_escape(summary), body="\n".join(parts)))
