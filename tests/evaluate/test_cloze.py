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
from minillama.evaluate.cloze import MASK, Cloze, cloze_loss, label_scores
from minillama.train.blank_infilling import END, MASKS, START, rotations_2d
from minillama.transformer import Transformer


class Lines(Letters):
    """`Letters` that write a new line as a question mark, and have the tokens of blank infilling behind them; a mask
    takes the spaces before it."""

    vocab_size = Letters.vocab_size + 5
    special_tokens = {name: Letters.vocab_size + n for n, name in enumerate((*MASKS.values(), START, END))}

    def encode(self, text, bos=False, eos=False, allowed_special=()):
        text = text.replace("\n", "?")
        first, *rest = text.split(MASK) if MASK in allowed_special else [text.replace(MASK, "mask")]
        ids = super().encode(first.rstrip() if rest else first, bos)
        for part in rest:
            ids += [self.special_tokens[MASK], *super().encode(part.rstrip() if part != rest[-1] else part)]
        return ids + [2] * eos


ROOT = Path(__file__).resolve().parents[2]
TOKENIZER, TEXTS = Lines(), ["the cat", "a", "no dog"]
ASKED = Cloze("{text} it was", (" good", " bad", " so so"))  # words of unequal length
IN_THE_MIDDLE = Cloze("so is{blank} what {text} was", ASKED.words)


def tiny_model(seed=0, dtype=torch.float64, objective="causal"):
    torch.manual_seed(seed)
    vocab_size = Letters.vocab_size if objective == "causal" else TOKENIZER.vocab_size
    shape = ModelConfig(16, 1, 2, vocab_size, hidden_dim=24, max_seq_len=96, objective=objective)
    return Transformer(shape).to(dtype)


def by_loop(model, asked=ASKED, examples=()):
    """[[log p of each word, letter by letter]] of TEXTS: to the end of the text, or to the end of the blank."""
    table = []
    for text in TEXTS:
        table.append([])
        for word in asked.words:
            before, _, behind = asked.pattern.partition("{blank}")
            before, behind = before.replace("{text}", text), behind.replace("{text}", text)
            shown = "".join(asked.pattern.replace("{blank}", "").replace("{text}", one) + asked.words[label] + "\n\n"
                            if "{blank}" not in asked.pattern else
                            asked.pattern.replace("{blank}", asked.words[label]).replace("{text}", one) + "\n\n"
                            for one, label in examples)
            in_order = _in_blank if model.config.objective == "blank" else _behind
            table[-1].append(in_order(model, (shown + before), word, behind))
    return torch.tensor(table, dtype=torch.float64)


def _behind(model, before, word, behind):
    front, total = TOKENIZER.encode(before, bos=True), 0.0
    for letter in TOKENIZER.encode(word + behind):
        total += log_softmax(model(torch.tensor([front]))[0, -1].tolist())[letter]
        front.append(letter)
    return total


def _in_blank(model, before, word, behind):
    """By the definition: part A is read in both directions, part B letter after letter."""
    ids, front = TOKENIZER.special_tokens, TOKENIZER.encode(before, bos=True)
    part_a, part_b, total = [*front, ids[MASK], *TOKENIZER.encode(behind)], [ids[START]], 0.0
    for letter in [*TOKENIZER.encode(word), ids[END]]:
        T, a = len(part_a) + len(part_b), len(part_a)
        places = [(place, 0) for place in range(a)] + [(len(front), within + 1) for within in range(T - a)]
        sees = torch.tensor([[[s < a or s <= t for s in range(T)] for t in range(T)]])
        turns = rotations_2d(torch.tensor([places]), model.config)
        logits = model(torch.tensor([part_a + part_b]), layout=(turns, sees))
        total += log_softmax(logits[0, -1].tolist())[letter]
        part_b.append(letter)
    return total


@pytest.mark.parametrize("objective", ["causal", "blank"])
def test_zero_shot_and_few_shot_scores_are_what_a_loop_over_the_letters_gives(objective):
    with torch.no_grad():
        for asked in (ASKED, IN_THE_MIDDLE):
            for examples in ((), [("one", 2), ("two", 0)]):
                model = tiny_model(objective=objective).train()
                ours = label_scores(model, TOKENIZER, asked, TEXTS, examples, batch_size=2)
                torch.testing.assert_close(ours, by_loop(model, asked, examples), rtol=1e-9, atol=1e-9)
                assert model.training


