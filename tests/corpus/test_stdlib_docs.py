"""Laws of the standard library's documentation as a corpus: the same each time, parsed not imported, never shared."""

import re
import sys
import time

import pytest
from mutants import Mutant

from minillama.corpus import stdlib_docs
from minillama.corpus.text_files import normalised

SOURCE = '''"""About this module, in a sentence long enough.

A shared   paragraph that all of them carry.
"""
raise SystemExit("imported!")

class Thing:
    r"""A thing, described in words.

        kept indentation

    The end of it.
    """
    if True:
        async def act(self):
            """Act upon the thing, at once."""

def again():
    """A SHARED paragraph that
    all of them carry."""

try:
    pass
except ValueError:
    def short():
        "Too short."
    def inner():
        x = """No documentation but a string, which nobody wants."""
        def nested():
            \'\'\'Nested functions have documentation too.\'\'\'
'''
EXPECTED = [
    "About this module, in a sentence long enough.\n\nA shared   paragraph that all of them carry.",
    "A thing, described in words.\n\n    kept indentation\n\nThe end of it.", "Act upon the thing, at once.",
    "Nested functions have documentation too."]


@pytest.fixture
def folder(tmp_path):
    for name, text in (("b.py", SOURCE), ("a/broken.py", '"""Never seen, as the file is no Python."""\n1 +'),
                       ("test/c.py", '"""Tests are passed over, whatever they say."""'), ("plain.py", "x = 1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_documentation_is_parsed_not_imported_and_repeats_are_dropped(folder):
    assert stdlib_docs.documents(folder) == EXPECTED


def test_a_folder_without_documentation_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no documented Python sources"):
        stdlib_docs.documents(tmp_path)


def test_pythons_own_documentation_is_large_quick_and_never_shared():
    loaded, start = set(sys.modules), time.process_time()
    train, held_out = stdlib_docs.train_and_held_out()
    seconds = time.process_time() - start
    assert not {name for name in set(sys.modules) - loaded if name in ("antigravity", "this", "turtle", "pydoc_data")}
    size = sum(map(len, train))
    assert size > 1_000_000 and 0.02 < sum(map(len, held_out)) / size < 0.12
    ours, theirs = ({normalised(p) for text in side for p in re.split(r"\n\s*\n", text)} for side in (train, held_out))
    assert not ours & theirs
    assert any("target list" in text for text in train + held_out)  # the help topic on assignment: topics.py is in
    assert seconds < 15  # 3 or 4 on an idle core


MODULE = "minillama.corpus.stdlib_docs"


def _on_a_temporary_folder():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name:
        Path(name, "b.py").write_text(SOURCE, encoding="utf-8")
        assert stdlib_docs.documents(name) == EXPECTED


MUTANTS = [
    Mutant(MODULE, "if key and key not in seen:", "if key:", _on_a_temporary_folder),
    Mutant(MODULE, '"body", "orelse", "finalbody", "handlers"', '"body", "orelse", "finalbody"',
           _on_a_temporary_folder),
    Mutant(MODULE, "if len(text) >= SHORTEST:", "if text:", _on_a_temporary_folder),
]
