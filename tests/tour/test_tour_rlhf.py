"""Laws of the tour's learning from feedback: nothing is done twice, what is asked was never practised."""

from dataclasses import replace

import pytest
import torch
from mutants import Mutant

import minillama.tour.tour_rlhf
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.evaluate.exam import Exam, verdict
from minillama.rlhf.preferences import Pair
from minillama.tokenizer import train_bpe
from minillama.tour.tour import TourConfig, TourReport
from minillama.tour.tour_rlhf import (
    ASKED,
    Feedback,
    feedback_stages,
    forum_feedback,
    pairs_of,
    prompts_of,
    questions_of,
)
from minillama.train.resume import crc_of
from minillama.transformer import Transformer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"{thread.question} {answer.text}" for thread in forum.threads(0, 200) for answer in thread.answers]
    return train_bpe(texts, 400, hard_vocab_limit=False, progress=False)


def fingerprint(model):
    return crc_of(model.state_dict().values())


def a_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(16, 1, 2, tokenizer.vocab_size, hidden_dim=24, max_seq_len=96)).eval()


@pytest.fixture(scope="module")
def two_walks(tmp_path_factory, tokenizer):
    """The stages twice in one folder, in so few steps that they reach no band: [(report, policy, what was said)]."""
    folder = tmp_path_factory.mktemp("tour")
    tokenizer.save(folder / "tokenizer.model")
    few = replace(minillama.tour.tour_rlhf.PENALIZED, iterations=2, batch_size=4, max_new_tokens=8, epochs=2)
    smaller = {"PAIRS": 64, "HELD_OUT_PAIRS": 40, "ASKED": 16, "PENALIZED": few}
    walks = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(minillama.tour.tour_rlhf, name, value)
        for _ in range(2):
            report, said = TourReport(folder, TourConfig(progress=False)), []
            report.say, model = said.append, a_model(tokenizer)
            before = fingerprint(model)
            _, penalized = feedback_stages(report, model, tokenizer, forum_feedback(0))
            walks.append((report, penalized.policy, "\n".join(said)))
            assert fingerprint(model) == before
    return walks


def test_a_second_walk_trains_nothing_again_and_says_the_same(two_walks):
    (first, one, said), (second, two, said_again) = two_walks
    assert "found trained" not in said and said_again.count("found trained in") == 3
    assert [row["got"] for row in second.rows] == [row["got"] for row in first.rows]
    assert second.pages == first.pages and fingerprint(one) == fingerprint(two)


def test_the_stages_say_what_they_found_and_give_back_another_policy(two_walks, tokenizer):
    report, policy, _ = two_walks[0]
    assert [row["stage"] for row in report.rows] == ["reward model", "PPO", "PPO's ratio", "without the KL penalty"]
    assert [row["pass"] for row in report.rows] == [False, False, True, False], "two rounds reach one band"
    assert fingerprint(a_model(tokenizer)) != fingerprint(policy)
    assert sum(page.count("<svg") for page in report.pages) == 3


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
        few = replace(minillama.tour.tour_rlhf.OWN_PPO, iterations=2, batch_size=4, epochs=2)
        patch.setattr(minillama.tour.tour_rlhf, "OWN_PPO", few)
        report, given = TourReport(known.out, TourConfig(progress=False)), pairs_of("mine", 60)
        report.say = lambda text: None
        mine = Feedback(given[:40], given[40:], ["how?", "why?"], ["who?", "what?", "when?"], {"pairs": 7}, None, 5)
        feedback_stages(report, a_model(tokenizer), tokenizer, mine)
    assert [row["stage"] for row in report.rows] == ["reward model", "PPO", "PPO's ratio"]
    assert [stage for stage, _ in report.skipped] == ["hidden quality", "without the KL penalty"]
    assert "score " in report.rows[1]["got"] and "quality" not in str(report.rows) + "".join(report.pages)
    assert "3 distinct answers" in report.rows[1]["got"] or "distinct" in report.rows[1]["got"]


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


# ---- the bands, each at its border

def exam(score, kl, distinct, quality=None, sound=0.5):
    return Exam(["a", "b"], score, kl, distinct, {} if quality is None else {"quality": quality, "sound": sound})


