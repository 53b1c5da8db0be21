"""Laws of cloze questions: the words asked for, their likelihoods by a loop, and a loss that tunes a model."""

import json
import random
import sys
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
import torch
from letters import Letters
from mutants import Mutant
from oracles import log_softmax

from minillama.config import ModelConfig
from minillama.evaluate.cloze import Cloze, cloze_loss, label_scores
from minillama.transformer import Transformer


class Lines(Letters):
    """`Letters` that write a new line as a question mark."""

    def encode(self, text, bos=False, eos=False):
        return super().encode(text.replace("\n", "?"), bos, eos)


ROOT = Path(__file__).resolve().parents[2]
TOKENIZER, TEXTS = Lines(), ["the cat", "a", "no dog"]
ASKED = Cloze("{text} it was", (" good", " bad", " so so"))  # words of unequal length


def tiny_model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return Transformer(ModelConfig(16, 1, 2, Letters.vocab_size, hidden_dim=24, max_seq_len=64)).to(dtype)


def by_loop(model, examples=()):
    """[[log p of each word, letter by letter]] of TEXTS."""
    table = []
    for text in TEXTS:
        table.append([])
        for word in ASKED.words:
            shown = "".join(f"{one} it was{ASKED.words[label]}\n\n" for one, label in examples) + f"{text} it was"
            front, total = TOKENIZER.encode(shown, bos=True), 0.0
            for letter in TOKENIZER.encode(word):
                total += log_softmax(model(torch.tensor([front]))[0, -1].tolist())[letter]
                front.append(letter)
            table[-1].append(total)
    return torch.tensor(table, dtype=torch.float64)


def test_zero_shot_and_few_shot_scores_are_what_a_loop_over_the_letters_gives():
    with torch.no_grad():
        for examples in ((), [("one", 2), ("two", 0)]):
            model = tiny_model()
            ours = label_scores(model, TOKENIZER, ASKED, TEXTS, examples, batch_size=2)
            torch.testing.assert_close(ours, by_loop(model, examples), rtol=1e-10, atol=1e-10)


def test_the_loss_is_the_cross_entropy_of_the_scores_over_the_labels():
    model, labels = tiny_model(), [2, 0, 1]
    wanted = -by_loop(model).log_softmax(-1)[range(3), labels].mean()
    loss = cloze_loss(model, TOKENIZER, ASKED, TEXTS, labels)
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-10, atol=1e-10)
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_tuning_teaches_a_model_that_knew_nothing_of_the_task(seed):
    """Whether a text of five letters holds an x: no more is needed than to look."""
    rng, asked = random.Random(seed), Cloze("{text} ", ("y", "n"))
    model = tiny_model(seed, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)

    def drawn(n):
        texts = ["".join(rng.choice("abcdx" if i % 2 else "abcde") for _ in range(5)) for i in range(n)]
        return texts, [int("x" not in text) for text in texts]

    for _ in range(40):
        optimizer.zero_grad()
        cloze_loss(model, TOKENIZER, asked, *drawn(24)).backward()
        optimizer.step()
    texts, labels = drawn(200)
    right = label_scores(model, TOKENIZER, asked, texts).argmax(-1) == torch.tensor(labels)
    assert right.float().mean() > 0.95


def test_a_pattern_without_its_text_and_labels_of_one_word_are_refused_in_one_line():
    for pattern, words in (("no text", ("a", "b")), ("{text} {text}", ("a", "b")), ("{text}", ("a",)),
                           ("{text}", ("a", "b", "a"))):
        with pytest.raises(ValueError, match="a word of its own") as error:
            Cloze(pattern, words)
        assert "\n" not in str(error.value)


mutant = partial(Mutant, "minillama.evaluate.cloze")
SCORES = test_zero_shot_and_few_shot_scores_are_what_a_loop_over_the_letters_gives
LOSS = test_the_loss_is_the_cross_entropy_of_the_scores_over_the_labels
def test_the_page_shows_what_was_recorded_and_says_no_more():
    sys.path.insert(0, str(ROOT / "bench"))  # a benchmark finds its neighbours so
    from bench.cloze import WAYS, table

    rows = json.loads((ROOT / "bench" / "cloze.json").read_text(encoding="utf-8"))["rows"]
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert "\n".join(table(rows)) in page
    told = {(way, count): [row["accuracy"] for row in rows if (row["method"], row["texts"]) == (way, count)]
            for way in WAYS for count in (30, 1000)}
    assert all(len(found) == 5 for found in told.values())
    ahead = fmean(told["cloze, tuned", 30]) - fmean(told["head, all weights", 30])
    assert f"{100 * ahead:.0f} points ahead in the mean" in page
    assert ahead < max(told["head, all weights", 30]) - min(told["head, all weights", 30]), "less than the seeds differ"
    assert all(min(told[way, 1000]) > 0.99 for way in WAYS[:2])
    for shown in ("cloze, 0 shown", "cloze, 3 shown"):
        assert all(abs(row["accuracy"] - 1 / 3) < 1e-9 for row in rows if row["method"] == shown)


MUTANTS = [
    mutant("self.words[label]", "self.words[-1]", SCORES),
    mutant("for text in texts for word in self.words]", "for word in self.words for text in texts]", SCORES),
    mutant("len(context) - 1, len(context) + len(word) - 1", "len(context), len(context) + len(word)", LOSS),
    mutant("range(len(context) - 1, len(context) + len(word) - 1), word].sum()",
           "range(len(context) - 1, len(context)), word[:1]].sum()", LOSS),
]
