"""`run.py docs`: the docstrings of the package as pages, out/api/index.html, made by pdoc (the `docs` extra)."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_pages(out):
    """Write the pages of every module into a folder and return the first; ValueError where pdoc is not installed."""
    try:
        import pdoc
    except ImportError:
        raise ValueError("the API pages need pdoc, which is not here: "
                         f"{sys.executable} -m pip install 'pdoc>=15'") from None
    pdoc.render.configure(docformat="markdown")
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "minillama").rglob("[!_]*.py")]
    pdoc.pdoc("minillama", *(".".join(path.parts) for path in sorted(paths)), output_directory=Path(out))
    return Path(out, "index.html")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="run.py docs", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="out/api", metavar="DIR", help="where to (default: %(default)s)")
    chosen = parser.parse_args(argv)
    try:
        print(write_pages(chosen.out))
    except ValueError as error:
        parser.exit(2, f"run.py docs: {error}\n")


if __name__ == "__main__":
    main()
