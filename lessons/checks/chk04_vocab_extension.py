"""Checks of exercise 04: the merge against the library's on real tokenizers, the table against the grown model's."""
import math

import torch

from lessons import chinese_stories
from minillama.config import ModelConfig
from minillama.corpus import stories
from minillama.course.exercise import Wrong, close
from minillama.tokenizer import train_bpe
from minillama.tokenizer.bpe_encoder import NORMAL
from minillama.tokenizer.extend import extend_tokenizer
from minillama.tokenizer.sentencepiece import Piece
from minillama.train.vocabulary import grow_vocabulary
from minillama.transformer import Transformer

HINTS = {
    "holds_joined_digits": ("A single digit stands in no company: look at the length first.",
                            "The digit may stand anywhere in the text, not only at its ends."),
    "merge": ("The old pieces come first, in their order, digits or not.",
              "Of the other list only what is not there yet is appended, and a text that stands in it twice once.",
              "With split_digits, new pieces that hold joined digits are left out; without it, they come along.",
              "Make a new list: the two that you were given belong to somebody else."),
    "grow": ("The old rows come first and keep their bits.",
             "One mean for each column: over the rows.",
             "A sum of many 16-bit numbers loses digits: take the mean in float32, then go back to the table's dtype."),
    "largest_loss": ("The softmax's sum grows by at most the factor 1 + n / V.",
                     "A factor of probability is a difference of its natural logarithm."),
}


def check_holds_joined_digits(learner):
    for text, wanted in (("7", False), ("20", True), ("\u25812", True), ("a7b", True), ("abc", False), ("", False),
                         ("7\u53f7", True), ("\u25817x", True)):
        got = learner.holds_joined_digits(text)
        if bool(got) is not wanted:
            raise Wrong(f"holds_joined_digits({text!r}): expected {wanted}, got {got!r}", 0 if len(text) == 1 else 1)


def said(got, wanted, what, hint):
    if got != wanted:
        raise Wrong(f"merge, {what}: expected {wanted[-6:]} at the end, got {got[-6:] if got else got!r}", hint)


def check_merge(learner):
    old, other = ["<s>", "a", "12", "b"], ["b", "c", "34", "c", "5", "a"]
    copies = list(old), list(other)
    got = learner.merge(old, other, True)
    if (old, other) != copies:
        raise Wrong("merge changed a list that it was given", 3)
    said(got[:4], copies[0], "the old pieces", 0)
    said([text for text in got if text != "34"], ["<s>", "a", "12", "b", "c", "5"], "digits kept apart", 1)
    said(got, ["<s>", "a", "12", "b", "c", "5"], "digits kept apart", 2)
    said(learner.merge(old, other, False), ["<s>", "a", "12", "b", "c", "34", "5"], "digits joined", 2)
    tokenizers = (train_bpe([document.text for document in module.documents(0, 60)], 420 if module is stories else 520)
                  for module in (stories, chinese_stories))
    ours, theirs = ([*tokenizer.pieces, Piece("17")] for tokenizer in tokenizers)
    for split in (True, False):
        library = extend_tokenizer(train_bpe([d.text for d in stories.documents(0, 60)], 420), theirs, split)
        plain = [piece.text for piece in ours[:-1]], [piece.text for piece in theirs if piece.kind == NORMAL]
        said(learner.merge(*plain, split), [piece.text for piece in library.pieces], "two trained vocabularies", 1)


def check_grow(learner):
    for V, D, n in ((1, 1, 1), (3, 5, 0), (13, 8, 6), (64, 32, 100)):
        torch.manual_seed(V)
        model = Transformer(ModelConfig(2 * D, 1, 1, V, hidden_dim=8))
        table = model.output.weight.detach().clone()
        grow_vocabulary(model, V + n)
        got = learner.grow(table, V + n)
        close(f"the old rows of a ({V}, {2 * D}) table", got[:V] if hasattr(got, "shape") else got, table, 0, 0)
        close(f"a ({V}, {2 * D}) table with {n} more", got, model.output.weight.detach(), 1e-6, 1)
        close("the same in float64", learner.grow(table.double(), V + n), torch.cat(
            [table.double(), table.double().mean(0).expand(n, -1)]), 1e-12, 1)
    table = (torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) + 0.03).bfloat16()
    close("a bfloat16 table", learner.grow(table, 3001), torch.cat(
        [table, table.float().mean(0).bfloat16()[None]]), 0, 2)


def check_largest_loss(learner):
    for V, n in ((1, 1), (450, 330), (32000, 17953), (7, 0)):
        close(f"V = {V}, n = {n}", learner.largest_loss(V, n), math.log1p(n / V), 1e-12, 0 if n == 0 else 1)


WRONG = [
    ("len(text) > 1 and any", "any", "holds_joined_digits", 0),
    ("any(letter in \"0123456789\" for letter in text)", "text[0] in \"0123456789\"", "holds_joined_digits", 1),
    ("if not (split_digits and holds_joined_digits(text)):", "if True:", "merge", 2),
    ("return list(merged)", "return list(merged) + [t for t in other if t == 'c'][:1]", "merge", 1),
    ("merged = dict.fromkeys(old)", "merged = dict.fromkeys(t for t in old if not holds_joined_digits(t))", "merge", 0),
    ("torch.cat([table, mean.expand(vocab_size - len(table), -1)])",
     "torch.cat([mean.expand(vocab_size - len(table), -1), table])", "grow", 0),
    (".mean(0)", ".mean().expand(table.shape[1])", "grow", 1),
    ("return math.log(1 + n_new / n_old)", "return n_new / n_old", "largest_loss", 1),
    ("return math.log(1 + n_new / n_old)", "return math.log(n_old + n_new)", "largest_loss", 1),
    ("if not (split_digits and holds_joined_digits(text))", "if not holds_joined_digits(text)", "merge", 2),
    ("merged.setdefault(text)", "old.append(text) or merged.setdefault(text)", "merge", 3),
    ("dict.fromkeys(old)", "dict.fromkeys(sorted(old))", "merge", 0),
    ("math.log(1 + n_new / n_old)", "math.log2(1 + n_new / n_old)", "largest_loss", 1),
]
