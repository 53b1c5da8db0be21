"""docs/family.md and its picture are made from docs/family.json; the record names all models and each fact's source."""

import re
from pathlib import Path

import family_page
import pytest
from figure_text import too_small
from mutants import Mutant

from minillama.config import preset

DOCS = Path(__file__).parents[1] / "docs"
RECORD = family_page.load()
MODELS = {model["name"]: model for model in RECORD["models"]}
WANTED = """GPT-3 text-davinci-003 ChatGPT GPT-4 Bard Claude PaLM Chinchilla BLOOM RWKV LLaMA Llama-2 Llama-2-Chat
Llama-3 Llama-3.1 Llama-3.2 Alpaca alpaca-lora Vicuna StackLLaMA ColossalChat Chinese-LLaMA Chinese-Alpaca Ziya GLM-130B
ChatGLM-6B ChatGLM2-6B BERT RoBERTa DistilBERT Electra BART T5 XLNet ALBERT Marian""".split()
PLACE = re.compile(r"arXiv \d{4}\.\d{5}|https://[\w.-]+/\S+")


def test_the_page_and_the_picture_are_made_from_the_record():
    assert (DOCS / "family.md").read_text(encoding="utf-8") == family_page.page(RECORD)
    drawn = (DOCS / family_page.PICTURE).read_text(encoding="utf-8")
    assert family_page.alt(RECORD) in drawn and "prefers-color-scheme: dark" in drawn
    assert all(f">{name}</text>" in drawn for name in MODELS) and too_small(drawn) == []


def test_every_wanted_model_has_a_row():
    names = {name.replace(" ", "-") for name in MODELS}
    missing = [name for name in WANTED if not any(row == name or row.startswith(f"{name}-") for row in names)]
    assert not missing and len(MODELS) == len(RECORD["models"])


def test_every_fact_is_there_and_has_a_source_that_can_be_looked_up():
    for name, model in MODELS.items():
        for column in RECORD["columns"]:
            assert column in model, (name, column)
            assert column == "from" or model[column].strip(), (name, column)
            title, place = RECORD["sources"][family_page.source_of(model, column)]
            assert title and PLACE.fullmatch(place), place
    used = {family_page.source_of(model, column) for model in MODELS.values() for column in RECORD["columns"]}
    assert used | {claim["source"] for claim in RECORD["claims"]} == set(RECORD["sources"])


def test_the_page_numbers_each_fact_and_each_number_is_a_source():
    text = family_page.page(RECORD)
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) == len(MODELS)
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert len(cells) == 2 + len(RECORD["columns"]) and all(re.search(r" \[\d+\]$", cell) for cell in cells[2:])
    defined = set(re.findall(r"^\[(\d+)\]: https://", text, re.MULTILINE))
    assert set(re.findall(r" \[(\d+)\](?!\()", text)) <= defined and len(defined) == len(RECORD["sources"])


def test_nobody_descends_from_a_younger_model():
    for name, model in MODELS.items():
        for parent in model["from"]:
            assert MODELS[parent]["date"] <= model["date"], (name, parent)
    rows = [model["name"] for model, _ in family_page.in_order_of_descent(RECORD)]
    assert sorted(rows) == sorted(MODELS)
    for name, model in MODELS.items():
        assert not model["from"] or rows.index(model["from"][0]) < rows.index(name)


@pytest.mark.parametrize(("name", "presets", "words"), [
    ("LLaMA 7 to 65B", ("llama_7b", "llama_13b", "llama_33b", "llama_65b"), "7, 13, 33 and 65 B"),
    ("Llama 2", ("llama2_70b",), "8 key/value heads at 70 B"),
    ("Llama 3", ("llama3_8b",), "8 key/value heads at both")])
def test_what_the_presets_know_agrees_with_the_table(name, presets, words):
    row = MODELS[name]
    assert words in row["architecture"]
    for one in map(preset, presets):
        assert f"{one.vocab_size:,}" in row["vocabulary"]
        assert "8 key/value" not in words or one.n_kv_heads == 8
        assert one.rope_theta == (500_000 if name == "Llama 3" else 10_000)


def test_the_claims_link_to_lessons_that_are_there():
    linked = re.findall(r"\]\((lessons/\w+\.md)\)", family_page.page(RECORD))
    assert len(linked) >= 5 and all((DOCS / place).is_file() for place in linked)


@pytest.mark.parametrize("words", [
    "GPT-3 has 175 billion parameters, not 135", "RoPE is by Su", "SwiGLU is by Shazeer; PaLM used it",
    "10000^(-2i/D)", "Pre-norm is older than LLaMA", "LLaMA is a decoder alone", "LLaMA's data are public sets",
    "LLaMA 13B is ahead of GPT-3", "better than GPT-3 and about PaLM's equal", "Code: LLaMA 65B has 23.7",
    "Mathematics: LLaMA 65B, not tuned on it", "67.5 of Chinchilla 70B and 69.3 of PaLM 540B",
    "177 GB of books and papers", "Llama 2 read 40 % more tokens than LLaMA (2.0 T against 1.4 T)",
    "more strongly cleaned", "sees 4,096 tokens", "no reward model, no reinforcement learning", "What ran on a phone"])
def test_what_is_often_said_stands_corrected_in_one_sentence(words):
    claims = [line for line in family_page.page(RECORD).split("\n") if line.startswith("* ")]
    assert sum(words in line for line in claims) == 1


MUTANTS = [
    Mutant("family_page", 'model.get("sources", {}).get(column, model["source"])', 'model["source"]',
           test_the_page_and_the_picture_are_made_from_the_record),
    Mutant("family_page", '(model["from"] or [None])[0], []', '(model["from"] or [None])[-1], []',
           test_nobody_descends_from_a_younger_model),
]
