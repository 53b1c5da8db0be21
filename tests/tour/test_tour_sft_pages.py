"""Laws of the pictures of fine-tuning: what they show is what was measured."""

import pytest
import torch
from matplotlib.colors import to_hex
from mutants import Mutant
from pictures import panels, parts, taken

from minillama.config import preset
from minillama.plots import CONTEXT, CONTRAST, OURS
from minillama.quant.nf4 import NF4_LEVELS
from minillama.tour import report, tour_pages
from minillama.tour.tour_pages import before_after_page, nf4_page, scaled_weights, tuning_page, tuning_picture
from minillama.transformer import Transformer


class Lessons:
    """Two bits a nat, entropy 10."""

    bits = 10.0

    @staticmethod
    def bits_of(loss):
        return 2 * loss


def test_weights_are_scaled_by_their_block_and_stored_at_the_nearest_level():
    torch.manual_seed(0)
    model = Transformer(preset("tiny", n_layers=1))
    scaled, stored = scaled_weights(model)
    assert len(scaled) == 4 * 96 * 96 + 3 * 96 * 256  # no table, no norm
    assert scaled.view(-1, 64).abs().amax(1).eq(1).all()
    levels = torch.tensor(NF4_LEVELS)
    nearest = levels[(scaled[:, None] - levels).abs().argmin(1)]
    # double quantization moves a block's scale a little: 0.013 is the largest change a weight can see
    assert (stored - nearest).abs().max() < 0.02


def test_the_curves_are_in_bits_an_answer_and_the_words_say_their_ends():
    history = [{"step": 0, "held_out_loss": 20.0}, {"step": 1, "loss": 1.0}, {"step": 2, "held_out_loss": 5.25}]
    page = tuning_page({"full": history, "LoRA": history, "QLoRA": history}, Lessons, 41.5)
    for words in ("needs 40.0 bits for an answer", "full 10.50, LoRA 10.50, QLoRA 10.50", "hold 10.00", "41.5 bits"):
        assert words in page
    assert page.count("<svg ") == 1


def test_answers_stand_before_and_after_and_are_escaped():
    page = before_after_page([("Why <b>?", ("Once upon", False), ("Just so.", True))])
    assert page.index("before: Why &lt;b&gt;?") < page.index("Once upon ...") < page.index("after: ")
    assert "Just so.<" in page and "<b>" not in page


def test_the_curves_show_what_each_way_needs_beyond_the_entropy_on_a_log_axis(monkeypatch):
    """Ends of 0.5, 0.25 and 0 bits above 10: the names stand 14 points apart, in the order of the ends."""
    pictures = taken(monkeypatch, report)
    ends = {"full": 5.25, "LoRA": 5.125, "QLoRA": 5.0}
    histories = {name: [{"step": 0, "held_out_loss": 9.0}, {"step": 1, "loss": 1.0},
                        {"step": 40, "held_out_loss": end}] for name, end in ends.items()}
    heading, sentence, figure, last = parts(tuning_page(histories, Lessons, 18.5))
    said = "full 10.50, LoRA 10.25, QLoRA 10.00"
    assert heading == "Fine-tuning: to answer, and to stop"
    assert f"needs 18.0 bits for an answer; tuned, {said}" in sentence
    assert figure == f"[Bits per held-out answer after each step; at the end {said}]"
    assert "from 18.0 to 18.5 bits" in last
    axes, (shown,) = pictures[0][0].axes[0], panels(pictures[0][0])
    assert (shown["title"], shown["x"], shown["y"]) == ("Three ways down to the entropy of the answers",
                                                       "training step", "bits above the entropy")
    assert shown["lines"] == [([0, 40], [8.0, 0.5], CONTEXT, "-"), ([0, 40], [8.0, 0.25], OURS, "-"),
                              ([0, 40], [8.0, 0.001], CONTRAST, "-")]
    assert shown["texts"] == [("full", (40, 0.5), (5, 27), CONTEXT), ("LoRA", (40, 0.25), (5, 13), OURS),
                              ("QLoRA", (40, 0.001), (5, -1), CONTRAST)]
    assert axes.get_yscale() == "log" and not len(axes.get_yticks(minor=True))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == "0.01 0.1 0.2 0.5 1 2 5 10".split()
    assert shown["xlim"][1] == pytest.approx(1.15 * 42), "room for the names behind the margin of a twentieth"


