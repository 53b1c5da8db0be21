"""Laws of figures in a terminal: what rises rises, log scales stay log scales, and nothing is made up."""

from mutants import Mutant

from minillama.braille import Canvas, draw
from minillama.plots import CONTRAST, OURS, figure


def test_a_dot_lands_where_it_belongs():
    canvas = Canvas(2, 1)
    for x, y in ((0, 0), (1, 1), (0.34, 1), (2, 0), (float("nan"), 0)):
        canvas.dot(x, y, None)
    assert list(canvas.text(False)) == [chr(0x2800 + 0x40 + 0x08) + chr(0x2800 + 0x08)]


def test_a_rising_line_rises_on_a_log_axis_too():
    picture, axes = figure("Doubling", "layer", "size")
    axes.semilogy(range(30), [2.0**i for i in range(30)], color=CONTRAST)
    lines = draw(picture)
    assert lines[0] == "Doubling" and lines[-1].strip() == "up: size"
    firsts = [len(line.split("│")[1]) - len(line.split("│")[1].lstrip("\u2800")) for line in lines if "│" in line]
    assert firsts == sorted(firsts, reverse=True) and len(set(firsts)) > 8, "a straight line, as a power is there"


def test_bars_dots_and_heat_maps_are_drawn_and_an_empty_panel_is_not():
    picture, axes = figure("Bars")
    axes.bar([0, 1], [1, 2], color=OURS)
    assert any("⣿" in line for line in draw(picture)) and any("\033[34m" in line for line in draw(picture, True))
    picture, axes = figure("Map")
    axes.imshow([[0, 1], [1, 0]])
    assert draw(picture)[1:] == ["  ██", "██  "] and draw(picture, True)[1].count("▀") == 30
    picture, axes = figure("Dots")
    axes.scatter([0, 1], [0, 1], color=OURS)
    assert sum(0x2800 < ord(letter) <= 0x28FF for line in draw(picture) for letter in line) == 2
    assert draw(figure("Nothing")[0]) == []
    axes.set_axis_off()
    assert not any("│" in line for line in draw(picture)), "no scale where the figure shows none"


MUTANTS = [Mutant("minillama.braille", "round((1 - y) *", "round(y *", test_a_rising_line_rises_on_a_log_axis_too)]
