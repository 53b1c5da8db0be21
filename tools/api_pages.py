"""`run.py docs`: the docstrings of the package as pages, out/api/index.html, made by pdoc (the `docs` extra)."""

import argparse
import sys
from pathlib import Path


def write_pages(out):
    """Write the pages of every module into a folder and return the first; ValueError where pdoc is not installed."""
    try:
        import pdoc
    except ImportError:
        raise ValueError("the API pages need pdoc, which is not here: "
                         f"{sys.executable} -m pip install 'pdoc>=15'") from None
    pdoc.render.configure(docformat="markdown")
    pdoc.pdoc("minillama", output_directory=Path(out))
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
