"""Laws of the pictures of learning from feedback: each says in words what it shows."""

from minillama.tour_rlhf import Exam
from minillama.tour_rlhf_pages import answers_page, hacking_page, ppo_page, reward_page


def history(last_score, last_quality, n=5):
    return [{"iteration": i, "score": last_score * i / (n - 1), "quality": last_quality * i / (n - 1), "sound": 0.5,
             "kl": 1.5 * i, "kl_coefficient": 0.05, "entropy": 0.5, "ended": 1.0} for i in range(n)]


AFTER = Exam(["Good luck!", "<b>"], 2.03, 3.21, 0.95, 5.5, 2)
GAMED = Exam(["Good good", "Good good"], 2.57, 0.44, 0.05, 31.2, 1)


def test_the_reward_page_shows_both_sides_and_the_ceiling():
    page = reward_page([1.0, 2.0, 3.0], [-1.0, 0.0, 1.0], 0.912, 0.907)
    assert page.count("<svg") == 1 and "91.2%" in page and "90.7%" in page and "+2.00" in page and "+0.00" in page


def test_the_ppo_page_has_score_over_kl():
    page = ppo_page(history(2.0, 3.0))
    assert page.index("reward model") < page.index("from the start</") and "6.0 nats" in page


def test_the_hacking_page_tells_the_score_beside_the_truth():
    page = hacking_page(history(2.0, 3.2), history(2.6, 0.4), AFTER, GAMED)
    for number in ("+2.03", "+3.21", "+2.57", "+0.44", "5.5", "31 without", "2 and 1", "Only 5% of them", "leash 95%"):
        assert number in page
    assert page.count("with leash") >= 2 and page.count(">without<") == 3


def test_answers_are_text_not_markup():
    page = answers_page(["q1?", "q2?"], AFTER, AFTER, GAMED)
    assert "&lt;b&gt;" in page and "<b>" not in page
