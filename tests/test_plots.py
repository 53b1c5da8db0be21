"""Laws of the pictures: repeatable bytes, ink from the page, an alt text, no network."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
from mutants import Mutant

from minillama import plots
from minillama.plots import CONTRAST, OURS, bars, heat_maps, learning_curve, show, svg


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


MUTANTS = [
    Mutant("minillama.plots", '"svg.hashsalt": "minillama", ', "", test_the_same_numbers_give_the_same_bytes),
    Mutant("minillama.plots", '.replace(INK, "currentColor")', "",
           test_every_picture_is_valid_xml_with_an_alt_text_and_takes_the_ink_of_its_page),
]