@pytest.mark.parametrize("objective", ["causal", "blank"])
def test_the_loss_is_the_cross_entropy_of_the_scores_over_the_labels(objective):
    for asked in (ASKED, IN_THE_MIDDLE):
        model, labels = tiny_model(objective=objective), [2, 0, 1]
        wanted = -by_loop(model, asked).log_softmax(-1)[range(3), labels].mean()
        loss = cloze_loss(model, TOKENIZER, asked, TEXTS, labels)
        torch.testing.assert_close(loss.detach(), wanted, rtol=1e-9, atol=1e-9)
        loss.backward()
        assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_a_mask_in_the_text_is_not_taken_for_the_blank():
    for asked, place in ((IN_THE_MIDDLE, 6), (Cloze("{text} b{blank}", (" c", " d")), 5)):  # behind the begin token
        assert asked.rows(TOKENIZER, ["a" + MASK])[0].positions[-1][0] == place


@pytest.mark.parametrize("objective", ["causal", "blank"])
@pytest.mark.parametrize("seed", range(3))
def test_tuning_teaches_a_model_that_knew_nothing_of_the_task(seed, objective):
    """Whether a text of five letters holds an x: no more is needed than to look."""
    rng, asked = random.Random(seed), Cloze("{text} ", ("y", "n"))
    model = tiny_model(seed, torch.float32, objective)
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
                           ("{text}", ("a", "b", "a")), ("{blank}{text}{blank}", ("a", "b"))):
        with pytest.raises(ValueError, match="a word of its own") as error:
            Cloze(pattern, words)
        assert "\n" not in str(error.value)


mutant = partial(Mutant, "minillama.evaluate.cloze")
SCORES = partial(test_zero_shot_and_few_shot_scores_are_what_a_loop_over_the_letters_gives, "causal")
LOSS = partial(test_the_loss_is_the_cross_entropy_of_the_scores_over_the_labels, "causal")
BLANKS = partial(test_zero_shot_and_few_shot_scores_are_what_a_loop_over_the_letters_gives, "blank")


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


def test_the_page_shows_a_blank_in_the_middle_as_it_was_recorded():
    sys.path.insert(0, str(ROOT / "bench"))
    from bench._blanks_compared import BASES, table

    rows = json.loads((ROOT / "bench" / "cloze.json").read_text(encoding="utf-8"))["blanks"]
    assert "\n".join(table(rows)) in (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    told = {(way, base): [row["accuracy"] for row in rows if (row["method"], row["objective"]) == (way, base)]
            for way in ("0 shown", "3 shown", "tuned", "head") for base in BASES}
    assert all(len(found) == 3 for found in told.values())
    assert all(min(told[way, base]) > 0.9 for way in ("0 shown", "tuned") for base in BASES)
    assert all(max(told["3 shown", base]) < min(told["0 shown", base]) for base in BASES)
    assert min(told["head", "blank"]) > 0.9 and sum(accuracy > 0.9 for accuracy in told["head", "causal"]) == 1


MUTANTS = [
    mutant("self.words[label]", "self.words[-1]", SCORES),
    mutant("for before, behind in asked for word in self.words]", "for word in self.words for before, behind in asked]",
           SCORES),
    mutant("word + behind)", "word)", SCORES),
    mutant("[(place, len(word))]", "[(place - 1, len(word))]", BLANKS),
    mutant("MASK + behind,", "MASK,", BLANKS),
    mutant("len(row.tokens) - row.split for", "len(row.tokens) - row.split - 1 for", BLANKS),
    mutant("[before.count(MASK)]", "[0]", test_a_mask_in_the_text_is_not_taken_for_the_blank),
    mutant("len(context) - 1, len(context) + len(word) - 1", "len(context), len(context) + len(word)", LOSS),
    mutant("range(len(context) - 1, len(context) + len(word) - 1), word].sum()",
           "range(len(context) - 1, len(context)), word[:1]].sum()", LOSS),
]
