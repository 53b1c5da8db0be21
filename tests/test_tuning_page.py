"""docs/tuning.md is made from its record, and says what the record says; the surveys' numbers against arithmetic."""

import json
import statistics
import sys
from pathlib import Path

import pytest
from mutants import Mutant

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))
_survey, _tuning_page = pytest.importorskip("_survey"), pytest.importorskip("_tuning_page")
_conditions_page = pytest.importorskip("_conditions_page")
RECORD = json.loads((ROOT / "bench" / "tuning.json").read_text(encoding="utf-8"))
SUMMARY = {row["method"]: row for row in RECORD["methods"]["summary"]}
CLASSES = {row["method"]: row for row in RECORD["methods"]["classes"]}
GB = 1e9


def mean(name, column):
    return statistics.mean(SUMMARY[name][column])


def test_the_page_is_made_from_the_record():
    assert (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8") == _tuning_page.page(RECORD)


def test_every_method_ran_in_equal_steps_on_five_seeds_at_the_rate_chosen_on_the_first():
    settings, runs = RECORD["methods"]["settings"], RECORD["methods"]["runs"]
    assert len(settings["seeds"]) >= 5 and len(SUMMARY) == 17
    for name in set(SUMMARY) - {"none"}:
        swept = [run for run in runs if run["method"] == name and run["seed"] == settings["seeds"][0]]
        assert [run["rate"] for run in swept] == settings["rates"]
        chosen = min(swept, key=lambda run: run["training_loss"])
        assert SUMMARY[name]["rate"] == chosen["rate"] and SUMMARY[name]["loss"][0] == chosen["loss"]
        assert len(SUMMARY[name]["loss"]) == len(settings["seeds"])


def test_full_tuning_and_lora_of_rank_1_differ_by_five_ranges_of_seeds():
    apart, times = _tuning_page.gap(RECORD["methods"]["summary"])
    full, one = SUMMARY["full"]["loss"], SUMMARY["lora of rank 1"]["loss"]
    widest = max(max(full) - min(full), max(one) - min(one))
    assert apart == statistics.mean(one) - statistics.mean(full) > 5 * widest and times == apart / widest


def test_every_method_beats_the_base_and_more_numbers_of_one_kind_know_more():
    for name in set(SUMMARY) - {"none"}:
        assert mean(name, "loss") < mean("none", "loss"), name
    assert mean("full", "loss") < mean("lora", "loss") < mean("lora of rank 1", "loss") < mean("prompt", "loss")


def test_costs_are_those_of_the_formulas():
    L, D, F = 3, 64, 176
    rank = L * (4 * (D + D) + 3 * (D + F))
    wanted = {"lora of rank 1": rank, "lora": 8 * rank, "prompt": 8 * D, "p-tuning-v2": 2 * 8 * L * D,
              "ia3": L * (2 * D + F), "bitfit": L * (5 * D + 2 * F), "adapter": 2 * L * (2 * 8 * D + D + 8)}
    assert {name: SUMMARY[name]["trained"] for name in wanted} == wanted
    for row in (SUMMARY[name] for name in set(SUMMARY) - {"none"}):
        assert row["step_bytes"] == row["saved_bytes"] + 12 * row["trained"]
    assert SUMMARY["ladder"]["saved_bytes"] <= 0.6 * SUMMARY["lora"]["saved_bytes"]
    assert {name for name in wanted if SUMMARY[name]["merges"] == "yes"} == {"lora of rank 1", "lora", "ia3"}


def test_p_tuning_v2_tells_classes_better_than_a_soft_prompt_and_in_more_steps_on_every_seed():
    """On five seeds, in both numbers of steps at the rate chosen by the training losses of the first seed."""
    v2, prompt, full = (statistics.mean(CLASSES[name]["accuracy"])
                        for name in ("p-tuning-v2", "prompt and head", "full and head"))
    assert prompt < v2 < full
    settings, longer = RECORD["methods"]["settings"], RECORD["methods"]["longer"]
    for name in ("p-tuning-v2", "prompt and head"):
        swept = [run for run in longer if run["method"] == name and run["seed"] == settings["seeds"][0]]
        assert [run["rate"] for run in swept] == settings["rates"]
        rate = min(swept, key=lambda run: run["training_loss"])["rate"]
        others = [run for run in longer if run["method"] == name and run["seed"] != settings["seeds"][0]]
        assert [run["seed"] for run in others] == settings["seeds"][1:] and {run["rate"] for run in others} == {rate}
    distances = _tuning_page.class_distances(RECORD["methods"])
    assert distances["ahead"] > 9 and distances["least_ahead"] > 5 and distances["behind"] < 2


CONDITIONS = RECORD["methods"]["conditions"]


def of_data(name, count, column):
    return statistics.mean(_conditions_page.column(CONDITIONS["data"], column, method=name, count=count))


def test_every_condition_ran_on_three_seeds_at_the_rates_of_the_main_table():
    for rows in CONDITIONS.values():
        assert len({row["seed"] for row in rows}) >= 3
    few, facts = (RECORD["methods"]["settings"][name] for name in ("few", "facts"))
    for name in set(SUMMARY) - {"none"}:
        rows = [row for row in CONDITIONS["data"] if row["method"] == name and row["count"] in (few, facts)]
        assert len(rows) >= 6 and {row["rate"] for row in rows} == {SUMMARY[name]["rate"]}


def test_of_few_questions_a_soft_prompt_learns_the_form_and_full_tuning_the_answers():
    few = RECORD["methods"]["settings"]["few"]
    assert of_data("prompt", few, "unseen") < of_data("none", few, "unseen") < of_data("full", few, "unseen")
    assert of_data("full", few, "exact") == 1 and of_data("prompt", few, "exact") < 0.2
    shown = {row["count"]: row["unseen"] for row in CONDITIONS["shown"] if row["seed"] == 0}
    assert sorted(shown, key=shown.get) == sorted(shown), "examples in the prompt only confuse this base"


def test_a_soft_prompt_gains_by_the_width_of_its_model_and_full_tuning_needs_none():
    def told(width, way):
        rows = _conditions_page.chosen([row for row in CONDITIONS["widths"] if row["width"] == width], way)
        return statistics.mean(row["accuracy"] for row in rows)

    prompts = [told(width, "prompt and head") for width in (32, 64, 128)]
    assert prompts == sorted(prompts) and prompts[2] > prompts[0] + 0.1
    assert min(told(width, "full and head") for width in (32, 64, 128)) > 0.98


def test_spans_are_found_by_full_tuning_then_p_tuning_v2_then_a_soft_prompt_and_not_by_a_head():
    told = {key: statistics.mean(shares) for key, shares in _conditions_page.label_shares(CONDITIONS["labels"]).items()}
    spans = [told["spans", way] for way in ("head alone", "prompt and head", "p-tuning-v2", "full and head")]
    assert spans == sorted(spans) and spans[0] < 0.3 and spans[3] > 0.98
    assert told["labels", "head alone"] > 0.95, "as the page says: the task is too easy to tell ways apart"


def test_labels_that_hang_on_words_to_the_left_are_told_in_full_tuning_and_hardly_with_virtual_tokens():
    shares = _conditions_page.label_shares(CONDITIONS["labels"])
    told = {way: statistics.mean(found) for (task, way), found in shares.items() if task == "participants"}
    assert all(len(found) >= 3 for found in shares.values())
    assert 1 / 3 < told["head alone"] < min(told["prompt and head"], told["p-tuning-v2"])
    assert max(told["prompt and head"], told["p-tuning-v2"]) + 0.3 < told["full and head"]


def test_t5_xxl_has_the_published_number_of_weights():
    """11,135,332,352 as transformers counts google/t5-v1_1-xxl; a T5 of one layer and width 2 by hand."""
    assert _survey.t5_parameters(**_survey.T5_XXL) == 11_135_332_352 and 5 * _survey.T5_XXL["dim"] == 20_480
    by_hand = (4 * 4 + 3 * 2 * 3 + 2 * 2) + (8 * 4 + 3 * 2 * 3 + 3 * 2) + 2 * (2 + 7 * 1) + 2 * 5 * 2
    assert _survey.t5_parameters(vocab=5, dim=2, hidden=3, heads=1, layers=1, buckets=7) == by_hand


def test_counts_at_7b_are_those_of_the_formulas():
    found, whole = {name: count for name, (count, _) in _survey.counts().items()}, 6_738_415_616
    L, D, n = 32, 4096, 20
    assert found["LoRA, rank 8 on q and v"] == L * 2 * 8 * 2 * D == 4_194_304
    assert found["prefix of 20"] == 2 * n * L * D == 5_242_880 and found["prompt of 20"] == n * D == 81_920
    assert found["P-tuning of 20, MLP"] == n * D + 3 * (D * D + D)
    assert found["adapters, width 64"] == 2 * L * (2 * 64 * D + D + 64) == 33_820_672
    n = _survey.prefix_tokens_of(1e-3)
    assert 2 * (n - 1) * L * D < 1e-3 * whole <= 2 * n * L * D


def test_65b_takes_above_780_gb_in_full_and_below_48_by_qlora():
    full, qlora = _survey.gigabytes_65b()
    assert full == 12 * 65_285_660_672 / GB > 780 and 34 < qlora < 48


MUTANTS = [
    Mutant("_conditions_page", "row[\"seed\"] == max(row[\"seed\"] for row in found)", "row[\"seed\"] == 0",
           test_spans_are_found_by_full_tuning_then_p_tuning_v2_then_a_soft_prompt_and_not_by_a_head),
    Mutant("_survey", "8 * dim**2 + 3 * dim", "4 * dim**2 + 3 * dim", test_t5_xxl_has_the_published_number_of_weights),
    Mutant("_survey", "(2 + 2 + 8)", "(2 + 2 + 4)", test_65b_takes_above_780_gb_in_full_and_below_48_by_qlora),
    Mutant("_survey", "math.ceil(share", "math.floor(share", test_counts_at_7b_are_those_of_the_formulas),
    Mutant("_tuning_page", "statistics.mean(one) - statistics.mean(full)", "statistics.mean(one)",
           test_full_tuning_and_lora_of_rank_1_differ_by_five_ranges_of_seeds),
]
