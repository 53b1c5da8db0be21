"""How small the text of a figure is on a phone: SVG as the book, the lessons' pages and the tour's report show it."""

import re

PAGE, LEAST = 390, 10  # pixels: the width of a phone's page, and what can be read there


def smallest_label(svg):
    """(pixels, label) of the smallest text in an SVG drawn as wide as the page. In a label of several sizes, as 10 with
    an exponent, the largest counts. ValueError if there is no text."""
    width = float(re.search(r'viewBox="\S+ \S+ (\S+)', svg)[1])
    found = []
    for attributes, content in re.findall(r"<text\b([^>]*)>(.*?)</text>", svg, re.DOTALL):
        sizes = re.findall(r"font(?:-size)?: ([\d.]+)px", attributes + content)
        words = " ".join(re.sub(r"<[^>]*>", " ", content).split())
        found += [(max(map(float, sizes)) * PAGE / width, words)] if sizes and words else []
    if not found:
        raise ValueError("the figure has no text")
    return min(found)


def too_small(svg):
    """Sentences on what cannot be read; [] for a figure in order."""
    pixels, label = smallest_label(svg)
    return [f"{label!r} has {pixels:.1f} pixels on a page of {PAGE}, {LEAST} are needed"] if pixels < LEAST else []
