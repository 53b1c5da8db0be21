"""What a matplotlib figure shows, as plain values: tests of pictures read what was drawn, not only that it was."""

import html
import re

from matplotlib.colors import to_hex


def panels(picture):
    """One dict for each panel, in order."""
    picture.canvas.draw()
    return [panel(axes) for axes in picture.axes]


def panel(axes):
    return {"title": axes.get_title("left"), "x": axes.get_xlabel(), "y": axes.get_ylabel(),
            "xlim": axes.get_xlim(), "ylim": axes.get_ylim(), "lines": [line(one) for one in axes.get_lines()],
            "texts": [text(one) for one in axes.texts]}


def line(drawn):
    """(xs, ys, colour, style)"""
    xs, ys = drawn.get_data()
    return list(xs), list(ys), to_hex(drawn.get_color()).upper(), drawn.get_linestyle()


def text(drawn):
    """(words, the place they belong to, points from there, colour)"""
    return drawn.get_text(), tuple(drawn.xy), drawn.xyann, to_hex(drawn.get_color()).upper()


def taken(monkeypatch, module):
    """The list to which the pictures of a page go, as (picture, alt), not into SVG; `[alt]` stands for it."""
    pictures = []
    monkeypatch.setattr(module, "svg", lambda picture, alt: pictures.append((picture, alt)) or f"<p>[{alt}]</p>")
    return pictures


def parts(page):
    """The texts of a page of the report: heading, sentence, then each figure's mark, quote and caption."""
    return [html.unescape(re.sub(r"<[^>]*>", "", part)).strip()
            for part in re.split(r"</h2>|</p>|</blockquote>", page) if part.strip()]
