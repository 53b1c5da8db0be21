"""Subword regularization: draws against all segmentations, counted out."""

import itertools
import math
import random
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from mutants import Mutant
from test_unigram import oracle, segmentations
from tiny_run import CONFIG, Killed, kill_after, same_weights, without_times

from minillama.config import ModelConfig
from minillama.tokenizer import SentencePieceTokenizer
from minillama.tokenizer.sentencepiece_training import train_sentencepiece
from minillama.tokenizer.unigram import UnigramModel
from minillama.train.data import write_tokens
from minillama.train.mixture import Mixture, Source, batches_of
from minillama.train.pretrain import pretrain
from minillama.train.subword_sampling import (
    SampledTokens,
    documents_of,
    draw_segmentation,
    require_unigram,
    sample_ids,
    sample_subwords,
)
from minillama.transformer import Transformer

TEXTS = [f"the owl and the hen {word}ed at the mill in {year}" for word, year in itertools.product(
    ("look", "wait", "rest"), range(1990, 1993))]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_draws_are_as_frequent_as_the_probabilities_to_the_power_alpha(alpha):
    model, text, n = UnigramModel({"a": -1.0, "b": -2.0, "ab": -2.5, "ba": -2.0, "aba": -4.0}), "ababa", 3000
    weights = {tuple(pieces): math.exp(alpha * score) for score, pieces in segmentations(model, text)}
    for seed in range(3):
        draw = random.Random(seed)
        counts = Counter(tuple(draw_segmentation(model, text, alpha, draw)) for _ in range(n))
        expected = {way: n * weight / sum(weights.values()) for way, weight in weights.items()}
        assert counts.keys() <= expected.keys()
        chi2 = sum((counts[way] - mean) ** 2 / mean for way, mean in expected.items())
        assert chi2 < len(expected) + 5 * math.sqrt(2 * len(expected))  # five standard deviations


def test_drawn_ids_say_the_same_text_and_other_types_draw_none():
    tokenizer, text = SentencePieceTokenizer(oracle()), "the return of 2023 你好"
    drawn = [sample_ids(tokenizer, text, 0.2, random.Random(seed)) for seed in range(9)]
    assert {tokenizer.decode(ids) for ids in drawn} == {text} and len({*map(tuple, drawn)}) > 2
    assert sample_ids(tokenizer, text, 1e4, random.Random(0)) == tokenizer.encode(text), "the best alone is left"
    with pytest.raises(ValueError, match="type char: only a unigram model draws"):
        sample_ids(train_sentencepiece(["abc"], 6, "char"), "a", 1.0, random.Random(0))


@cache
def unigram():
    return train_sentencepiece(TEXTS, 300, "unigram", hard_vocab_limit=False)


@pytest.fixture
def row(tmp_path):
    return write_tokens(tmp_path / "row.bin", TEXTS, unigram(), progress=False)


def test_the_documents_of_a_row_are_those_it_was_made_of(tmp_path):
    texts = [*TEXTS, " two spaces ", "", "\u732b", "x"]
    row = write_tokens(tmp_path / "1.bin", texts, unigram(), progress=False)
    assert documents_of(row, unigram()) == [text for text in texts if text]
    lossy = train_sentencepiece(TEXTS, 60, "unigram", byte_fallback=False, hard_vocab_limit=False)
    row = write_tokens(tmp_path / "2.bin", ["the owl", "a \u732b"], lossy, progress=False)
    with pytest.raises(ValueError, match="document 1, .* has other ids than its text"):
        documents_of(row, lossy)


def check_epochs(row):
    batches = batches_of(sample_subwords(row, unigram(), 0.1), 2, 11, 7)
    again = batches_of(sample_subwords(row, unigram(), 0.1), 2, 11, 7)
    drawn = {step: batches(step) for step in (4, 0, 9, 1, 25, 0, 4)}
    for step in sorted(drawn):
        assert all(map(torch.equal, drawn[step], again(step))), "a pure function of the step"
    rows = [batches._epoch(epoch).tokens.ids.tolist() for epoch in range(3)]
    assert len({*map(tuple, rows)}) == 3
    for ids in rows:
        assert unigram().decode(ids) == unigram().decode(row.ids.tolist())
    others = batches_of(sample_subwords(row, unigram(), 0.1), 2, 11, 8)._epoch(0).tokens.ids.tolist()
    assert others not in rows, "another seed draws others"
    tokens_BT, targets_BT = batches(3)
    assert tokens_BT.shape == (2, 11) and torch.equal(tokens_BT[:, 1:], targets_BT[:, :-1])


def test_every_epoch_reads_the_same_documents_in_another_segmentation(row):
    check_epochs(row)


def test_without_noise_the_batches_are_those_of_the_best_segmentation(row):
    sampled, plain = batches_of(sample_subwords(row, unigram(), 1e4), 3, 7, 5), batches_of(row, 3, 7, 5)
    for step in range(60):
        assert all(map(torch.equal, sampled(step), plain(step))), step


def test_alpha_is_part_of_what_a_resumed_run_must_share(row):
    prints = {sample_subwords(row, unigram(), alpha).fingerprint() for alpha in (0.1, 0.2)} | {row.fingerprint()}
    assert len(prints) == 3 and sample_subwords(row, unigram(), None) is row
    mixture = sample_subwords(Mixture([Source("a", 0.5, []), Source("b", 0.5, [])], [row, row]), unigram(), 0.1)
    assert all(type(tokens) is SampledTokens for tokens in mixture.tokens)
    first, second = (rows._epoch(0).tokens.ids.tolist() for rows in batches_of(mixture, 2, 11, 7).rows)
    assert first != second, "each source has draws of its own"


def test_other_types_are_refused_before_any_work():
    require_unigram(train_sentencepiece(["abc"], 6, "char"), None)
    with pytest.raises(ValueError, match="of type char: only a unigram model draws segmentations; train one with"):
        require_unigram(train_sentencepiece(["abc"], 6, "char"), 0.1)


def test_a_run_that_was_broken_off_ends_like_one_that_was_not(row, tmp_path):
    shape = ModelConfig(16, 1, 2, unigram().vocab_size, hidden_dim=24, max_seq_len=8, tie_embeddings=True)

    def run(folder, passes=None, resume=False):
        torch.manual_seed(1)
        model = Transformer(shape) if passes is None else kill_after(passes, Transformer(shape))
        return model, pretrain(model, sample_subwords(row, unigram(), 0.2), row, CONFIG, tmp_path / folder, resume,
                               progress=False)

    whole, history = run("whole")
    with pytest.raises(Killed):
        run("part", passes=7)
    resumed, again = run("part", resume=True)
    assert same_weights(whole, resumed) and without_times(again) == without_times(history)


def _of_a_row(law):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            law(write_tokens(Path(folder) / "row.bin", TEXTS, unigram(), progress=False))

    return run


MODULE = "minillama.train.subword_sampling"
MUTANTS = [
    Mutant(MODULE, "encoder.normalize(part)", "part", test_drawn_ids_say_the_same_text_and_other_types_draw_none),
    Mutant(MODULE, '{seed} {epoch} {number}")', '{seed} {number}")', _of_a_row(check_epochs)),
    Mutant(MODULE, "epoch * row.n_windows + place", "place",
           _of_a_row(test_without_noise_the_batches_are_those_of_the_best_segmentation)),
    Mutant(MODULE, "path_sums(lattice, alpha), [len", "path_sums(lattice), [len",
           lambda: test_draws_are_as_frequent_as_the_probabilities_to_the_power_alpha(3.0)),
]
