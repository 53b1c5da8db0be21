"""Laws of the pictures: repeatable bytes, ink from the page, an alt text, no network."""

import re
import struct
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from mutants import Mutant
from pictures import panels

from minillama import plots
from minillama.plots import CONTRAST, INK, ORACLE, OURS, bars, figure, heat_maps, learning_curve, show, svg


def curve():
    falling = {"held-out": ([0, 10, 20], [6.0, 2.0, 1.1], OURS)}
    return learning_curve("Loss falls to the entropy", falling, 1.0, "entropy")


def test_the_same_numbers_give_the_same_bytes():
    assert svg(curve(), "a") == svg(curve(), "a")


def test_every_picture_is_valid_xml_with_an_alt_text_and_takes_the_ink_of_its_page():
    maps = heat_maps("Heads look back", {"head 0": np.tril(np.full((3, 3), 0.5))}, ["a", "<b>", "&"])
    for picture in (curve(), bars("Fewer bits", [("ours", 2.0, OURS), ("xz", 2.5, CONTRAST)], "bits"), maps):
        text = svg(picture, 'falls from 6 to 1 & "ends" <there>')
        assert ElementTree.fromstring(text).attrib["aria-label"] == 'falls from 6 to 1 & "ends" <there>'
        assert "currentColor" in text and "#123456" not in text
        fixed = [word for word in re.findall(r"<text style=\"([^\"]*)", text) if "fill:" not in word]
        assert not fixed and "#000000" not in text, "black ink vanishes on a dark page"


def test_a_picture_carries_no_date_and_no_address_but_the_names_of_its_xml_spaces():
    text = svg(curve(), "a").replace("http://www.w3.org/", "").replace("https://www.w3.org/", "")
    assert "http" not in text and "<dc:date>" not in text


def test_a_shown_picture_goes_to_the_receiver_or_into_a_file_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "_shown", set())
    show(curve(), "falls to 1.1")
    show(curve(), "again")
    files = sorted(tmp_path.glob("out/lessons/*.png"))
    assert len(files) == 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    assert "falls to 1.1" in capsys.readouterr().out
    received = []
    monkeypatch.setattr(plots, "_receiver", lambda picture, alt: received.append(alt))
    show(curve(), "for the book")
    assert received == ["for the book"] and len(list(tmp_path.glob("out/lessons/*.png"))) == 2


def test_a_file_is_named_for_the_program_and_large_and_white_enough_to_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "_shown", set())
    monkeypatch.setattr(sys, "argv", [""])
    plt.close("all")
    show(curve(), "a")
    monkeypatch.setattr(sys, "argv", ["lessons/07_rope.py"])
    show(curve(), "b")
    (tmp_path / "out/lessons/07_rope-9.png").touch()
    assert {path.name for path in tmp_path.glob("out/lessons/*")} == {"figure-1.png", "07_rope-1.png", "07_rope-9.png"}
    path = tmp_path / "out/lessons/figure-1.png"
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (594, 330)  # 5.4 x 3.0 inches of 110 dots
    pixels = plt.imread(path)
    assert pixels.shape[2] == 3 or (pixels[..., 3] == 1).all(), "a figure on a dark desktop stays readable"
    assert (pixels[0, 0, :3] == 1).all() and not plt.get_fignums(), "pictures that were shown are closed"


def test_text_stands_in_the_house_style():
    picture, axes = figure("A claim", "steps", "bits", figsize=(4.0, 2.0))
    assert tuple(picture.get_size_inches()) == (4.0, 2.0) and tuple(figure("")[0].get_size_inches()) == (5.4, 3.0)
    assert (axes.get_title("left"), axes.get_xlabel(), axes.get_ylabel()) == ("A claim", "steps", "bits")
    sides = ("left", "bottom", "top", "right")
    assert [axes.spines[side].get_visible() for side in sides] == [True, True, False, False]
    assert axes._left_title.get_fontsize() == 11 and axes.xaxis.label.get_fontsize() == 10
    assert not any(grid.get_visible() for grid in axes.get_xgridlines()) and picture.get_layout_engine() is not None
    with plt.rc_context(plots.STYLE):
        (drawn,) = axes.plot([0, 1])
        assert drawn.get_linewidth() == 1.8 and axes.legend(["a"]).get_frame_on() is False
    plt.close("all")
    text = svg(figure("A claim")[0], "a")
    assert not plt.get_fignums(), "who has the text needs the figure no longer"
    assert ">A claim</text>" in text and "fill: #ffffff" not in text, "letters stay letters, and the page shows through"


