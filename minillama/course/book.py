"""`book`: all lessons as pages that need no network, with formulas as MathML and figures as inline SVG.

Three small libraries, no part of the core, set prose, formulas and code: `pip install minillama[book]`.
"""

import html
import json
import os
import re
import sys
from pathlib import Path
from string import Template

from minillama.course import recording
from minillama.course.lesson import FOLDER, NAMES, PARTS, lessons, neighbours, read
from minillama.course.prose import math_text
from minillama.system.files import atomic_write

ROOT = FOLDER.parent
NEEDED = "markdown-it-py", "latex2mathml", "pygments"
MATH = re.compile(r"^\$\$(?P<block>.+)\$\$\n(?:ascii: (?P<ascii>.*)\n?)?|`[^`]*`|\$(?P<inline>[^$]+)\$", re.MULTILINE)


def require_libraries():
    """An error that says what to install, in one line, where a library of the book is missing."""
    try:
        import latex2mathml  # noqa: F401
        import markdown_it  # noqa: F401
        import pygments  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the book needs {error.name}, which is not here: {sys.executable} -m pip install "
                         f"{' '.join(NEEDED)}") from None


def formula(latex, alt=None):
    """LaTeX as MathML; `alt` is the same in plain text, for those who hear the page."""
    from latex2mathml.converter import convert

    block = alt is not None
    latex = re.sub(r"\\(ln|log|sin|cos|max|min) +(?=[A-Za-z0-9\\])", r"\\\1\\,",
                   latex.replace(r"\arg", r"\mathrm{arg}\,"))  # the converter knows no space after a function's name
    math = convert(latex, display="block" if block else "inline")
    return math.replace("<math ", f'<math alttext="{html.escape(alt if block else math_text(latex), quote=True)}" ', 1)


def prose(text):
    """A prose cell as HTML. Formulas are set first and put back last, so that Markdown leaves their letters alone."""
    from markdown_it import MarkdownIt

    formulas = []

    def keep(match):
        if match["block"]:
            formulas.append(formula(match["block"], match["ascii"] or math_text(match["block"])))
            return f"\n\uE000{len(formulas) - 1}\uE001\n\n"
        if match["inline"]:
            formulas.append(formula(match["inline"].replace("\n", " ")))
            return f"\uE000{len(formulas) - 1}\uE001"
        return match[0]

    page = MarkdownIt("commonmark", {"html": False}).enable("table").render(MATH.sub(keep, text + "\n"))
    page = re.sub(r"<p>\uE000(\d+)\uE001</p>", lambda m: formulas[int(m[1])], page)
    page = re.sub(r"\uE000(\d+)\uE001", lambda m: formulas[int(m[1])], page)
    page = re.sub(r"(<math (?:(?!</math>).)*</math>)([.,;:?!)]+)", r'<span class="whole">\1\2</span>', page)
    return page.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def code(text):
    """Python with classes for the style sheet."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return f"<pre><code>{highlight(text, PythonLexer(), HtmlFormatter(nowrap=True)).rstrip()}</code></pre>"


def output(part, prefix):
    """What a cell printed, or its figure; `prefix` keeps the ids of two figures on one page apart."""
    if isinstance(part, recording.Text):
        text = part.text.strip("\n")
        return f'<pre class="output">{html.escape(text)}</pre>' if text else ""
    svg = re.sub(r'\bid="', f'id="{prefix}-', part.svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return f"<figure>{svg}<figcaption>{html.escape(part.alt)}</figcaption></figure>"


def lesson_page(lesson, recorded, out):
    """One lesson as a page; `out` is the folder it will lie in, from which links to source files are counted."""
    facts = lesson.header
    items = "".join(f"<li><b>{key}</b> {_fact(key, facts[key], lesson.path.parent, out)}</li>"
                    for key in ("Teaches", "Covers", "Needs", "Time", "Paper") if key in facts)
    body = [f'<h1><span class="number">{lesson.number:02}</span> {html.escape(lesson.title)}</h1>',
            f'<ul class="facts">{items}</ul>']
    figures = 0
    for cell in lesson.cells:
        if cell.kind == "markdown":
            kind = ' class="exercise"' if cell.id == "exercise" else ""
            body.append(f'<section id="{cell.id}"{kind}>{_linked(prose(cell.text), out)}</section>')
            continue
        body.append(f'<section id="{cell.id}">{code(cell.text)}')
        for part in recorded.get(cell.id, ()):
            figures += isinstance(part, recording.Svg)
            body.append(output(part, f"f{figures}"))
        body.append("</section>")
    return _page(lesson.title, "\n".join(body), _turn(lesson.number, lesson.path.parent))


def _fact(key, value, folder, out):
    if key == "Needs":
        written = lessons(folder)
        return ", ".join(f'<a href="{written[int(n)].stem}.html">{n}</a>' if n.isdigit() and int(n) in written else n
                         for n in value.split(", "))
    return _linked(re.sub(r"^<p>|</p>\s*$", "", prose(value)), out)


def _linked(page, out):
    """Paths of the checkout in `code` become links to the files."""
    def link(match):
        target = ROOT / match[1]
        if not target.is_file():
            return match[0]
        return f'<a href="{os.path.relpath(target, Path(out).resolve()).replace(os.sep, "/")}">{match[0]}</a>'

    return re.sub(r"<code>([\w./]+/[\w./]+)</code>", link, page)


def _turn(number, folder):
    links = []
    for rel, other, arrow in zip(("prev", "next"), neighbours(number, folder), ("← {}", "{} →"), strict=True):
        if other is not None:
            path = lessons(folder)[other]
            links.append(f'<a rel="{rel}" href="{path.stem}.html">{arrow.format(html.escape(read(path).title))}</a>')
    return " ".join(links)


def _page(title, body, turn):
    """`body` in the book's look: book.html, with book.css, light and dark, and book.js inside it; no network."""
    template, style, script = (Path(__file__).with_suffix(end).read_text(encoding="utf-8")
                               for end in (".html", ".css", ".js"))
    return Template(template).substitute(title=html.escape(title), style=style, body=body, turn=turn, script=script)


