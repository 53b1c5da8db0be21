"""Laws of the other ways to learn from feedback: each starts from one model, none changes it, one page shows all."""

from dataclasses import replace

import pytest
import torch
from mutants import Mutant
from test_tour_rlhf import a_model, fingerprint, tokenizer

from bench import alternatives
from bench.alternatives import WAYS, alternatives_stage, best_of_n, drawn_answers, kind_and_in_steps
from minillama.backends import use_kernels
from minillama.corpus import forum
from minillama.rlhf.reward_model import RewardModel
from minillama.tour import tour_rlhf
from minillama.tour.tour import TourConfig, TourReport
from minillama.tour.tour_rlhf import Feedback, feedback_stages, pairs_of, questions_of

FIXTURES = (tokenizer,)  # of test_tour_rlhf, used here by name


def one_that_ends(tokenizer):
    """A model that has learned nothing but to end after a few tokens: the same number in every embedding, which the
    head reads as the end."""
    model = a_model(tokenizer)
    with torch.no_grad():
        model.tok_embeddings.weight[:, 0] = 3.0
        model.output.weight[tokenizer.eos_id, 0] = 1.2
    return model


def small():
    practice, asked = questions_of(0)
    return Feedback(pairs_of("few", 40), pairs_of("few others", 20), practice[:40], asked[:5], {"pairs": 40},
                    forum.quality, 8)


@pytest.fixture(scope="module")
def walk(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("tour")
    tokenizer.save(folder / "tokenizer.model")
    few = replace(tour_rlhf.PENALIZED, iterations=2, batch_size=4, epochs=2)
    report, said, model = TourReport(folder, TourConfig(progress=False)), [], one_that_ends(tokenizer)
    report.say, before = said.append, fingerprint(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour_rlhf, "PENALIZED", few)
        for name, value in {"PENALIZED": few, "DRAWS": 4, "BEST_OF": (2, 4), "ROUNDS": 2, "EXPERTS": 2}.items():
            patch.setattr(alternatives, name, value)
        for name in ("EXPERT", "HINDSIGHT"):
            patch.setattr(alternatives, name, replace(getattr(alternatives, name), steps=2, warmup_steps=1))
        alternatives_stage(report, model, tokenizer, small(), *feedback_stages(report, model, tokenizer, small()))
    assert fingerprint(model) == before
    return report, said


def test_every_way_is_walked_and_shown_beside_ppos_path(walk):
    report, said = walk
    row = next(row for row in report.rows if row["stage"] == "other ways")
    page = next(page for page in report.pages if "Other ways" in page)
    for name in ("PPO", *WAYS):
        assert f"{name} " in row["got"] and f">{name}<" in page and any(name in line for line in said)
    assert "log n - (n - 1) / n" in page and "says 0.64." in page  # log 4 - 3 / 4


def test_best_of_one_is_the_mean_of_what_was_drawn_and_more_draws_score_higher(tokenizer):
    model, judge = use_kernels(one_that_ends(tokenizer), "torch"), RewardModel(a_model(tokenizer, 1), 16).eval()
    task = small()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alternatives, "BEST_OF", (1, 2, 4))
        patch.setattr(alternatives, "DRAWS", 6)
        rows = list(best_of_n(model, judge, tokenizer, task, 0))
        drawn = [drawn_answers(model, judge, tokenizer, task, q, i) for i, q in enumerate(task.asked)]
    means = [(p_K @ scores_K.double()).item() for p_K, scores_K, _, _ in drawn]
    qualities = [sum(forum.quality(q, text) * p for p, text in zip(p_K.tolist(), texts, strict=True))
                 for q, (p_K, _, _, texts) in zip(task.asked, drawn, strict=True)]
    assert abs(rows[0][0]) < 1e-12 and rows[0][1] == pytest.approx(sum(means) / 5)
    assert rows[0][2]["quality"] == pytest.approx(sum(qualities) / 5)
    assert rows[0][1] < rows[1][1] < rows[2][1] and 0 < rows[1][0] < rows[2][0]
    assert all(p_K.sum().item() == pytest.approx(1) and len(set(texts)) == len(texts) for p_K, *_, texts in drawn)


def test_the_rule_pays_for_steps_and_friendly_words():
    for answer, points in (("Good question! First buy a rope. Then fix the bell by the sea. Have fun!", 4),
                           ("First buy a rope. Then fix the bell by the sea. That is all.", 2),
                           ("Read a book. Just fix the bell for 3 minutes. You will fail.", 0), ("Have fun!", 2)):
        assert kind_and_in_steps(f"Question: How do I fix it?\n\nAnswer: {answer}") == points


def best_of_one():
    corpus = [f"{thread.question} {answer.text}" for thread in forum.threads(0, 200) for answer in thread.answers]
    from minillama.tokenizer import train_bpe

    torch.manual_seed(0)
    test_best_of_one_is_the_mean_of_what_was_drawn_and_more_draws_score_higher(
        train_bpe(corpus, 400, hard_vocab_limit=False, progress=False))


MUTANTS = [
    Mutant("bench.alternatives", "count[text] / DRAWS", "1.0 / len(rows) ** 2", best_of_one),
    Mutant("bench.alternatives", "kl_divergence(q_K, p_K)", "kl_divergence(p_K, p_K)", best_of_one),
]
