"""Laws of the pictures of learning from feedback: each says in words what it shows."""

from minillama.rlhf.evaluation import Exam
from minillama.tour_rlhf_pages import answers_page, hacking_page, ppo_page, reward_page


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
    for number in ("+2.03", "+3.21", "+2.57", "+0.44", "5.5", "31 without", "2 and 1", "Only 5% of the", "leash 95%"):
        assert number in page
    assert page.count("with leash") >= 2 and page.count(">without<") == 3


def test_without_a_truth_no_page_speaks_of_one():
    page = reward_page([1.0, 2.0], [-1.0, 0.0], 0.75)
    assert "75.0%" in page and "ceiling" not in page and "truly" not in page
    blind = Exam(["a", "b"], 1.25, 2.0, 2, {})
    page = answers_page(["q1?", "q2?"], {"before": blind, "PPO": blind})
    assert "uality" not in page and "+1.25 (PPO)" in page


def test_answers_are_text_not_markup():
    page = answers_page(["q1?", "q2?"], {"before": AFTER, "PPO": AFTER, "no leash": GAMED})
    assert "&lt;b&gt;" in page and "<b>" not in page and page.count("no leash: </span>") == 2 and "+0.44" in page
