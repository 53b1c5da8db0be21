"""The pages under docs/lessons keep what lessons printed and showed, and the book is made from that."""

import book_markdown
from mutants import Mutant
from test_book import DOCS, PATHS, RECORDED
from test_lesson import BARE_LESSON, LESSON, written

from minillama.course import lesson, recording


def test_a_page_keeps_its_outputs_for_the_book_until_its_code_changes(tmp_path):
    read = lesson.read(written(tmp_path / "lessons"))
    page, figures = book_markdown.page(read, RECORDED)
    for name, text in {"05_rms_norm.md": page, **figures}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert book_markdown.kept(read, tmp_path) == {**RECORDED, "you_should_see": []}
    changed = lesson.read(written(tmp_path / "lessons", LESSON.replace("x = 6", "x = 8")))
    assert book_markdown.kept(changed, tmp_path) is None
    assert book_markdown.kept(read, tmp_path / "lessons") is None
    for path in PATHS:
        if found := book_markdown.kept(lesson.read(path)):  # else its page is old, as another test says
            figures = [part for parts in found.values() for part in parts if isinstance(part, recording.Svg)]
            assert len(figures) == len(list(DOCS.glob(f"{path.stem}-*.svg"))), path.stem


def test_one_lesson_is_rendered_without_the_others_and_old_figures_go(tmp_path):
    folder, out = tmp_path / "lessons", tmp_path / "docs"
    written(folder, BARE_LESSON)
    written(folder, BARE_LESSON.replace("05 · Halves", "07 · Thirds"), "07_rope.py")
    out.mkdir()
    for name in ("05_rms_norm-9.svg", "07_rope-9.svg", "09_masks.md"):
        (out / name).write_text("old")
    book_markdown.build(out, folder, lambda line: None, only=[5])
    assert {path.name for path in out.iterdir()} == {"README.md", "05_rms_norm.md", "05_rms_norm-1.svg",
                                                     "07_rope-9.svg"}


def _as_kept():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        test_a_page_keeps_its_outputs_for_the_book_until_its_code_changes(Path(folder))


MUTANTS = [
    Mutant("book_markdown", "        if not there:\n            return None\n", "", _as_kept),
    Mutant("book_markdown", 'svg.replace(INK.format(light="#1c2430", dark="#e4e9ef"), "", 1)', "svg", _as_kept),
]
