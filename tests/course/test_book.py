"""Laws of notebook and book: they say what the lesson says, need no network, and serve eye, ear and keyboard."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import book_markdown
import pytest
from mutants import Mutant
from test_lesson import BARE_LESSON, LESSON, written

from minillama.cli.command_line import main
from minillama.course import book, lesson, notebook, recording

DOCS = lesson.FOLDER.parent / "docs" / "lessons"
SVG = '<svg role="img" aria-label="a"><defs><clipPath id="c"/></defs><g clip-path="url(#c)"/><use href="#c"/></svg>'
RECORDED = {"naive": [recording.Text("half: 3.0 <b>\n")],
            "agree": [recording.Svg(SVG, "It ends at 4"), recording.Svg(SVG, "Twice")]}
PATHS = sorted(lesson.lessons().values())


class Page(HTMLParser):
    """What a browser would find: ids, links, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.open, self.tags = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" and "href" in attributes else []
        self.sources += [attributes[key] for key in ("src", "data", "srcset") if key in attributes]
        if tag not in ("meta", "link", "input", "br", "hr", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()


@pytest.fixture
def libraries():
    for name in ("markdown_it", "latex2mathml", "pygments"):
        pytest.importorskip(name, reason="the book's libraries are not installed: pip install .[book]")


@pytest.fixture
def made(tmp_path, libraries):
    """A book of two lessons, recorded beforehand."""
    written(tmp_path / "lessons")
    written(tmp_path / "lessons", LESSON.replace("05 · Halves", "07 · Thirds & <more>"), "07_rope.py")
    lines = []
    book.build(tmp_path / "book", tmp_path / "lessons", {5: RECORDED, 7: RECORDED}, lines.append)
    assert len(lines) == 2
    return tmp_path / "book"


def test_pages_are_whole_and_their_ids_are_their_own(made):
    for path in made.glob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert not page.open, f"{path.name} leaves {page.open} open"
        assert len(set(page.ids)) == len(page.ids), f"{path.name}: an id occurs twice"


def test_a_page_asks_nothing_of_the_network_and_nothing_that_is_not_there(made):
    for path in made.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert page.sources == ["search.js"] and "@import" not in text and "url(http" not in text
        outside = re.sub(r'<a [^>]*href="https?://[^"]*"', "", text).replace("http://www.w3.org/", "")
        assert "http" not in outside
        for link in page.links:
            if not link.startswith("http"):
                assert (made / link.split("#")[0]).exists(), f"{path.name} links to {link}"
        assert len(text.encode()) < 200_000


def test_a_page_holds_prose_formula_code_output_and_figure_in_their_order(made):
    text = (made / "05_rms_norm.html").read_text(encoding="utf-8")
    order = ["<b>Teaches</b> halves", "<strong>Question.</strong>", "<mi>x</mi>", "<th>symbol</th>", 'class="mi">6<',
             "half: 3.0 &lt;b&gt;", 'alttext="y = x / 2"', "<figcaption>It ends at 4", "<figcaption>Twice",
             'id="you_should_see"']
    places = [text.index(part) for part in order]
    assert places == sorted(places) and "ascii:" not in text and "$" not in text.split("<script")[0]


def test_figures_have_alt_texts_formulas_have_words_and_two_figures_do_not_share_ids(made):
    tags = Page((made / "05_rms_norm.html").read_text(encoding="utf-8")).tags
    assert all(attributes["aria-label"] for tag, attributes in tags if tag == "svg")
    assert all(attributes["alttext"] for tag, attributes in tags if tag == "math")
    assert [attributes["clip-path"] for tag, attributes in tags if "clip-path" in attributes] == ["url(#f1-c)",
                                                                                             "url(#f2-c)"]
    assert [attributes["href"] for tag, attributes in tags if tag == "use"] == ["#f1-c", "#f2-c"]


def test_previous_and_next_skip_what_is_not_written(made):
    def turns(name):
        return {a["rel"]: a["href"] for tag, a in Page((made / name).read_text(encoding="utf-8")).tags if "rel" in a
                and tag == "a"}

    assert turns("05_rms_norm.html") == {"next": "07_rope.html"} and turns("07_rope.html") == {"prev":
                                                                                           "05_rms_norm.html"}
    assert turns("index.html") == {"next": "05_rms_norm.html"}


def test_the_index_lists_all_and_search_finds_every_word_of_prose(made):
    index = (made / "index.html").read_text(encoding="utf-8")
    assert "Thirds &amp; &lt;more&gt;" in index and index.count("planned</span>") == len(lesson.COURSE) - 2
    script = (made / "search.js").read_text(encoding="utf-8")
    pages = json.loads(script.removeprefix("const BOOK = ").rstrip(";\n"))
    assert [page["href"] for page in pages if page["href"].startswith("05")] == ["05_rms_norm.html#question",
                                                                                "05_rms_norm.html#formula"]
    assert "What is x/2?" in pages[0]["text"] and "y = x / 2" in pages[1]["text"] and "\n" not in script[:-1]


SPY = """<script>addEventListener("load", () => {
  box.value = "IS what"; look();
  const hits = [...found.querySelectorAll("a")].map(a => a.getAttribute("href")).join(" ");
  box.value = "nowhere"; look();
  const none = found.textContent;
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "/"}));
  const focus = document.activeElement.id;
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = [hits, none, focus, document.activeElement.tagName, found.className, wide].join(";");
});</script></body>"""


@pytest.mark.long
@pytest.mark.parametrize("width", [500, 1200])  # headless Chromium makes no narrower window
def test_a_browser_finds_no_fault_and_search_and_keys_work(made, tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium here")
    page = made / "05_rms_norm.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", SPY), encoding="utf-8")
    done = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u",
                           f"--window-size={width},900", "--enable-logging=stderr", "--dump-dom", page.as_uri()],
                          capture_output=True, text=True, timeout=120)
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    hits = "05_rms_norm.html#question 07_rope.html#question"
    assert title == hits + ";no page has all these words;search;BODY;;false"
    assert "CONSOLE" not in done.stderr, done.stderr


