"""Laws of the pictures of learning from feedback: each says in words what it shows."""

import pytest
from matplotlib.colors import to_hex
from pictures import panels, parts, taken

from minillama.evaluate.exam import Exam
from minillama.plots import CONTEXT, CONTRAST, OURS
from minillama.tour import report
from minillama.tour.tour_pages import answers_page, hacking_page, ppo_page, reward_page


def history(last_score, last_quality, n=5):
    return [{"iteration": i, "score": last_score * i / (n - 1), "quality": last_quality * i / (n - 1), "sound": 0.5,
             "kl": 1.5 * i, "kl_coefficient": 0.05, "entropy": 0.5, "ended": 1.0} for i in range(n)]


AFTER = Exam(["Good luck!", "<b>"], 2.03, 5.5, 2, {"quality": 3.21, "sound": 0.95})
GAMED = Exam(["Good good", "Good good"], 2.57, 31.2, 1, {"quality": 0.44, "sound": 0.05})


def test_the_reward_page_shows_both_sides_and_the_ceiling():
    page = reward_page([1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], 0.912, 0.907, 0.9961)
    assert page.count("<svg") == 1 and "91.2%" in page and "90.7%" in page and "99.6%" in page
    assert "+2.00" in page and "+0.00" in page


def test_the_ppo_page_has_score_over_kl():
    page = ppo_page(history(2.0, 3.0))
    assert page.index("reward model") < page.index("from the start</") and "6.0 nats" in page


def test_the_hacking_page_tells_the_score_beside_the_truth():
    page = hacking_page(history(2.0, 3.2), history(2.6, 0.4), AFTER, GAMED)
    said = "+2.03", "+3.21", "+2.57", "+0.44", "5.5", "31 without", "2 and 1", "penalty 95% of", "without it 5%."
    for number in said:
        assert number in page
    assert page.count("with KL penalty") >= 2 and page.count(">without<") == 3


def test_without_a_truth_no_page_speaks_of_one():
    page = reward_page([1.0, 2.0], [-1.0, 0.0], 0.75)
    assert "75.0%" in page and "ceiling" not in page and "truly" not in page
    blind = Exam(["a", "b"], 1.25, 2.0, 2, {})
    page = answers_page(["q1?", "q2?"], {"before": blind, "PPO": blind})
    assert "uality" not in page and "+1.25 (PPO)" in page


def test_answers_are_text_not_markup():
    page = answers_page(["q1?", "q2?"], {"before": AFTER, "PPO": AFTER, "no KL penalty": GAMED})
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("no KL penalty: </span>") == 2 and "+0.44" in page


# ---- what the pictures show

RUN = [{"iteration": i, "score": score, "quality": quality, "sound": sound, "kl": kl, "ended": ended,
        "kl_coefficient": 0.0625 / (i + 1), "entropy": 0.5 - i / 8}
       for i, (score, quality, sound, kl, ended) in enumerate([(0.5, 1.0, 0.875, 0.0, 0.25), (1.0, 1.5, 0.5, 1.0, 0.5),
                                                              (2.25, 3.0, 0.75, 2.0, 0.96)])]


def curves(shown):
    """[(xs, ys, colour)] of a panel, after the line at 0 that each has."""
    first, *others = shown["lines"]
    assert first[1:3] == ([0, 0], CONTEXT)
    return [(xs, ys, colour) for xs, ys, colour, _ in others]


def test_scores_of_both_sides_are_counted_in_the_same_forty_bins_from_the_lowest_to_the_highest(monkeypatch):
    pictures = taken(monkeypatch, report)
    chosen, rejected = [4.0, 2.0, 2.01], [-4.0, 1.0, 1.25]
    heading, sentence, figure, last = parts(reward_page(chosen, rejected, 0.75, 0.9, 0.8))
    assert heading == "A reward model learns what the votes prefer" and "75.0% of 3 unseen pairs" in sentence
    assert figure == "[Scores of chosen and rejected answers, overlapping; means +2.67 and -0.58]"
    assert "chosen have mean +2.67, the rejected -0.58" in last
    axes, (shown,) = pictures[0][0].axes[0], panels(pictures[0][0])
    assert (shown["title"], shown["x"], shown["y"]) == ("The reward model tells better from worse",
                                                       "score, in standard deviations", "answers")
    for bars, scores, colour in zip(axes.containers, (rejected, chosen), (CONTRAST, OURS), strict=True):
        assert len(bars) == 40 and all(bar.get_width() == pytest.approx(0.2) for bar in bars)
        assert bars[0].get_x() == -4 and bars[-1].get_x() == pytest.approx(3.8)
        inside = [sum(bar.get_height() for bar in bars if bar.get_x() <= score <= bar.get_x() + bar.get_width())
                  for score in scores]
        assert sum(bar.get_height() for bar in bars) == 3 and min(inside) >= 1
        assert {to_hex(bar.get_facecolor()).upper() for bar in bars} == {colour}
        assert {bar.get_alpha() for bar in bars} == {0.55}, "where both sides have answers, both are seen"
    names = [(text.get_text(), text.xy, text.get_ha(), text.xycoords, to_hex(text.get_color()).upper())
             for text in axes.texts]
    assert names == [("rejected", (0.02, 0.92), "left", "axes fraction", CONTRAST),
                     ("chosen", (0.98, 0.92), "right", "axes fraction", OURS)]