@pytest.fixture
def report(tmp_path):
    report, said = TourReport(tmp_path, TourConfig(progress=False)), []
    report.say, report.said = said.append, said
    return report


def rows_of(monkeypatch, report, before, after, ratios=(1.0, 1.0), truth=forum.quality):
    """What the stage of PPO says of a run that ended so."""
    row = {"score": 0.0, "kl": 1.0, "kl_coefficient": 0.1, "entropy": 0.5, "ended": 1.0}
    history = [{**row, "iteration": i, "first_ratio": ratio} for i, ratio in enumerate(ratios)]
    run = minillama.tour.tour_rlhf.Practice(None, before, after, history)
    monkeypatch.setattr(minillama.tour.tour_rlhf, "train_or_load_ppo", lambda *given: run)
    feedback = Feedback([], [], [], ["who?", "what?"], {}, truth)
    assert minillama.tour.tour_rlhf.ppo_stage(report, None, None, None, feedback) is run
    assert [row["stage"] for row in report.rows] == ["PPO", "PPO's ratio"] and len(report.pages) == 1
    return report.rows


@pytest.mark.parametrize(("rise", "kl", "passed"), [
    (1.5, 5.0, True), (1.25, 5.0, False), (1.5, 8.0, False), (1.5, 7.75, True), (1.5, 0.0, False), (-2.0, 1.0, False)])
def test_ppo_must_raise_the_hidden_quality_by_one_and_a_half_within_eight_nats(monkeypatch, report, rise, kl, passed):
    row, _ = rows_of(monkeypatch, report, exam(9.0, 0.0, 2, 0.25), exam(0.0, kl, 1, 0.25 + rise))
    assert row["pass"] is passed
    assert row["got"] == f"+0.25 to {0.25 + rise:+.2f}, KL {kl:.1f}; 1 distinct answers, 2 before"
    assert row["expected"].startswith("on 2 unseen questions") and not report.skipped


@pytest.mark.parametrize(("rise", "kl", "passed"), [
    (0.5, 5.0, True), (0.25, 5.0, False), (0.5, 8.0, False), (0.5, 0.0, False), (-2.0, 1.0, False)])
def test_without_a_truth_the_score_must_rise_by_half_a_deviation(monkeypatch, report, rise, kl, passed):
    row, _ = rows_of(monkeypatch, report, exam(0.25, 0.0, 2), exam(0.25 + rise, kl, 1), truth=None)
    assert row["pass"] is passed and row["got"].startswith(f"score +0.25 to {0.25 + rise:+.2f}, KL {kl:.1f};")
    assert [stage for stage, _ in report.skipped] == ["hidden quality"]


@pytest.mark.parametrize(("ratios", "passed"), [((1.0, 1.0), True), ((1.0, 1.0 + 2**-20), False)])
def test_the_first_ratio_of_every_batch_must_be_exactly_one(monkeypatch, report, ratios, passed):
    _, row = rows_of(monkeypatch, report, exam(0, 0, 2, 0), exam(0, 1, 1, 2), ratios)
    assert row["pass"] is passed and row["got"] == str(1 + passed) and "all 2 batches" in row["expected"]


@pytest.mark.parametrize(("score", "quality", "distinct", "passed"), [
    (1.5, 2.0, 3, True), (1.0, 2.0, 3, False), (1.5, 2.25, 3, False), (1.5, 2.0, 4, False), (0.5, -1.0, 1, False)])
def test_without_the_kl_penalty_the_score_must_be_higher_the_truth_lower_by_one_and_the_answers_fewer(
        monkeypatch, report, score, quality, distinct, passed):
    row = {"iteration": 0, "score": 0.0, "quality": 0.0, "sound": 0.5}
    penalized = minillama.tour.tour_rlhf.Practice(None, exam(0, 0, 9, 1.0), exam(1.0, 2.0, 4, 3.0, 0.75), [row])
    free, given = minillama.tour.tour_rlhf.Practice(None, None, exam(score, 30.0, distinct, quality, 0.25), [row]), []
    monkeypatch.setattr(minillama.tour.tour_rlhf, "train_or_load_ppo", lambda *words: given.append(words) or free)
    feedback = Feedback([], [], [], ["who?", "what?"], {}, forum.quality)
    made = minillama.tour.tour_rlhf.free_stage(report, "model", "judge", "tokenizer", feedback, penalized)
    assert made is free and report.rows[0]["pass"] is passed and len(report.pages) == 2
    assert report.rows[0]["got"] == (f"score {score:+.2f} (+1.00 with the KL penalty), hidden quality {quality:+.2f} "
                                   f"(+3.00), 25% sound (75%), {distinct} distinct (4), KL 30")
    (_, name, *_, config), = given
    assert (name, config.kl_coefficient) == ("ppo-free", 0) and replace(
        config, kl_coefficient=minillama.tour.tour_rlhf.PENALIZED.kl_coefficient) == minillama.tour.tour_rlhf.PENALIZED
    assert "\n".join(report.said).count("    before:   ") == 2


