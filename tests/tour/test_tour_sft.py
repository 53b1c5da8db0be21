"""Laws of the tour's fine-tuning, on a model and data too small to reach its bands: it measures what it says."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from tiny_run import one_thread

from minillama.checkpoint import load_model
from minillama.config import ModelConfig, preset
from minillama.corpus.forum import GRAMMAR
from minillama.peft.lora import lora_layers
from minillama.quant.nf4 import NF4Linear
from minillama.tokenizer import train_bpe
from minillama.tour import tour_sft
from minillama.tour.tour import TourConfig, TourReport
from minillama.train.records import forum_records
from minillama.train.sequence_loss import IGNORE
from minillama.transformer import Transformer

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
ROOT = Path(__file__).parents[2]
QUESTION = "How do I fix a rusty red bell?"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """All three stages, two steps each, and then once more."""
    folder, patch = tmp_path_factory.mktemp("tour"), pytest.MonkeyPatch()
    tokenizer = train_bpe([m["content"] for r in forum_records(0, 200) for m in r.messages], 320)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(16, 1, 2, tokenizer.vocab_size, max_seq_len=256, tie_embeddings=True)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in (("RECORDS", 30), ("HELD_OUT", 9), ("ASKED", 5),
                        ("FULL", replace(tour_sft.FULL, steps=2, warmup_steps=1)),
                        ("ADAPTER", replace(tour_sft.ADAPTER, steps=2, warmup_steps=1))):
        patch.setattr(tour_sft, name, value)
    reports = [TourReport(folder, TourConfig(progress=False)) for _ in range(2)]
    tuned = [tour_sft.fine_tuning_stages(report, model, tokenizer) for report in reports]
    patch.undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return folder, reports, tuned, tokenizer


def test_four_numbers_are_held_against_bands_and_three_pictures_drawn(short):
    _, reports, _, _ = short
    assert [row["stage"] for row in reports[0].rows] == ["fine-tuning", "answers", "LoRA", "QLoRA"]
    rows = {row["stage"]: row for row in reports[0].rows}
    assert not rows["fine-tuning"]["pass"] and not rows["answers"]["pass"], "two steps teach nothing"
    assert "base unchanged" in rows["QLoRA"]["got"]
    assert sum(page.count("<svg ") for page in reports[0].pages) == 2 and len(reports[0].pages) == 3


def test_a_second_tour_finds_all_three_trained_and_says_the_same(short, capsys):
    folder, reports, tuned, _ = short
    assert [row["got"] for row in reports[1].rows] == [row["got"] for row in reports[0].rows]
    ids = torch.arange(20)[None]
    torch.testing.assert_close(tuned[0](ids), tuned[1](ids))
    saved = sorted(path.name.split("-")[0] for path in (folder / "stages").iterdir())
    assert saved == ["lora", "qlora", "sft"]
    model, tokenizer = load_model(next((folder / "stages").glob("sft-*")))
    assert tokenizer is not None and model.config.vocab_size == tokenizer.vocab_size


def test_the_entropy_is_that_of_the_answers_given_their_questions():
    answer = GRAMMAR.sample(random.Random(0), "{answer}", GRAMMAR.parse(QUESTION, "{question}").chosen)
    assert tour_sft.answer_bits(QUESTION, answer.text) == pytest.approx(answer.bits)
    # "Just fix the bell ..." : opening 3/10, one step of two, the object's name 3/4, spot, closing 3/10 of 2
    text = "Just fix the bell by the well. That is all."
    spots = [GRAMMAR.choices[name] for name in ("so", "spot")]
    parts = [0.3, 0.5, 0.75, *(choice.probabilities[0] for choice in spots), 0.3, 0.5]
    assert tour_sft.answer_bits(QUESTION, text) == pytest.approx(-sum(map(math.log2, parts)))


def test_nats_a_token_become_bits_an_answer(short):
    lessons = tour_sft.lessons_of(0, short[3])
    counts = [sum(label != IGNORE for label in sequence.labels) for sequence in lessons.held_out]
    assert lessons.bits_of(math.log(2)) == pytest.approx(sum(counts) / len(counts))
    assert len(lessons.train) == tour_sft.RECORDS and len(lessons.asked) == tour_sft.HELD_OUT


@pytest.mark.parametrize(("answer", "fit"), [
    ("Just fix the bell by the well. That is all.", True),
    ("Just fix the thing by the well. That is all.", True),
    ("Just fix the hat by the well. That is all.", False),  # the bell was asked about
    ("Just sell the bell by the well. That is all.", False),  # how to fix it was asked
    ("Just fix the bell by the well.", False),  # no closing
    ("", False),
])
def test_an_answer_fits_if_the_forum_could_have_given_it_to_this_question(answer, fit):
    assert tour_sft.fits_question(QUESTION, answer) is fit


def test_the_three_learners_train_what_they_say():
    torch.manual_seed(0)
    model = Transformer(preset("tiny", vocab_size=300)).eval()
    full, lora, qlora = (tour_sft.learner_of(name, model, 0) for name in ("sft", "lora", "qlora"))
    assert all(p.requires_grad for p in full.parameters())
    for learner in (lora, qlora):
        names = {name for name, p in learner.named_parameters() if p.requires_grad}
        assert names == {f"{layer}.{part}" for layer in lora_layers(learner) for part in "AB"}
        assert len(lora_layers(learner)) == 7 * 3
    assert all(isinstance(layer.base, NF4Linear) for layer in lora_layers(qlora).values())
    assert all(torch.equal(a.A, b.A) for a, b in zip(
        lora_layers(lora).values(), lora_layers(qlora).values(), strict=True)), "the same adapters to begin with"


def test_metrics_of_all_three_lie_beside_their_results(short):
    for path in (short[0] / "stages").iterdir():
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "held_out_loss" in row] == [0, 2]


def recorded():
    """{column: the five seeds' numbers} of the record that docs/tuning.md is made from."""
    names = ("seed", "entropy", "before", "full", "LoRA", "QLoRA", "LoRA - full", "QLoRA - LoRA", "numbers missed")
    record = json.loads((ROOT / "bench" / "tuning.json").read_text(encoding="utf-8"))["tour"]
    return dict(zip(names, zip(*record["rows"], strict=True), strict=True))


def test_over_five_seeds_full_tuning_ends_lowest_and_qlora_where_lora_does():
    found = recorded()
    assert found["seed"] == (0, 1, 2, 3, 4) and not any(found["numbers missed"])
    for entropy, before, full, lora, qlora in zip(*(found[name] for name in ("entropy", "before", "full", "LoRA",
                                                                             "QLoRA")), strict=True):
        assert entropy < full < min(lora, qlora) and before > 1.5 * lora and abs(qlora - lora) < 0.05


def test_the_bands_are_the_range_of_five_seeds_and_once_its_width_beyond():
    """Rounded outward: to a thousandth of the entropy, to a thousandth of a nat."""
    found = recorded()

    def band(values):
        width = max(values) - min(values)
        return math.floor(1e3 * (min(values) - width)) / 1e3, math.ceil(1e3 * (max(values) + width)) / 1e3

    for name, excess in (("full", tour_sft.FULL_EXCESS), ("LoRA", tour_sft.LORA_EXCESS)):
        assert excess == band([loss / least - 1 for loss, least in zip(found[name], found["entropy"], strict=True)])[1]
    assert band(found["LoRA - full"]) == tour_sft.LORA_ABOVE_FULL
    assert max(map(abs, band(found["QLoRA - LoRA"]))) == tour_sft.QLORA_FROM_LORA


def test_the_record_was_made_with_the_settings_and_the_template_of_today():
    page = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    assert (f"on {tour_sft.HELD_OUT} unseen answers, after {tour_sft.FULL.steps} steps of {tour_sft.FULL.batch_size} "
            f"out of {tour_sft.RECORDS} questions") in page
    assert f"a rate of {tour_sft.FULL.max_lr}; adapters, rank {tour_sft.LORA.rank}" in page
    assert f"but the head, at {tour_sft.ADAPTER.max_lr}. The template is `{tour_sft.TEMPLATE}`" in page
    assert "Question: {question} Answer: {answer}</s>" in page


# ---- the bands, each at its border

class Plain:
    """Lessons whose entropy is 16 bits an answer; a nat is 8 bits."""

    train, held_out, bits = [1, 2, 3], [4], 16.0
    asked = [(f"How do I {verb} it?", "") for verb in range(80)]

    @staticmethod
    def bits_of(loss):
        return 8 * loss


class Weights(torch.nn.Module):
    """Four weights that learn and twelve that do not, of a model of 100."""

    config = type("Config", (), {"n_parameters": lambda self: 100})()

    def __init__(self, name="a"):
        super().__init__()
        self.name = name
        self.frozen = torch.nn.Parameter(torch.arange(12.0), requires_grad=False)
        self.learning = torch.nn.Parameter(torch.ones(4))


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Runs one of the three stages on a learner that ended with a loss: stage(name, loss, ...) -> its rows."""
    report, losses = TourReport(tmp_path, TourConfig(progress=False)), []
    report.say = lambda text: None

    def run(name, loss, *others, model=None, measured=(4.0, 4.0), seen=None):
        learner = tour_sft.Tuned(model or Weights(), [{"held_out_loss": 9.0}, {"loss": 1.0}, {"held_out_loss": loss}])
        losses[:] = measured
        calls = []
        monkeypatch.setattr(tour_sft, "tune_or_load", lambda *given: calls.append(given[1:]) or learner)
        monkeypatch.setattr(tour_sft, "answer_loss", lambda model, held_out: losses.pop(0))
        monkeypatch.setattr(tour_sft, "merge_lora", lambda model: calls.append("merged"))
        monkeypatch.setattr(tour_sft, "unmerge_lora", lambda model: calls.append("unmerged"))
        assert getattr(tour_sft, f"{name}_stage")(report, seen or "start", "tokenizer", Plain, *others) is learner
        config = tour_sft.FULL if name == "sft" else tour_sft.ADAPTER
        assert calls[0] == (name, seen or "start", "tokenizer", Plain, config)
        assert calls[1:] == (["merged", "unmerged"] if name == "lora" else [])
        return report

    return run


@pytest.mark.parametrize(("loss", "passed"), [(2 * 1.019, True), (2 * 1.0191, False), (1.0, True)])
def test_full_tuning_may_stay_so_far_above_the_entropy(stage, monkeypatch, loss, passed):
    monkeypatch.setattr(tour_sft, "answers", lambda *given: [("", False)] * len(given[2]))
    row = stage("sft", loss, model="tuned").rows[0]
    said = f"{8 * loss:.2f} bits an answer, {loss / 2 - 1:+.1%}; 32.0 bits before tuning"
    assert row["pass"] is passed and row["got"] == said
    assert "1.9% above" in row["expected"] and "(16.0 bits each)" in row["expected"]


@pytest.mark.parametrize(("wrong", "unended", "passed"), [(8, 0, True), (9, 0, False), (0, 9, False), (4, 4, True)])
def test_seven_of_eight_answers_must_fit_and_end(stage, monkeypatch, wrong, unended, passed):
    asked, pages = [], []

    def answers(model, tokenizer, questions):
        asked.append((model, len(questions)))
        return [("no" if i < wrong else "yes", i >= wrong + unended or i < wrong) if model == "tuned" else ("?", False)
                for i in range(len(questions))]

    monkeypatch.setattr(tour_sft, "answers", answers)
    monkeypatch.setattr(tour_sft, "fits_question", lambda question, text: text == "yes")
    monkeypatch.setattr(tour_sft, "before_after_page", lambda rows: pages.append(rows) or "page")
    row = stage("sft", 2.0, model="tuned").rows[1]
    assert row["pass"] is passed and row["got"] == str(64 - wrong - unended)
    assert row["expected"].startswith("at least 56 of 64") and asked == [("tuned", 64), ("start", 4)]
    assert [(question, before) for question, before, _ in pages[0]] == [
        (question, ("?", False)) for question, _ in Plain.asked[:4]]
    assert [after for *_, after in pages[0]] == answers("tuned", None, range(64))[:4]


@pytest.mark.parametrize(("loss", "full", "moved", "passed"), [
    (2 * 1.017, 2 * 1.017, 0.0, True), (2 * 1.0171, 2 * 1.0171, 0.0, False), (2.0, 1.99401, 0.0, True),
    (2.0, 1.9939, 0.0, False), (2.0, 2.00299, 0.0, True), (2.0, 2.0031, 0.0, False), (2.0, 2.0, 0.9e-5, True),
    (2.0, 2.0, 1.1e-5, False), (2.0, 2.0, -1.1e-5, False)])
def test_lora_is_held_to_the_entropy_to_full_tuning_and_to_its_own_merged_form(stage, loss, full, moved, passed):
    other = tour_sft.Tuned(None, [{"held_out_loss": full}])
    row = stage("lora", loss, other, measured=(4.0, 4.0 + moved), seen=Weights()).rows[0]
    assert row["pass"] is passed and f"{8 * loss:.2f} bits an answer, {loss / 2 - 1:+.1%}, " in row["got"]
    assert f"{loss - full:+.4f} nats; 4% of the parameters; moved by {abs(moved):.0e}" in row["got"]


@pytest.mark.parametrize(("distance", "change", "passed"), [
    (0.00099, None, True), (-0.00099, None, True), (0.0011, None, False), (-0.0011, None, False),
    (0.0, "byte", False), (0.0, "gradient", False)])
def test_qlora_is_held_to_lora_and_its_base_keeps_every_byte(stage, monkeypatch, distance, change, passed):
    learner, pages = Weights(), []
    if change == "byte":
        learner.frozen.data[3] += 1
    elif change == "gradient":
        learner.frozen.grad = torch.zeros(12)
    monkeypatch.setattr(tour_sft, "quantize_copy", lambda model: Weights())
    monkeypatch.setattr(tour_sft, "frozen_fingerprint", lambda model: model.frozen.tolist())
    monkeypatch.setattr(tour_sft, "tuning_page", lambda *given: pages.append(given) or "curves")
    monkeypatch.setattr(tour_sft, "nf4_page", lambda model: pages.append(model) or "levels")
    full, lora = (tour_sft.Tuned(None, [{"held_out_loss": loss}]) for loss in (1.0, 2.0))
    report = stage("qlora", 2.0 + distance, full, lora, model=learner, measured=(4.25,))
    row = report.rows[0]
    assert row["pass"] is passed
    assert row["got"] == f"{distance:+.4f} nats; base {'CHANGED' if change == 'byte' else 'unchanged'}"
    (curves, lessons, before), model = pages
    assert (list(curves), lessons, before, model) == (["full", "LoRA", "QLoRA"], Plain, 34.0, "start")
    assert curves["LoRA"] is lora.history and curves["full"] is full.history and report.pages == ["curves", "levels"]


MUTANTS = [
    Mutant("minillama.tour.tour_sft", "FULL_EXCESS, LORA_EXCESS = 0.019,", "FULL_EXCESS, LORA_EXCESS = 0.025,",
           test_the_bands_are_the_range_of_five_seeds_and_once_its_width_beyond),
    Mutant("minillama.tour.tour_sft", "QLORA_FROM_LORA = 0.001", "QLORA_FROM_LORA = 0.01",
           test_the_bands_are_the_range_of_five_seeds_and_once_its_width_beyond),
    Mutant("minillama.tour.tour_sft", "RECORDS, HELD_OUT = 2400, 200", "RECORDS, HELD_OUT = 2400, 400",
           test_the_record_was_made_with_the_settings_and_the_template_of_today),
    Mutant("minillama.tour.tour_sft", '"{answer}", GRAMMAR.parse(question, "{question}").chosen)', '"{answer}")',
           test_the_entropy_is_that_of_the_answers_given_their_questions),
    Mutant("minillama.tour.tour_sft", 'derivation(text, "{answer}", asked.chosen)', 'derivation(text, "{answer}")',
           lambda: test_an_answer_fits_if_the_forum_could_have_given_it_to_this_question(
               "Just fix the hat by the well. That is all.", False)),
    Mutant("minillama.tour.tour_sft", "    quantize_linears(twin)\n", "", test_the_three_learners_train_what_they_say),
    Mutant("minillama.tour.tour_sft", "add_lora(learner, LORA)",
           'add_lora(learner, replace(LORA, targets="attention.*"))', test_the_three_learners_train_what_they_say),
]