def test_the_page_of_ppo_draws_score_and_kl_over_the_iterations_and_says_their_ends(monkeypatch):
    pictures = taken(monkeypatch, report)
    heading, sentence, figure, last = parts(ppo_page(RUN))
    assert heading == "PPO: practise what was preferred" and "In 3 rounds the score" in sentence
    assert "from +0.50 to +2.25" in sentence and "ended 2.0 nats away" in sentence
    assert figure == "[Score from +0.50 to +2.25, KL from 0 to 2.0 nats]"
    assert "odds of 7 to 1" in last and "Entropy 0.50 to 0.25" in last and "96% of the last" in last
    assert "from 0.062 to 0.021" in last  # exp(2) is 7.39
    picture = pictures[0][0]
    top, bottom = panels(picture)
    assert curves(top) == [([0, 1, 2], [0.5, 1.0, 2.25], OURS)] and curves(bottom) == [([0, 1, 2], [0, 1, 2], OURS)]
    assert (top["title"], top["x"], top["y"]) == ("PPO raises the score and pays in KL", "", "score")
    assert (bottom["title"], bottom["x"], bottom["y"]) == ("", "iteration", "KL, nats an answer")
    assert [shown["texts"] for shown in (top, bottom)] == [[("reward model", (2, 2.25), (5, 0), OURS)],
                                                           [("from the start", (2, 2.0), (5, 0), OURS)]]
    assert picture.axes[0].get_shared_x_axes().joined(*picture.axes)
    assert top["xlim"] == bottom["xlim"] and top["xlim"][1] == pytest.approx(2 * 1.22 + 1), "room for the names"
    assert tuple(picture.get_size_inches()) == pytest.approx((5.4, 4.0))
    assert {axes.get_lines()[0].get_linewidth() for axes in picture.axes} == {0.6}


def test_the_page_of_hacking_draws_both_runs_in_each_of_three_panels(monkeypatch):
    pictures, free = taken(monkeypatch, report), [{**row, "score": row["score"] + 1} for row in RUN[:2]]
    heading, _, figure, _ = parts(hacking_page(RUN, free, AFTER, GAMED))
    assert heading == "Reward hacking, against a known truth"
    assert figure == ("[With KL penalty: score +2.03, hidden quality +3.21, 95% sound. Without: +2.57, +0.44, 5%]")
    shown = panels(pictures[0][0])
    assert [panel["y"] for panel in shown] == ["reward model's score", "hidden quality", "share of sound answers"]
    assert [panel["x"] for panel in shown] == ["", "", "iteration"]
    for panel, measure in zip(shown, ("score", "quality", "sound"), strict=True):
        assert curves(panel) == [([0, 1, 2], [row[measure] for row in RUN], OURS),
                                 ([0, 1], [row[measure] for row in free], CONTRAST)]
        assert [(words, colour) for words, _, _, colour in panel["texts"]] == [("with KL penalty", OURS),
                                                                             ("without", CONTRAST)]
    assert shown[0]["title"] == "Without the KL penalty the score rises and the text decays"


def test_three_questions_are_shown_each_with_the_answer_of_every_model():
    first, second = (Exam([f"{name}{i}" for i in range(5)], score, 1.0, 5, {"quality": score + 1})
                     for name, score in (("a", 0.5), ("b", 1.5)))
    heading, sentence, *blocks = parts(answers_page([f"q{i}?" for i in range(5)], {"before": first, "PPO": second}))
    assert heading == "Before and after PPO" and "mean of 5: +1.50 (before), +2.50 (PPO)." in sentence
    assert blocks == [text for i in range(3) for text in (f"q{i}?", f"before: a{i}", f"PPO: b{i}")]
