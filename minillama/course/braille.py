"""A matplotlib figure in a terminal: lines, dots and bars in braille characters, pictures in half blocks.

Every character holds 2 x 4 braille dots. What is drawn is taken from the figure's own axes, log scales included;
a figure with nothing of that kind gives no lines, and its reader gets the path and the alt text.
"""

from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS

COLUMNS, ROWS = 60, 10  # characters of one panel
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of U+2800, by row and column
TERMINAL = {OURS.lower(): 34, CONTRAST.lower(): 33, ORACLE.lower(): 32, CONTEXT.lower(): 90}  # ANSI colours
SHADES = " ░▒▓█"


class Canvas:
    """A grid of braille dots, each character with one colour."""

    def __init__(self, columns=COLUMNS, rows=ROWS):
        self.columns, self.rows = columns, rows
        self.bits = [[0] * columns for _ in range(rows)]
        self.colours = [[None] * columns for _ in range(rows)]

    def dot(self, x, y, colour):
        """x from 0 (left) to 1, y from 0 (bottom) to 1; what lies outside is not drawn."""
        if not (0 <= x <= 1 and 0 <= y <= 1):  # a NaN too
            return
        column, row = round(x * (2 * self.columns - 1)), round((1 - y) * (4 * self.rows - 1))
        self.bits[row // 4][column // 2] |= DOTS[row % 4][column % 2]
        self.colours[row // 4][column // 2] = colour

    def line(self, start, end, colour):
        """All dots between two points."""
        (x0, y0), (x1, y1) = start, end
        steps = int(max(abs(x1 - x0) * 2 * self.columns, abs(y1 - y0) * 4 * self.rows, 1))
        for i in range(min(steps, 4000) + 1):
            t = i / min(steps, 4000)
            self.dot(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t, colour)

    def text(self, colour):
        """The rows as text, with ANSI colours if asked for."""
        for bits, colours in zip(self.bits, self.colours, strict=True):
            yield "".join(_tint(chr(0x2800 + b), c if colour else None) for b, c in zip(bits, colours, strict=True))


def draw(picture, colour=False):
    """The figure's panels as lines of text, one panel under the other; an empty list where nothing can be drawn."""
    picture.canvas.draw()  # settles limits and scales
    return [line for axes in picture.axes for line in _panel(axes, colour)]


def _panel(axes, colour):
    images = axes.get_images()
    body = list(_image(images[0], colour)) if images else _lines(axes, colour)
    if not body:
        return
    title = next((t for where in ("left", "center") if (t := axes.get_title(where))), "")
    yield from [title] if title else []
    if images or not axes.axison:
        yield from body
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    marks = {0: f"{top:.4g}", len(body) - 1: f"{bottom:.4g}"}
    width = max(map(len, marks.values()))
    for number, line in enumerate(body):
        yield f"{marks.get(number, ''):>{width}} │{line}"
    ends = f"{left:.4g}", f"{right:.4g}"
    middle = axes.get_xlabel().center(COLUMNS - len(ends[0]) - len(ends[1]))
    yield " " * width + " └" + ends[0] + middle + ends[1]
    yield from [f"{' ' * width}  up: {axes.get_ylabel()}"] if axes.get_ylabel() else []
    names = _names(axes, colour)
    yield from [f"{' ' * width}  {names}"] if names else []


def _lines(axes, colour):
    """Lines, scattered points and bars of one panel on a canvas."""
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    canvas = Canvas()

    def place(points):
        return axes.transLimits.transform(axes.transScale.transform(points))

    drawn = False
    for line in axes.get_lines():
        points = line.get_transform().transform(line.get_xydata())  # in pixels: axhline counts in two systems
        points, shade = axes.transAxes.inverted().transform(points), _ansi(to_hex(line.get_color()))
        drawn = drawn or len(points) > 0
        dots = line.get_linestyle() in ("None", "", " ") or len(points) == 1
        for i, point in enumerate(points):
            if dots:
                canvas.dot(*point, shade)
            elif i:
                canvas.line(points[i - 1], point, shade)
    for dots in axes.collections:
        offsets, colours = dots.get_offsets(), dots.get_facecolor()
        shade = _ansi(to_hex(colours[0])) if len(colours) else None
        for point in place(offsets) if type(dots).__name__ == "PathCollection" else ():
            canvas.dot(*point, shade)
            drawn = True
    for bar in axes.patches:
        if isinstance(bar, Rectangle):
            corners = place([(bar.get_x(), bar.get_y()), (bar.get_x() + bar.get_width(),
                                                         bar.get_y() + bar.get_height())])
            _fill(canvas, *corners.clip(0, 1), _ansi(to_hex(bar.get_facecolor())))
            drawn = True
    return list(canvas.text(colour)) if drawn else []


def _fill(canvas, low, high, shade):
    rows = range(round(low[1] * 4 * canvas.rows), round(high[1] * 4 * canvas.rows))
    for row in rows:
        y = (row + 0.5) / (4 * canvas.rows)
        canvas.line((low[0], y), (high[0], y), shade)


def _image(image, colour):
    """A heat map: two rows of values in one row of half blocks where there is colour, shades of grey without."""
    import numpy as np

    values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), 0.0)
    if values.ndim == 3:
        values = values[..., :3].mean(-1)
    stride = max(1, -(-max(values.shape) // COLUMNS))
    values = values[::stride, ::stride]
    low, high = image.get_clim()
    share = np.clip((values - low) / ((high - low) or 1), 0, 1)
    larger = max(1, COLUMNS // 2 // share.shape[1]) if colour else 1
    share = share.repeat(larger, 0).repeat(larger, 1)
    if not colour:
        for row in share:
            yield "".join(SHADES[int(v * 4.999)] * 2 for v in row)
        return
    share = np.vstack([share, np.zeros((len(share) % 2, share.shape[1]))])
    for upper, lower in zip(share[::2], share[1::2], strict=True):
        yield "".join(f"\033[38;5;{232 + int(23 * u)};48;5;{232 + int(23 * v)}m▀" for u, v in
                      zip(upper, lower, strict=True)) + "\033[0m"


def _names(axes, colour):
    """The texts that stand beside lines, in the colour of what they name."""
    from matplotlib.colors import to_hex

    texts = [(text.get_text().replace("\n", " "), _ansi(to_hex(text.get_color()))) for text in axes.texts]
    return " · ".join(_tint(text, shade if colour else None) for text, shade in texts if text.strip())


def _ansi(colour):
    return TERMINAL.get(colour.lower())


def _tint(text, colour):
    return f"\033[{colour}m{text}\033[0m" if colour else text