def test_a_missing_library_is_one_line_with_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "latex2mathml", None)
    assert main(["book", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "latex2mathml" in err and "-m pip install markdown-it-py" in err and err.count("\n") == 1


def test_formulas_survive_markdown(libraries):
    page = book.prose("a $x_1$ and *b* $y_2$, `$z$`\n\n$$a_1 * b_2$$\nascii: a1 * b2\n\n| $|x|$ | b |\n|---|---|\n"
                      "| 1 | 2 |")
    assert page.count("<math") == 4 and "<em>b</em>" in page and "<code>$z$</code>" in page
    assert 'alttext="a1 * b2"' in page and "<p><math" not in page and page.count("<th>") == 2
    assert '</math>,</span>' in page and page.count("whole") == 1, "a comma does not begin a line"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_formula_of_a_lesson_can_be_set(path, libraries):
    for cell in lesson.read(path).cells:
        if cell.kind == "markdown":
            page = book.prose(cell.text)
            assert "merror" not in page and "\\" not in re.sub(r"<code>.*?</code>|alttext=\"[^\"]*\"", "", page), page


def test_a_recording_holds_what_was_printed_and_shown(tmp_path):
    found = recording.record(written(tmp_path, BARE_LESSON))
    assert found["naive"] == [recording.Text("half: 3.0\n")] and list(found) == ["naive", "agree", "you_should_see"]
    (figure,) = found["agree"]
    assert figure.alt == "It ends at 4" and "currentColor" in figure.svg and figure.svg.startswith("<svg role=")
    with pytest.raises(RuntimeError, match="(?s)05_rms_norm.py does not run to its end.*ZeroDivisionError"):
        recording.record(written(tmp_path, LESSON.replace("x = 6", "x = 1 / 0")))


def test_a_notebook_is_valid_and_runs(tmp_path):
    path = notebook.write_notebook(written(tmp_path, BARE_LESSON), tmp_path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"], set(found)) == (4, 5, {"cells", "metadata", "nbformat",
                                                                             "nbformat_minor"})
    ids = [cell["id"] for cell in found["cells"]]
    assert ids == ["question", "setup", "naive", "formula", "agree", "you_should_see"]
    for cell in found["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"]) and cell["metadata"] == {}
        assert all(isinstance(line, str) for line in cell["source"])
        extra = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert cell == {**{key: cell[key] for key in ("cell_type", "id", "metadata", "source")}, **extra}
    head = "".join(found["cells"][0]["source"])
    assert head.startswith("# 05 · Halves\n\n* Covers: ") and "ascii:" not in "".join(found["cells"][3]["source"])
    code = "\n".join("".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code")
    assert str(lesson.FOLDER.parent) not in path.read_text(encoding="utf-8")
    there = tmp_path / "checkout" / "out" / "lessons"  # below a folder with the package, as in a checkout
    there.mkdir(parents=True)
    (tmp_path / "checkout" / "minillama").symlink_to(lesson.FOLDER.parent / "minillama")
    (tmp_path / "run.py").write_text("display = lambda figure: print('shown', type(figure).__name__)\n" + code)
    for place, installed in ((there, ""), (tmp_path, str(lesson.FOLDER.parent))):
        done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, cwd=place,
                              env={**os.environ, "PYTHONPATH": installed})
        assert done.stdout == "half: 3.0\nshown Figure\nIt ends at 4\nYou should see: 3.0\n", done.stderr


