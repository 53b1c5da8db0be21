"""Python's own documentation as real text: on every machine, offline, the same for one Python installation.

The sources of the standard library are parsed, never imported: all documentation strings, and the help topics of
`pydoc_data/topics.py`. A paragraph that occurred before (up to case and spacing) is dropped, so that no boilerplate
stands in training and held-out text alike.
"""

import ast
import inspect
import os
import re
import sysconfig
from pathlib import Path

from minillama.corpus.text_files import normalised, split

SKIP = {"test", "tests", "encodings", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo",
        "__pycache__"}
SHORTEST = 20  # characters; shorter strings ("Return x.") teach little and repeat across modules
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def documents(root=None):
    """All documents as strings, files in the order of their names; a few seconds.

    `root` is a folder of Python sources, the running Python's standard library by default. FileNotFoundError if it
    holds no sources (some installations ship compiled files only).
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    seen, found = set(), []
    for path in _sources(root):
        for raw in _strings(path):
            text = _without_repeats(raw, seen)
            if len(text) >= SHORTEST:
                found.append(text)
    if not found:
        raise FileNotFoundError(f"{root} holds no documented Python sources: pass a Python's Lib folder as `root`")
    return found


def train_and_held_out(root=None):
    """(train, held-out) lists of documents, about 95 to 5, split by a hash of each document's own text."""
    return split(documents(root))


def _sources(root):
    """All .py files in the order of their paths, never entering the folders in SKIP (site-packages may be huge)."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIP)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _strings(path):
    """Raw documentation strings of one file in the order of their lines; none where it is not this Python's."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source and path.name != "topics.py":
        return []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and files with planted errors
        return []
    if path.name == "topics.py" and path.parent.name == "pydoc_data":
        pages = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        return [page.value for page in pages if "\n" in page.value]
    return list(_docstrings(tree))


def _docstrings(node):
    """Walk statements only: documentation never hides inside an expression, and most nodes are expressions."""
    if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
        yield text
    for field in ("body", "orelse", "finalbody", "handlers"):
        for child in getattr(node, field, ()):
            if isinstance(child, (ast.stmt, ast.ExceptHandler)):
                yield from _docstrings(child)


def _without_repeats(raw, seen):
    """The text with even indentation and line ends, less the paragraphs in `seen`, to which its own are added."""
    text = inspect.cleandoc(raw).replace("\r", "").encode("utf-8", "ignore").decode("utf-8")
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        key = normalised(paragraph)
        if key and key not in seen:
            seen.add(key)
            kept.append("\n".join(line.rstrip() for line in paragraph.splitlines()))
    return "\n\n".join(kept)