def index_page(folder=FOLDER):
    """The contents: written lessons as links, planned ones in grey."""
    written = lessons(folder)
    body = ["<h1>minillama, lesson by lesson</h1>",
            "<p>A LLaMA from scratch. Every lesson is a Python file: a question, code that runs, the formula, the "
            "library's module, and a number that comes out. Read it here, or run it cell by cell: "
            "<code>python3 run.py lesson 5</code>.</p>"]
    for part, numbers in PARTS.items():
        rows = "".join(_row(number, written.get(number)) for number in numbers)
        body.append(f'<h2>{part}</h2><ul class="contents">{rows}</ul>')
    first = f'<a rel="next" href="{written[min(written)].stem}.html">begin →</a>' if written else ""
    return _page("Lessons", "\n".join(body), first)


def _row(number, path):
    if path is None:
        name = NAMES[number][3:].replace("_", " ")
        return f'<li class="planned"><span class="no">{number:02}</span> {name} <span class="time">planned</span></li>'
    lesson = read(path)
    return (f'<li><span class="no">{number:02}</span> <a href="{path.stem}.html">{html.escape(lesson.title)}</a>'
            f'<span class="soft time">{lesson.header["Time"]}</span></li>')


def search_index(folder=FOLDER):
    """Every prose cell as {title, href, text}, as one line of JavaScript (a page from disk may fetch no JSON)."""
    pages = []
    for path in lessons(folder).values():
        lesson = read(path)
        for cell in lesson.cells:
            if cell.kind == "markdown":
                text = re.sub(r"^\$\$.*\$\$$|^\|[-|]+\|$|[*`|#]", " ", cell.text, flags=re.MULTILINE)
                text = re.sub(r"\$([^$]+)\$", lambda m: math_text(m[1]), text.replace("ascii:", " "))
                first = f"{lesson.title} {lesson.header.get('Teaches', '')} " if cell is lesson.cells[0] else ""
                pages.append({"title": f"{lesson.number:02} {lesson.title}", "href": f"{path.stem}.html#{cell.id}",
                              "text": " ".join((first + text).split())})
    return "const BOOK = " + json.dumps(pages, ensure_ascii=False).replace("</", "<\\/") + ";\n"


def build(out="out/book", folder=FOLDER, recorded=None, say=print, only=()):
    """Run every lesson (or `only` those numbers) and write the book; returns the index's path.

    recorded: {number: recording} spares a lesson its run.
    """
    require_libraries()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pages = {"index.html": index_page(folder), "search.js": search_index(folder)}
    for number, path in lessons(folder).items():
        if only and number not in only:
            continue
        found = (recorded or {}).get(number) or recording.record(path)
        pages[f"{path.stem}.html"] = lesson_page(read(path), found, out)
        say(f"{path.stem}.html  {len(pages[f'{path.stem}.html'].encode()) / 1000:.0f} kB")
    for name, page in pages.items():
        with atomic_write(out / name, "w") as file:
            file.write(page)
    return out / "index.html"