def test_a_learning_curve_shows_its_numbers_from_zero_and_leaves_room_for_names():
    (shown,) = panels(curve())
    assert (shown["title"], shown["x"], shown["y"]) == ("Loss falls to the entropy", "training step",
                                                       "bits per character")
    assert shown["lines"] == [([0, 10, 20], [6.0, 2.0, 1.1], OURS, "-"), ([0, 1], [1.0, 1.0], ORACLE, "--")]
    assert shown["texts"] == [("held-out", (20, 1.1), (5, 8), OURS), ("entropy", (0, 1.0), (4, -11), ORACLE)]
    assert shown["xlim"] == pytest.approx((-0.4, 20.4 * 1.18)) and shown["ylim"][0] == 0 < 6 < shown["ylim"][1] < 6.5
    assert len(panels(learning_curve("", {"a": ([0, 1], [3, 2], OURS)}))[0]["lines"]) == 1, "without a level no line"


@pytest.mark.parametrize(("values", "level", "ticks", "bottom"), [
    ([6.0, 0.9], 0.4, "0.1 0.2 0.5 1 2 5", 0.3), ([1.8, 1.2], None, "0.1 0.2 0.5 1 2", 0.75),
    ([3.0, 0.2], 1.0, "0.1 0.2 0.5 1 2", 0.15), ([0.6, 0.2], 0.1, "0.1 0.2 0.5", 0.075)])
def test_a_fall_by_large_factors_is_read_off_ticks_up_to_its_top_and_reaches_below_its_level(values, level, ticks,
                                                                                            bottom):
    flat = 2 * [max(values)]
    picture = learning_curve("", {"a": ([0, 9], values, OURS), "b": ([0, 9], flat, CONTRAST)}, level, "", log=True)
    axes = picture.axes[0]
    picture.canvas.draw()
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ticks.split() and axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(bottom) and not len(axes.get_yticks(minor=True))


def test_bars_are_as_long_as_their_values_from_the_top_down():
    picture = bars("Fewer bits", [("ours", 2.0, OURS), ("xz", 2.504, CONTRAST)], "bits")
    (shown,), axes = panels(picture), picture.axes[0]
    found = [(bar.get_width(), round(bar.get_height(), 9), to_hex(bar.get_facecolor()).upper()) for bar in axes.patches]
    assert found == [(2.0, 0.6, OURS), (2.504, 0.6, CONTRAST)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["ours", "xz"]
    assert axes.transData.transform((0, 0))[1] > axes.transData.transform((0, 1))[1], "the first stands above"
    assert shown["texts"] == [("2.00", (2.0, 0), (4, 0), INK), ("2.50", (2.504, 1), (4, 0), INK)]
    assert shown["xlim"] == pytest.approx((0, 2.504 * 1.16)) and (shown["title"], shown["x"]) == ("Fewer bits", "bits")
    assert tuple(picture.get_size_inches()) == pytest.approx((5.4, 0.5 + 2 * 0.42))


def test_heat_maps_go_from_the_page_to_blue_between_0_and_1_and_name_each_row_and_column():
    weights = np.array([[1.0, 0.0], [0.25, 0.5]])
    picture = heat_maps("Heads", {"one": weights, "two": weights.T, "three": weights}, ["a", "b"])
    assert tuple(picture.get_size_inches()) == pytest.approx((5.4, 5.28)) and picture.get_suptitle() == "Heads"
    *panels, bar = picture.axes
    assert [axes.get_title("left") or axes.get_title() for axes in panels] == ["one", "two", "three"]
    assert bar.get_xlabel() == "attention weight" and bar.get_xlim() == (0, 1)
    assert panels[-1].get_xlabel() == "token that is read"
    assert {axes.get_ylabel() for axes in panels} == {"token that asks"}
    for axes, wanted in zip(panels, (weights, weights.T, weights), strict=True):
        (image,) = axes.get_images()
        assert (image.get_array() == wanted).all() and image.get_clim() == (0, 1)
        assert image.get_interpolation() == "nearest" and to_hex(image.cmap(1.0)).upper() == OURS
        assert image.cmap(0.0)[3] == 0 and image.cmap(1.0)[3] == 1 and to_hex(image.cmap(0.0)).upper() == OURS
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
        assert list(axes.get_xticks()) == list(axes.get_yticks()) == [0, 1]
        assert axes.get_xticklabels()[0].get_rotation() == 90 and axes.get_xticklabels()[0].get_fontsize() == 10
        assert axes._left_title.get_fontsize() == 10 and axes.xaxis.get_ticklines()[0].get_markersize() == 0
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    assert picture._suptitle.get_position()[0] == 0.01 and picture._suptitle.get_fontsize() == 11


MUTANTS = [
    Mutant("minillama.plots", '"svg.hashsalt": "minillama", ', "", test_the_same_numbers_give_the_same_bytes),
    Mutant("minillama.plots", '.replace(INK, "currentColor")', "",
           test_every_picture_is_valid_xml_with_an_alt_text_and_takes_the_ink_of_its_page),
]
