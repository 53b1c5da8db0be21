"""Pictures: one style, few colours with a fixed meaning, and SVG that takes the ink of the page it stands on."""

import contextlib
import io
import re
import sys
from pathlib import Path

OURS, CONTRAST, ORACLE, CONTEXT = "#3B7DD8", "#E07B39", "#2FA37C", "#7A8794"
INK = "#123456"  # placeholder: becomes currentColor, so that a picture is dark on light pages and light on dark ones
WIDTH = 5.4  # inches: on a page of 390 pixels, as a phone's, text of 10 points has 10 pixels then
STYLE = {
    "figure.figsize": (WIDTH, 3.0), "figure.constrained_layout.use": True, "savefig.transparent": True,
    "svg.fonttype": "none", "svg.hashsalt": "minillama", "font.family": "sans-serif", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 11,
    "axes.grid": False, "lines.linewidth": 1.8, "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color",
                     "ytick.color"), INK),
}


@contextlib.contextmanager
def house_style():
    """Within it, matplotlib's pyplot draws in the house style, without a window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        yield plt


def figure(title, xlabel="", ylabel="", **size):
    """A figure of one panel in the house style; draw on the returned axes, then give the figure to `svg`."""
    with house_style() as plt:
        picture, axes = plt.subplots(**size)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return picture, axes


_receiver = None  # set by the lesson runner and the book: called with (picture, alt)


def show(picture, alt):
    """What a lesson ends a figure with: hands it to the runner or the book; run by itself, the lesson leaves a PNG
    in out/lessons/ and says where. `alt` is the claim with its number, for those who do not see the picture."""
    if _receiver is not None:
        _receiver(picture, alt)
        return
    lesson = Path(sys.argv[0]).stem or "figure"
    path = next(p for n in range(1, 1000) if (p := Path(f"out/lessons/{lesson}-{n}.png")) not in _shown)
    _shown.add(path)
    print(f"figure: {save_png(picture, path)}: {alt}")


_shown: set[Path] = set()  # files of this run, so that its second figure does not overwrite its first


def save_png(picture, path):
    """Write the figure for people without a browser at hand, and close it; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with house_style() as plt:
        picture.savefig(path, dpi=110, facecolor="white", transparent=False)
        plt.close(picture)
    return path


def svg(picture, alt):
    """The figure as inline SVG with an alt text, its ink turned to currentColor; same input, same bytes."""
    buffer = io.StringIO()
    with house_style() as plt:
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(picture)
    text = buffer.getvalue()
    text = text[text.index("<svg"):].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def label_end(axes, xs, ys, text, colour, dy=0):
    """The name of a line, written at its end instead of in a legend."""
    axes.annotate(text, (xs[-1], ys[-1]), xytext=(5, dy), textcoords="offset points", color=colour, va="center")


def learning_curve(title, curves, level=None, level_name="", unit="bits per character", log=False):
    """Curves {name: (steps, values, colour)} falling towards a level; `log` shows a fall by large factors."""
    picture, axes = figure(title, "training step", unit)
    for name, (steps, values, colour) in curves.items():
        axes.plot(steps, values, color=colour)
        label_end(axes, steps, values, name, colour, dy=8)
    if level is not None:
        axes.axhline(level, color=ORACLE, linestyle="--", linewidth=1.2)
        axes.annotate(level_name, (0, level), xytext=(4, -11), textcoords="offset points", color=ORACLE)
    axes.margins(x=0.02)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.18)
    if log:
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5) if tick < 1.5 * axes.get_ylim()[1]]
        axes.set_yscale("log")
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0.75 * min(level or 1, *(min(values) for _, values, _ in curves.values())))
    else:
        axes.set_ylim(bottom=0)
    return picture


def bars(title, rows, unit):
    """Horizontal bars [(name, value, colour)], the value written behind each."""
    picture, axes = figure(title, unit, figsize=(WIDTH, 0.5 + 0.42 * len(rows)))
    names, values, colours = zip(*rows, strict=True)
    axes.barh(names, values, color=colours, height=0.6)
    for place, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
    axes.invert_yaxis()
    axes.set_xlim(right=max(values) * 1.16)
    return picture


def column_of_panels(title, ylabels):
    """A figure of panels one above the other that share the iterations: (figure, axes)."""
    with house_style() as plt:
        picture, panels = plt.subplots(len(ylabels), 1, figsize=(WIDTH, 2.0 * len(ylabels)), sharex=True)
        panels[0].set_title(title)
        for axes, name in zip(panels, ylabels, strict=True):
            axes.set_ylabel(name)
            axes.axhline(0, color=CONTEXT, linewidth=0.6)
        panels[-1].set_xlabel("iteration")
    return picture, panels


def heat_maps(title, maps, labels):
    """Attention maps {name: (T, T) array}, one above the other: each row is a token that asks, each column one that is
    read."""
    from matplotlib.colors import LinearSegmentedColormap

    to_blue = LinearSegmentedColormap.from_list("ours", [OURS + "00", OURS + "ff"])
    side = 0.18 * len(labels) + 1.2  # inches: 13 points for a row, and the labels
    with house_style() as plt:
        picture, panels = plt.subplots(len(maps), 1, figsize=(WIDTH, side * len(maps) + 0.6), squeeze=False)
        picture.suptitle(title, x=0.01, ha="left", fontsize=11)
        for axes, (name, weights) in zip(panels[:, 0], maps.items(), strict=True):
            image = axes.imshow(weights, cmap=to_blue, vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(name, fontsize=10)
            axes.set_xticks(range(len(labels)), labels, rotation=90)
            axes.set_yticks(range(len(labels)), labels)
            axes.tick_params(length=0)
            axes.set_ylabel("token that asks")
        panels[-1, 0].set_xlabel("token that is read")
        bar = picture.colorbar(image, ax=list(panels[:, 0]), label="attention weight", location="bottom",
                               aspect=40)
        bar.solids.set_rasterized(True)  # one image, not 256 shapes with gaps between them
    return picture