def test_markdown_for_github_keeps_formulas_code_and_figures(tmp_path):
    read = lesson.read(written(tmp_path))
    page, figures = book_markdown.page(read, RECORDED)
    order = ["<!-- generated from lessons/05_rms_norm.py", "do not edit", "# 05 · Halves",
             "[`minillama/rms_norm.py`](../../minillama/rms_norm.py)", "$`\\frac{x}{2}`$", "```python\nx = 6\n",
             "```text\nhalf: 3.0 <b>\n```", "```math\ny = \\frac{x}{2}\n```", "![It ends at 4](05_rms_norm-1.svg)",
             "![Twice](05_rms_norm-2.svg)", "[all lessons](README.md)"]
    places = [page.index(part) for part in order]
    assert places == sorted(places) and "ascii:" not in page and "\n\n\n" not in page.split("```python")[0]
    assert list(figures) == ["05_rms_norm-1.svg", "05_rms_norm-2.svg"]
    assert all("prefers-color-scheme: dark" in svg for svg in figures.values())


PRINTED = ("Loss is 3.\n```text\nloss 2.50 in 8 steps, 3e-12\ntook 1.5 s\n 2 runs, sampled: a cat\n```\n"
           "![It ends at 2.5](a.svg)\n")


@pytest.mark.parametrize(("old", "new", "same"), [
    ("2.50", "2.51", True), ("2.50", "2.9", False), ("2.50 in", "2.50 at", False), ("3e-12", "7e-13", True),
    ("1.5 s", "9.5 s", True), ("took", "used", False), ("Loss is 3.", "Loss is 4.", False),
    ("```\n!", "```\n\n!", False), ("a cat", "one dog 7", True), ("2 runs", "3 runs", False),
    ("sampled: a cat", "a cat", False),
    ("at 2.5]", "at 2.6]", True), ("at 2.5]", "at 3.6]", False), ("8 steps", "9 steps", False),
])
def test_prose_is_compared_letter_for_letter_and_printed_numbers_within_their_tolerance(old, new, same):
    assert old in PRINTED
    assert (book_markdown.differences(PRINTED, PRINTED.replace(old, new)) == []) is same


def test_the_committed_pages_are_those_of_todays_lessons():
    wanted = {"README.md"} | {f"{path.stem}.md" for path in PATHS}
    assert {path.name for path in DOCS.glob("*.md")} == wanted, "run: python3 run.py book --markdown docs/lessons"
    assert (DOCS / "README.md").read_text(encoding="utf-8") == book_markdown.index()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_prose_and_code_are_the_lessons(path):
    old = (DOCS / f"{path.stem}.md").read_text(encoding="utf-8")
    new, _ = book_markdown.page(lesson.read(path), {})
    assert book_markdown.without_output(old) == book_markdown.without_output(new)
    for name in re.findall(r"\]\(([\w-]+\.svg)\)", old):
        assert 1000 < (DOCS / name).stat().st_size < 150_000
    assert len(old.encode()) < 200_000


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_committed_output_is_what_the_lesson_prints_today(path):
    new, _ = book_markdown.page(lesson.read(path), recording.record(path))
    assert book_markdown.differences((DOCS / f"{path.stem}.md").read_text(encoding="utf-8"), new) == []


def test_all_figures_together_stay_small():
    assert sum(path.stat().st_size for path in DOCS.iterdir()) < 5_000_000


def _ids_of_figures():
    first, second = (book.output(recording.Svg(SVG, "a"), prefix) for prefix in ("f1", "f2"))
    assert "url(#f1-c)" in first and 'href="#f2-c"' in second and 'id="f2-c"' in second


def _as_notebook():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        made = notebook.notebook(lesson.read(written(Path(folder))))
    assert "ascii:" not in "".join("".join(cell["source"]) for cell in made["cells"])


MUTANTS = [
    Mutant("minillama.course.notebook", 'if not line.startswith("ascii:")', "if line is not None", _as_notebook),
    Mutant("book_markdown", "if CLOCK.search(text):", "if text is None:",
           lambda: test_prose_is_compared_letter_for_letter_and_printed_numbers_within_their_tolerance("1.5 s", "9.5 s",
                                                                                                      True)),
    Mutant("minillama.course.book", 'rf"\\g<1>{prefix}-"', 'r"\\g<1>"', _ids_of_figures),
    Mutant("book_markdown", "<= max(least, share *", "<= max(least, 9 * share *",
           lambda: test_prose_is_compared_letter_for_letter_and_printed_numbers_within_their_tolerance("2.50", "2.9",
                                                                                                      False)),
]