def judged(right, of, truth=None):
    """The verdict on scores that order so many of so many pairs as the labels say."""
    held_out = [Pair("", "aa", "a")] * of
    scores = torch.tensor([1.0] * right + [-1.0] * (of - right)), torch.zeros(of)
    return verdict(*scores, Feedback([], held_out, [], [], {}, truth))


def test_a_reward_model_is_held_to_chance_or_to_the_truth_at_the_very_border():
    assert not judged(60, 100)[2] and judged(61, 100)[2], "0.5 and two standard errors of a coin: 0.6 of 100"
    assert "(0.600)" in judged(60, 100)[0] and judged(61, 100)[1] == "0.610 of 100 unseen pairs"
    ceiling = 1.0  # all pairs differ in truth, and the labels are right
    assert not judged(97, 100, lambda question, answer: len(answer))[2]
    assert judged(98, 100, lambda question, answer: len(answer))[2:] == (True, (ceiling, pytest.approx(0.98)))


def test_the_truth_alone_can_fail_a_reward_model_that_follows_its_labels():
    """Of 100 labels 20 are wrong: a judge who knows the truth agrees with 80 of them."""
    held_out = [Pair("", "aa", "a")] * 80 + [Pair("", "a", "aa")] * 20
    task = Feedback([], held_out, [], [], {}, lambda question, answer: len(answer))

    def passed(true):  # so many of the first 80 in the order of the truth, and all of the last 20
        scores = torch.tensor([1.0] * true + [-1.0] * (80 - true) + [-1.0] * 20), torch.zeros(100)
        return verdict(*scores, task)[2:]

    assert passed(80) == (True, (0.8, 1.0)) and passed(78) == (True, (0.8, pytest.approx(0.98)))
    assert passed(77) == (False, (0.8, pytest.approx(0.97))), "0.77 of the labels is 0.03 below the ceiling"


@pytest.mark.parametrize(("pairs", "epochs"), [(100, 3), (333, 3), (334, 2), (500, 2), (501, 1), (2400, 1)])
def test_few_pairs_are_read_twice_or_three_times(monkeypatch, tmp_path, pairs, epochs):
    """A thousand readings in all, or three of each."""
    class Told(Exception):
        pass

    def told(model, pairs, tokenizer, config, **options):
        raise Told(config.epochs)

    monkeypatch.setattr(minillama.tour.tour_rlhf, "train_reward", told)
    feedback = minillama.tour.tour_rlhf.Feedback([Pair("q", "a", "b")] * pairs, [], [], [], {})
    tokenizer = train_bpe(["q a b"], 270, hard_vocab_limit=False, progress=False)
    with pytest.raises(Told, match=f"^{epochs}$"):
        minillama.tour.tour_rlhf.reward_stage(TourReport(tmp_path, TourConfig(progress=False)), a_model(tokenizer),
                                              tokenizer, feedback)


MUTANTS = [
    Mutant("minillama.tour.tour_rlhf", "questions[ASKED:]", "questions[1:]",
           test_questions_of_the_exam_are_never_practised),
    Mutant("minillama.tour.tour_rlhf", "n // 3 + 1", "n // 9", test_pairs_are_as_many_as_asked_for),
    Mutant("minillama.evaluate.exam", "pair_accuracy(high[unequal], low[unequal])", "pair_accuracy(high, low)",
           test_the_verdict_counts_what_differs_in_truth_by_the_truth),
    Mutant("minillama.evaluate.exam", "torch.where(labelled_well, chosen, rejected), ", "chosen, ",
           test_the_verdict_counts_what_differs_in_truth_by_the_truth),
]
