"""Laws of figures in a terminal: what rises rises, log scales stay log scales, and nothing is made up."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from mutants import Mutant

from minillama.course.braille import Canvas, draw
from minillama.plots import CONTEXT, CONTRAST, ORACLE, OURS, figure


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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


# ---- which dots there are

PLACES = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)]  # of the bits of U+2800, the Unicode Standard


def dots(lines):
    """{(column, row)} of all braille dots behind the scale, from the upper left one on."""
    rows = [re.sub(r"\033\[[\d;]*m", "", line.split("│")[1]) for line in lines if "│" in line]
    return {(2 * x + dx, 4 * y + dy) for y, row in enumerate(rows) for x, letter in enumerate(row)
            for bit, (dx, dy) in enumerate(PLACES) if ord(letter) >> bit & 1}


def unit_square(title=""):
    picture, axes = figure(title, "middle", "height")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return picture, axes


def at(x, y):
    """The dot of a point: 2 x 60 dots lie side by side, 4 x 10 one above the other."""
    return round(x * 119), round((1 - y) * 39)


def test_a_panel_is_60_by_10_characters_with_its_scale_title_and_names():
    picture, axes = unit_square("A claim")
    axes.plot([0, 1], [0, 0], color=OURS)
    axes.text(0.5, 0.5, "two\nwords", color=OURS)
    axes.text(0.5, 0.5, "more", color="#00ff00")
    assert draw(picture) == ["A claim", "1 │" + 60 * "\u2800", *8 * ["  │" + 60 * "\u2800"], "0 │" + 60 * "⣀",
                             "  └0" + "middle".center(58) + "1", "   up: height", "   two words · more"]
    coloured = draw(picture, True)
    assert coloured[-1] == "   \033[34mtwo words\033[0m · more" and coloured[10] == "0 │" + 60 * "\033[34m⣀\033[0m"


@pytest.mark.parametrize(("colour", "number"), [
    (OURS, 34), (CONTRAST, 33), (ORACLE, 32), (CONTEXT, 90), ("#0f0f0f", 0)])
def test_the_four_colours_have_their_colour_of_the_terminal(colour, number):
    picture, axes = unit_square()
    axes.plot([0, 0], [0, 1], color=colour)
    found = set(re.findall(r"\033\[(\d+)m", "".join(draw(picture, True))))
    assert found == ({str(number), "0"} if number else set()), "blue, yellow, green, grey; others as the text is"


def test_a_line_joins_each_point_with_the_one_before_and_leaves_no_gap():
    picture, axes = unit_square()
    axes.plot([0.2, 0.2, 0.8], [0.9, 0.3, 0.3], color=OURS)
    down = {(at(0.2, 0)[0], row) for row in range(at(0, 0.9)[1], at(0, 0.3)[1] + 1)}
    across = {(column, at(0, 0.3)[1]) for column in range(at(0.2, 0)[0], at(0.8, 0)[0] + 1)}
    assert dots(draw(picture)) == down | across


def test_points_without_a_line_stay_points_and_a_lone_one_is_seen():
    picture, axes = unit_square()
    axes.plot([0.1, 0.45, 0.9], [0.2, 0.8, 0.2], "o", color=OURS)
    axes.plot([0.3], [0.6], color=OURS)
    axes.plot([], [], color=OURS)
    assert dots(draw(picture)) == {at(0.1, 0.2), at(0.45, 0.8), at(0.9, 0.2), at(0.3, 0.6)}
    picture, axes = unit_square()
    axes.axhline(0.3, color=OURS)
    assert dots(draw(picture)) == {(column, at(0, 0.3)[1]) for column in range(120)}, "a level goes from edge to edge"
    picture, axes = unit_square()
    axes.plot([], [], color=OURS)
    assert draw(picture) == [], "a line of no points is nothing"


def test_scattered_points_have_the_colour_of_the_first_and_lie_on_the_scale_of_their_axes():
    picture, axes = unit_square()
    axes.set(xscale="log", xlim=(1, 1000))
    axes.scatter([10, 1000], [0.25, 1], color=CONTRAST)
    assert dots(draw(picture)) == {at(1 / 3, 0.25), at(1, 1)}
    assert "".join(draw(picture, True)).count("\033[33m") == 2
    picture, axes = unit_square()
    axes.scatter([0.25], [0.3], facecolors="none", edgecolors=OURS)
    assert dots(draw(picture)) == {at(0.25, 0.3)} and "\033" not in "".join(draw(picture, True))
    axes.fill_between([0, 1], [0, 0], [1, 1])
    assert dots(draw(picture)) == {at(0.25, 0.3)}, "the corners of an area are no points"


def test_a_bar_is_filled_from_its_foot_to_its_height_and_no_further():
    picture, axes = unit_square()
    axes.bar([0.5], [0.5], width=0.5, color=OURS)
    axes.fill([0, 1, 1], [0, 0, 1])  # a patch that is no bar
    filled = dots(draw(picture))
    assert {row for _, row in filled} == set(range(20, 40))
    assert {column for column, _ in filled} == set(range(at(0.25, 0)[0], at(0.75, 0)[0] + 1))
    assert len(filled) == 20 * len({column for column, _ in filled})
    axes.set_ylim(0.25, 0.5)  # the foot lies below the picture, the top at its edge
    assert {row for _, row in dots(draw(picture))} == set(range(40))
    picture, axes = unit_square()
    axes.bar([0.5], [0.5], bottom=0.25, color=OURS)
    assert {row for _, row in dots(draw(picture))} == set(range(10, 30)), "one that stands on another"


def test_two_panels_stand_one_under_the_other():
    picture, panels = plt.subplots(2, 1)
    for axes, title in zip(panels, ("first", "second"), strict=True):
        axes.set_title(title)  # centred, as matplotlib does it
        axes.plot([0, 1])
    lines = draw(picture)
    assert lines[0] == "first" and lines[len(lines) // 2] == "second" and "up:" not in "".join(lines)


# ---- heat maps

def mapped(values, colour=False, **limits):
    picture, axes = figure("")
    axes.imshow(values, **limits)
    return draw(picture, colour)


def test_shades_go_from_the_least_to_the_largest_of_the_map_and_stop_there():
    assert mapped([[2.0, 2.5, 3.0, 3.5, 4.0]]) == ["  ░░▒▒▓▓██"]
    assert mapped([[1.0, 2.5, 3.0, 9.0]], vmin=2, vmax=4) == ["  ░░▒▒██"]
    assert mapped([[7.0, 7.0]]) == ["    "] and mapped(np.ma.masked_invalid([[np.nan, 1, 0.5, 0]])) == ["  ██▒▒  "]


def test_a_map_in_colour_has_two_rows_in_one_and_fills_half_the_width():
    (line,) = mapped([[0.0, 1.0], [1.0, 0.5]], True)[:1]
    assert len(mapped([[0.0, 1.0], [1.0, 0.5]], True)) == 15, "2 rows, each 15 times, two in one line"
    cells = re.findall(r"\033\[38;5;(\d+);48;5;(\d+)m▀", line)
    assert len(cells) == 30 and set(cells[:15]) == {("232", "232")} and set(cells[15:]) == {("255", "255")}
    wide = mapped([[0.0] * 30, [1.0] * 30, [0.5] * 30], True)
    assert wide == [30 * "\033[38;5;232;48;5;255m▀" + "\033[0m", 30 * "\033[38;5;243;48;5;232m▀" + "\033[0m"]


def test_a_large_map_is_thinned_to_the_width_and_a_picture_is_as_bright_as_its_three_colours():
    assert [len(line) for line in mapped(np.eye(60))] == 60 * [120]
    assert [len(line) for line in mapped(np.eye(61))] == 31 * [62]
    assert len(mapped(np.eye(180)[:, :3])) == 60 and len(mapped(np.eye(3, 130))[0]) == 2 * 44
    rgba = np.array([[[1.0, 1.0, 1.0, 0.0], [1.0, 0.5, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], [0.9, 0.0, 0.0, 1.0]]])
    assert mapped(rgba, vmin=0, vmax=1) == ["██▒▒  ░░"]


MUTANTS = [Mutant("minillama.course.braille", "round((1 - y) *", "round(y *",
                  test_a_rising_line_rises_on_a_log_axis_too)]