def test_ticks_are_those_round_numbers_that_lie_inside_the_picture():
    picture = tuning_picture({name: ([0, 9], [60.0, 10.3], OURS) for name in ("a", "b")}, 10.0)
    assert [tick.get_text() for tick in picture.axes[0].get_yticklabels()] == "0.5 1 2 5 10 20 50".split()


def test_the_density_of_the_weights_stands_over_the_sixteen_levels(monkeypatch):
    pictures = taken(monkeypatch, report)
    scaled = torch.tensor([-1.0, -0.5, 0.5, 1.0])
    stored = scaled + torch.tensor([0.0, 0.03, 0.04, 0.0])
    monkeypatch.setattr(tour_pages, "scaled_weights", lambda model: (scaled, stored) if model == "it" else None)
    heading, sentence, figure = parts(nf4_page("it"))
    assert heading == "QLoRA: sixteen levels for a weight" and "3.2% of their size" in sentence  # 0.05 / sqrt(2.5)
    assert "Each block of 64 weights" in sentence
    assert figure == "[Density of 4 weights with the 16 NF4 levels; relative error 0.032]"
    axes, (shown,) = pictures[0][0].axes[0], panels(pictures[0][0])
    assert (shown["title"], shown["x"], shown["y"]) == ("The levels stand where the weights are",
                                                       "weight / largest of its block", "density")
    bars = axes.containers[0]
    assert len(bars) == 121 and (bars[0].get_x(), bars[-1].get_x() + bars[-1].get_width()) == pytest.approx((-1, 1))
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1), "a density has area 1"
    assert {(to_hex(bar.get_facecolor()).upper(), bar.get_alpha()) for bar in bars} == {(OURS, 0.45)}
    highest = max(bar.get_height() for bar in bars)
    (levels,) = axes.collections
    top = 1.05 * highest  # with matplotlib's margin
    for segment, level in zip(levels.get_segments(), NF4_LEVELS, strict=True):
        assert [*segment[0], *segment[1]] == pytest.approx([level, 0, level, -0.09 * top])
    ((words, place, points, colour),) = shown["texts"]
    assert (words, points, colour) == ("16 levels", (6, 0), CONTRAST) and place == pytest.approx((1, -0.045 * top))
    assert shown["ylim"][0] == pytest.approx(-0.1 * top) and to_hex(levels.get_color()[0]).upper() == CONTRAST


def test_four_questions_are_shown_before_and_after_and_who_went_on_has_three_dots():
    rows = [(f"q{i}?", (f"b{i}", False), (f"a{i}", True)) for i in range(5)]
    heading, _, *quotes = parts(before_after_page(rows))
    assert heading == "Before and after"
    assert quotes == [text for i in range(4) for text in (f"before: q{i}? b{i} ...", f"after: q{i}? a{i}")]


def test_what_fills_no_block_of_64_is_left_out_and_a_block_of_zeros_stays_zero():
    model = torch.nn.ModuleDict({"attention": torch.nn.ModuleDict({"wq": torch.nn.Linear(10, 13, bias=False)})})
    weight = torch.arange(130.0).view(13, 10) - 64  # two blocks: -64 to -1, and 0 to 63; 2 numbers are left
    model["attention"]["wq"].weight.data = weight
    scaled, stored = scaled_weights(torch.nn.ModuleDict({"layer": model}))
    assert torch.equal(scaled, torch.cat([torch.arange(-64.0, 0) / 64, torch.arange(0.0, 64) / 63]))
    assert stored.shape == scaled.shape
    model["attention"]["wq"].weight.data = torch.zeros(13, 10)
    assert torch.equal(scaled_weights(torch.nn.ModuleDict({"layer": model}))[0], torch.zeros(128))


MUTANTS = [
    Mutant("minillama.tour.tour_pages", "scaled.append(flat / absmax)", "scaled.append(flat)",
           test_weights_are_scaled_by_their_block_and_stored_at_the_nearest_level),
    Mutant("minillama.tour.tour_pages", 'lessons.bits_of(row["held_out_loss"])', 'row["held_out_loss"]',
           test_the_curves_are_in_bits_an_answer_and_the_words_say_their_ends),
]
