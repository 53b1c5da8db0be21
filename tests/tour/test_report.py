"""Laws of the report: self-contained, escaped, readable in light and dark, and true to its rows."""

from html.parser import HTMLParser

from mutants import Mutant

from minillama.tour.report import caption, coloured_tokens, quote, section, table, write_report

HOSTILE = "\x1b\u202e<script>alert('x')</script> & \"quotes\""
KEYS = ("stage", "expected", "got", "pass", "seconds", "module", "lesson")
ROWS = [dict(zip(KEYS, ("pretrain", "< 1.10", HOSTILE, True, 1.0, "a.py", ""), strict=True)),
        dict(zip(KEYS, ("chat", "< 2", "3", False, 2.0, "b.py", "c.py"), strict=True))]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text += data


def page(tmp_path):
    blocks = quote(HOSTILE, HOSTILE), coloured_tokens([HOSTILE]), caption(HOSTILE)
    parts = [table(ROWS), section(HOSTILE, HOSTILE, *blocks)]
    write_report(tmp_path / "report.html", HOSTILE, HOSTILE, parts)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_no_text_becomes_markup(tmp_path):
    tags = Tags()
    tags.feed(page(tmp_path))
    assert not tags.open and "script" not in tags.seen
    assert tags.text.count(HOSTILE.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")) == 10


def test_the_page_asks_the_network_for_nothing_and_knows_both_light_and_dark(tmp_path):
    text = page(tmp_path)
    assert "http" not in text and "src=" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_missed_row_says_so():
    assert table(ROWS).count("FAIL") == 1 and table(ROWS[:1]).count("FAIL") == 0


def test_the_table_is_folded_away_unless_a_row_failed():
    assert "<details open>" in table(ROWS) and "<details>" in table(ROWS[:1])


MUTANTS = [
    Mutant("minillama.tour.report", 'if all(row["pass"]', 'if any(row["pass"]',
           test_the_table_is_folded_away_unless_a_row_failed),
    Mutant("minillama.tour.report", "{_escape(piece)}", "{piece}", lambda: _in_folder(
        test_the_page_is_well_formed_and_no_text_becomes_markup)),
    Mutant("minillama.tour.report", "'pass' if row['pass'] else 'FAIL'", "'pass'", test_a_missed_row_says_so),
]


def _in_folder(law):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        law(Path(folder))
