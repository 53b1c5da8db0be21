"""Laws of the tour's learning from feedback: nothing is done twice, what is asked was never practised."""

from dataclasses import replace

import pytest
import torch
from mutants import Mutant

import minillama.tour_rlhf
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.rlhf.preferences import Pair
from minillama.tokenizer import train_bpe
from minillama.tour import Road, TourConfig
from minillama.tour_rlhf import (
    ASKED,
    Feedback,
    feedback_stages,
    fingerprint,
    forum_feedback,
    pairs_of,
    prompts_of,
    questions_of,
    verdict,
)
from minillama.transformer import Transformer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"{thread.question} {answer.text}" for thread in forum.threads(0, 200) for answer in thread.answers]
    return train_bpe(texts, 400, hard_vocab_limit=False, progress=False)


def a_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(16, 1, 2, tokenizer.vocab_size, hidden_dim=24, max_seq_len=96)).eval()


@pytest.fixture(scope="module")
def two_walks(tmp_path_factory, tokenizer):
    """The stages twice in one folder, in so few steps that they reach no band: [(road, policy, what was said)]."""
    folder = tmp_path_factory.mktemp("tour")
    tokenizer.save(folder / "tokenizer.model")
    few = replace(minillama.tour_rlhf.LEASHED, iterations=2, batch_size=4, max_new_tokens=8, epochs=2)
    smaller = {"PAIRS": 64, "HELD_OUT_PAIRS": 40, "ASKED": 16, "LEASHED": few}
    walks = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(minillama.tour_rlhf, name, value)
        for _ in range(2):
            road, said = Road(folder, TourConfig(progress=False)), []
            road.say, model = said.append, a_model(tokenizer)
            before = fingerprint(model)
            _, leashed = feedback_stages(road, model, tokenizer, forum_feedback(0))
            walks.append((road, leashed.policy, "\n".join(said)))
            assert fingerprint(model) == before
    return walks


def test_a_second_walk_trains_nothing_again_and_says_the_same(two_walks):
    (first, one, said), (second, two, said_again) = two_walks
    assert "found trained" not in said and said_again.count("found trained in") == 3
    assert [row["got"] for row in second.rows] == [row["got"] for row in first.rows]
    assert second.pages == first.pages and fingerprint(one) == fingerprint(two)


def test_the_stages_say_what_they_found_and_give_back_another_policy(two_walks, tokenizer):
    road, policy, _ = two_walks[0]
    assert [row["stage"] for row in road.rows] == ["reward model", "PPO", "PPO's ratio", "without the leash"]
    assert [row["pass"] for row in road.rows] == [False, False, True, False], "two rounds reach no band but the ratio's"
    assert fingerprint(a_model(tokenizer)) != fingerprint(policy)
    assert sum(page.count("<svg") for page in road.pages) == 3


def test_questions_of_the_exam_are_never_practised():
    for seed in (0, 1):
        practice, asked = questions_of(seed)
        assert len(asked) == len(set(asked)) == ASKED and len(practice) > 300
        assert not set(practice) & set(asked)
    assert questions_of(0) != questions_of(1)


def test_pairs_are_as_many_as_asked_for():
    assert [len(pairs_of("a", n)) for n in (1, 50, 601)] == [1, 50, 601]


def test_without_a_truth_the_stages_say_what_can_be_said_and_what_was_left_out(two_walks, tokenizer):
    known = two_walks[0][0]
    assert known.skipped == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillama.tour_rlhf, "LEASHED", replace(minillama.tour_rlhf.LEASHED, iterations=2, batch_size=4,
                                                              epochs=2))
        road, given = Road(known.out, TourConfig(progress=False)), pairs_of("mine", 60)
        road.say = lambda text: None
        mine = Feedback(given[:40], given[40:], ["how?", "why?"], ["who?", "what?", "when?"], {"pairs": 7}, None, 5)
        feedback_stages(road, a_model(tokenizer), tokenizer, mine)
    assert [row["stage"] for row in road.rows] == ["reward model", "PPO", "PPO's ratio"]
    assert [stage for stage, _ in road.skipped] == ["hidden quality", "without the leash"]
    assert "score " in road.rows[1]["got"] and "quality" not in str(road.rows) + "".join(road.pages)
    assert "3 distinct answers" in road.rows[1]["got"] or "distinct" in road.rows[1]["got"]


def test_the_verdict_counts_what_differs_in_truth_by_the_truth():
    """Of four pairs one is labelled the wrong way round and one is of equals."""
    held_out = [Pair("", "aa", "a"), Pair("", "a", "aaa"), Pair("", "aa", "bb"), Pair("", "aaa", "a")]
    task = Feedback([], held_out, [], [], {}, lambda question, answer: len(answer))
    scores = torch.tensor([2.0, 0.0, 5.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    expected, got, passed, (ceiling, true) = verdict(*scores, task)
    assert (ceiling, true) == (2.5 / 4, pytest.approx(2 / 3)) and not passed
    assert "0.667 in truth, 0.500 by the labels, of 4" in got and "0.625" in expected
    expected, got, passed, nothing = verdict(*scores, replace(task, truth=None))
    assert nothing == () and "0.500 of 4" in got and not passed and "(1.000)" in expected


def test_the_prompt_is_the_beginning_of_what_the_reward_model_reads(tokenizer):
    from minillama.rlhf.train_reward import encode_pairs

    question = questions_of(0)[1][0]
    (whole, _), = encode_pairs([Pair(question, "Good luck!", "No.")], tokenizer)
    prompt, = prompts_of([question], tokenizer)
    assert whole[:len(prompt)] == prompt and whole[-1] == tokenizer.eos_id


MUTANTS = [
    Mutant("minillama.tour_rlhf", "questions[ASKED:]", "questions[1:]",
           test_questions_of_the_exam_are_never_practised),
    Mutant("minillama.tour_rlhf", "n // 3 + 1", "n // 9", test_pairs_are_as_many_as_asked_for),
    Mutant("minillama.rlhf.preferences", "pair_accuracy(high[unequal], low[unequal])", "pair_accuracy(high, low)",
           test_the_verdict_counts_what_differs_in_truth_by_the_truth),
    Mutant("minillama.rlhf.preferences", "torch.where(labelled_well, chosen, rejected), ", "chosen, ",
           test_the_verdict_counts_what_differs_in_truth_by_the_truth),
]
