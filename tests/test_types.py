"""The package's types and its API pages, checked by the tools that read them."""

import subprocess
import sys
from pathlib import Path

import api_pages
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_the_type_checker_is_content(tmp_path):
    """With pyproject.toml's settings: types that are written down hold, and the flat core writes all of them down."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_pdoc_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pdoc", None)
    with pytest.raises(SystemExit) as stopped:
        api_pages.main([])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.startswith("run.py docs: the API pages need pdoc") and said.count("\n") == 1
    assert "-m pip install 'pdoc>=15'" in said


@pytest.mark.long
def test_every_module_has_a_page(tmp_path, capsys):
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    api_pages.main(["--out", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    for path in (ROOT / "minillama").rglob("[!_]*.py"):
        page = (tmp_path / path.relative_to(ROOT)).with_suffix(".html")
        assert page.exists(), page
