"""Laws of preferences: votes become scores by the published rule, ties say nothing, bad lines are named."""

import json
import math
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama.corpus import forum
from minillama.evaluate.exam import label_ceiling, order_in_truth
from minillama.rlhf.preferences import (
    Pair,
    read_pairs,
    thread_pairs,
    vote_score,
)


def write_pairs(path, pairs):
    """The file that `read_pairs` reads."""
    Path(path).write_text("".join(json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in pairs), "utf-8")


def thread(*answers, question="q"):
    return forum.Thread(question, tuple(forum.Answer(*answer) for answer in answers))


@pytest.mark.parametrize(("votes", "accepted", "score"), [
    (0, False, 0), (1, False, 1), (2, False, 2), (3, False, 2), (4, False, 2), (5, False, 3), (1023, False, 10),
    (0, True, 1), (7, True, 4), (-1, False, -1), (-50, False, -1), (-1, True, -1)])
def test_votes_become_scores_by_the_published_rule(votes, accepted, score):
    assert vote_score(votes, accepted) == score


def test_pairs_are_all_answers_of_unequal_score_with_the_better_one_first():
    made = thread_pairs(thread(("a", 0, False), ("b", 3, True), ("c", -2, False), ("d", 0, False)))
    assert set(made) == {Pair("q", "b", "a"), Pair("q", "b", "c"), Pair("q", "b", "d"), Pair("q", "a", "c"),
                         Pair("q", "d", "c")}, "a and d are tied and make no pair"
    assert thread_pairs(thread(("a", 3, False), ("b", 4, False))) == []
    assert thread_pairs(thread(("a", 0, False), ("a", 9, False))) == [], "one text is not better than itself"


def test_a_question_gives_ten_pairs_at_most_and_the_seed_says_which():
    long = thread(*((f"answer {i}", 2**i - 1, False) for i in range(7)))  # 21 pairs
    drawn = thread_pairs(long)
    assert len(drawn) == len(set(drawn)) == 10 and drawn == thread_pairs(long) != thread_pairs(long, seed=1)
    assert len(thread_pairs(long, most=100)) == 21


def test_the_forum_never_gives_more_than_ten_pairs_a_thread():
    counts = [len(thread_pairs(t)) for t in forum.threads(0, 100)]
    assert max(counts) <= 10, "five answers make ten pairs"
    assert sum(counts) > 200


def test_the_label_ceiling_is_what_a_judge_who_knows_the_truth_scores():
    quality = {"good": 3, "fair": 1, "bad": -1, "also fair": 1}
    pairs = [Pair("", "good", "bad"), Pair("", "bad", "good"), Pair("", "fair", "bad"), Pair("", "fair", "also fair")]
    assert label_ceiling(pairs, lambda prompt, answer: quality[answer]) == (1 + 0 + 1 + 0.5) / 4


def test_scores_are_held_to_the_truth_whatever_the_labels_say():
    """Right; wrong though the label agrees; nothing to tell; two ties of scores; right against the label."""
    quality = {"good": 3, "fair": 1, "also fair": 1}
    pairs = [Pair("", *two) for two in (("good", "fair"), ("fair", "good"), ("fair", "also fair"), ("good", "fair"),
                                        ("fair", "good"), ("fair", "good"))]
    chosen, rejected = torch.tensor([2.0, 2, 5, 1, 0, 0]), torch.tensor([1.0, 1, 4, 1, 0, 9])
    order = order_in_truth(chosen, rejected, pairs, lambda prompt, answer: quality[answer])
    assert order == pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5)


def test_the_forums_labels_are_noisy_but_mostly_right():
    pairs = [pair for t in forum.threads(3, 80) for pair in thread_pairs(t)]
    ceiling = label_ceiling(pairs, forum.quality)
    error = math.sqrt(ceiling * (1 - ceiling) / len(pairs))
    assert 0.90 - 4 * error < ceiling < 0.91 + 4 * error  # 0.907 over 6,900 pairs of another seed


def test_pairs_written_are_pairs_read(tmp_path):
    pairs = [Pair("wie?", "so \u2028 ä", "\"nein\"\n"), Pair("b", "c", "d")]
    write_pairs(tmp_path / "p.jsonl", pairs)
    assert read_pairs(tmp_path / "p.jsonl") == pairs
    (tmp_path / "q.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt":"p","chosen":"c","rejected":"r","extra":1}\r\n\n')
    assert read_pairs(tmp_path / "q.jsonl") == [Pair("p", "c", "r")]


GOOD = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"}).encode()


@pytest.mark.parametrize(("line", "message"), [
    (b"{", "not JSON"), (b"[" * 5000, "not JSON"), (b"[1]", "a JSON list"),
    (b'{"prompt": "p"}', "field 'chosen' is missing"),
    (GOOD.replace(b'"c"', b"7"), "field 'chosen' is int"), (GOOD.replace(b'"r"', b'" "'), "field 'rejected' is blank"),
    (GOOD.replace(b'"c"', b'"r"'), "the same text"), (GOOD[:-3] + b"\xff\"}", "not UTF-8"),
    (GOOD.replace(b'"p"', b'"' + b"p" * (1 << 20) + b'"'), "more than"),
])
def test_a_bad_line_is_one_line_of_error_with_its_place(tmp_path, line, message):
    (tmp_path / "p.jsonl").write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(tmp_path / "p.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'p.jsonl'}:3: ") and "\n" not in str(error.value)


def test_a_file_without_pairs_is_an_error(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b"\n \n")
    with pytest.raises(ValueError, match="no pair in it"):
        read_pairs(tmp_path / "p.jsonl")


PAIRS_LAW = test_pairs_are_all_answers_of_unequal_score_with_the_better_one_first
MUTANTS = [
    Mutant("minillama.rlhf.preferences", "math.log2(1 + upvotes)", "math.log(1 + upvotes)",
           lambda: test_votes_become_scores_by_the_published_rule(1023, False, 10)),
    Mutant("minillama.rlhf.preferences", "+ bool(accepted)", "",
           lambda: test_votes_become_scores_by_the_published_rule(7, True, 4)),
    Mutant("minillama.rlhf.preferences", "if score_a > score_b else", "if score_a < score_b else", PAIRS_LAW),
    Mutant("minillama.rlhf.preferences", "score_a != score_b and a != b", "a != b", PAIRS_LAW),
    Mutant("minillama.evaluate.exam", "better > worse, better != worse", "better > worse, better == better",
           test_scores_are_held_to_the_truth_whatever_the_labels_say),
    Mutant("minillama.evaluate.exam", "labelled_well, rejected, chosen)", "labelled_well, chosen, chosen)",
           test_scores_are_held_to_the_truth_whatever_the_labels_say),
    Mutant("minillama.rlhf.preferences", "[:most]", "",
           test_a_question_gives_ten_pairs_at_most_and_the_seed_says_which),
]
