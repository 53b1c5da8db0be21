"""Laws of the tour's learning from feedback: nothing is done twice, what is asked was never practised."""

from dataclasses import replace

import pytest
import torch
from mutants import Mutant

import minillama.tour_rlhf
from minillama.config import ModelConfig
from minillama.corpus import forum
from minillama.tokenizer import train_bpe
from minillama.tour import Road, TourConfig
from minillama.tour_rlhf import (
    ASKED,
    exam,
    fingerprint,
    fused,
    pairs_of,
    ppo_stage,
    prompts_of,
    questions_of,
    reward_stage,
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
    smaller = {"PAIRS": 64, "HELD_OUT_PAIRS": 40, "ASKED": 16, "LEASHED": few, "FREE": replace(few, kl_coefficient=0.0)}
    walks = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(minillama.tour_rlhf, name, value)
        for _ in range(2):
            road, said = Road(folder, TourConfig(progress=False)), []
            road.say, model = said.append, a_model(tokenizer)
            reward_model = reward_stage(road, model, tokenizer)
            before = fingerprint(model)
            walks.append((road, ppo_stage(road, model, reward_model, tokenizer), "\n".join(said)))
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


def test_the_exam_of_the_starting_policy_has_kl_zero_and_the_quality_of_its_answers(tokenizer):
    from minillama.rlhf.reward_model import RewardModel

    model, (_, asked) = fused(a_model(tokenizer)), questions_of(0)
    reward_model = RewardModel(a_model(tokenizer, 1), 16).eval()
    seen = exam(model, model, reward_model, tokenizer, asked[:9])
    assert seen.kl == 0.0 and len(seen.answers) == 9 and seen.distinct == len(set(seen.answers))
    assert seen.quality == sum(map(forum.quality, asked[:9], seen.answers)) / 9
    other = exam(a_model(tokenizer, 2), model, reward_model, tokenizer, asked[:9])
    assert other.kl > 0.5


def test_the_prompt_is_the_beginning_of_what_the_reward_model_reads(tokenizer):
    from minillama.rlhf.preferences import Pair
    from minillama.rlhf.train_reward import encode_pairs

    question = questions_of(0)[1][0]
    (whole, _), = encode_pairs([Pair(question, "Good luck!", "No.")], tokenizer)
    prompt, = prompts_of([question], tokenizer)
    assert whole[:len(prompt)] == prompt and whole[-1] == tokenizer.eos_id


MUTANTS = [
    Mutant("minillama.tour_rlhf", "questions[ASKED:]", "questions[1:]",
           test_questions_of_the_exam_are_never_practised),
    Mutant("minillama.tour_rlhf", "n // 3 + 1", "n // 9", test_pairs_are_as_many_as_asked_for),
]
