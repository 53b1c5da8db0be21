"""Pictures of lesson 38: what the busiest process of an all-reduce sends, and what a process of ZeRO's stages holds."""

from minillama.plots import CONTRAST, INK, ORACLE, OURS, WIDTH, figure, label_end


def all_reduce(title, counted):
    """Vectors that the busiest process sends: lines by the formulas, dots {("naive" or "ring", P): as counted}."""
    picture, axes = figure(title, "processes", "vectors that the busiest sends")
    for name, colour, numbers, sent in (("naive", CONTRAST, range(2, 10), lambda P: P - 1),
                                        ("ring", OURS, range(2, 17), lambda P: 2 * (P - 1) / P)):
        line = [sent(P) for P in numbers]
        axes.plot(numbers, line, color=colour)
        label_end(axes, numbers, line, name, colour)
        dots = [(P, value) for (kind, P), value in counted.items() if kind == name]
        axes.plot(*zip(*dots, strict=True), "o", color=colour)
    axes.set(ylim=(0, 8.6), xlim=(1.4, 17.8), xticks=(2, 4, 8, 16))
    return picture


def memory(title, rows, unit):
    """Stacked bars {stage: (weights, gradients, Adam's means)}, the sum behind each, names in the first."""
    picture, axes = figure(title, unit, figsize=(WIDTH, 2.9))
    left = [0.0] * len(rows)
    for i, (name, colour) in enumerate((("weights", OURS), ("gradients", CONTRAST), ("Adam", ORACLE))):
        values = [parts[i] for parts in rows.values()]
        axes.barh(list(rows), values, left=left, color=colour, height=0.6)
        axes.text(left[0] + values[0] / 2, 0, name, color="white", ha="center", va="center")
        left = [before + value for before, value in zip(left, values, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(f"{total:.0f}", (total, place), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
    axes.invert_yaxis()
    axes.set_xlim(right=max(left) * 1.14)
    return picture
