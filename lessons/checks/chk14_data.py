"""Checks of exercise 14: shingles by hand, rows against the library's packing, masks against its transformer's."""
import random

import torch

from minillama.course.exercise import Wrong, close
from minillama.train.packing import pack as library_pack
from minillama.train.sequence_loss import Sequence
from minillama.transformer import positions_and_mask

HINTS = {
    "jaccard": ("Make a set of all runs of n neighbouring words of each text.",
                "A text of k words has k - n + 1 runs: the last one counts too.",
                "J = (runs that both have) / (runs that at least one has)"),
    "pack": ("First one long list of tokens, then cut it; the last row may be shorter.",
             "Behind each document stands eos_id, with that document's number.",
             "A document that is cut goes on in the next row, with its number."),
    "may_see": ("Two conditions: the same document, and not later.",
                "A token may look at itself: the diagonal is True.",
                "[i, j] = (number i is number j) and (j <= i)"),
    "positions": ("The count begins again at 0 with each document.",
                  "At the start of a row it is 0 even if the document began in the row before."),
}


def check_jaccard(learner):
    close("jaccard of a text with itself", learner.jaccard("a b c", "a b c", 2), 1.0, 0, 0)
    got = learner.jaccard("a b c d", "a b c e", 2)
    close("jaccard('a b c d', 'a b c e', 2)", got, 0.5, 1e-12, 1 if got == 1.0 else 2)
    close("jaccard('a b c', 'x b c d', 2)", learner.jaccard("a b c", "x b c d", 2), 0.25, 1e-12, 2)
    close("jaccard('a b a b', 'a b', 2)", learner.jaccard("a b a b", "a b", 2), 0.5, 1e-12, 0)
    close("jaccard of texts too short for a run", learner.jaccard("a", "b", 2), 0.0, 0, 2)
    close("jaccard of equal texts too short for a run", learner.jaccard("a", "a", 2), 1.0, 0, 2)


def rows_of(seed, lengths, length):
    rng = random.Random(seed)
    documents = [[rng.randrange(5, 90) for _ in range(n)] for n in lengths]
    chunks = library_pack([Sequence(document, list(document)) for document in documents], length, eos_id=2)
    return documents, chunks


def check_pack(learner):
    for seed, lengths, length in ((0, [1], 8), (1, [3, 4], 9), (2, [7], 4), (3, [2, 11, 1, 5], 6), (4, [5, 5], 6)):
        documents, chunks = rows_of(seed, lengths, length)
        got = learner.pack(documents, length, 2)
        if not isinstance(got, list) or len(got) != len(chunks):
            raise Wrong(f"documents of {lengths} tokens in rows of {length}: expected a list of {len(chunks)} rows", 0)
        for i, ((tokens, numbers), wanted) in enumerate(zip(got, chunks, strict=True)):
            close(f"tokens of row {i} of documents of {lengths}", tokens, wanted.tokens, 0, 1)
            close(f"numbers of row {i} of documents of {lengths}", numbers, wanted.document_ids, 0, 2 if i else 1)


def check_may_see(learner):
    for numbers in ([0], [4, 4, 4], [0, 0, 1, 1, 1, 2], [3, 4, 5]):
        numbers = torch.tensor(numbers)
        mask = positions_and_mask(numbers[None], document_ids_BT=numbers[None])[1][0]
        wanted = mask & torch.ones_like(mask).tril()
        got = learner.may_see(numbers)
        if getattr(got, "shape", None) == wanted.shape and not got.diagonal().all():
            raise Wrong(f"may_see({numbers.tolist()}): a token does not see itself", 1)
        close(f"may_see({numbers.tolist()})", got, wanted, 0, 0)


def check_positions(learner):
    for numbers in ([7], [0, 0, 0], [0, 0, 1, 1, 1, 2], [3, 4, 4, 5]):
        numbers = torch.tensor(numbers)
        wanted = positions_and_mask(numbers[None], document_ids_BT=numbers[None])[0][0]
        close(f"positions({numbers.tolist()})", learner.positions(numbers), wanted, 0, 1 if numbers[0] else 0)


WRONG = [
    ("len(words) - n + 1", "len(words) - n", "jaccard", 1),
    ("/ len(runs_a | runs_b)", "/ len(runs_a)", "jaccard", 2),
    ("[*document, eos_id]", "[*document]", "pack", 1),
    ("(len(document) + 1)", "len(document)", "pack", 1),
    ("range(0, len(tokens), length)", "range(0, len(tokens) - length + 1, length)", "pack", 0),
    ("same.tril()", "same", "may_see", 0),
    ("same.tril()", "same.tril(-1)", "may_see", 1),
    ("numbers[:, None] == numbers[None, :]", "torch.ones(len(numbers), len(numbers), dtype=torch.bool)", "may_see", 0),
    ("if i and number == numbers[i - 1] else 0", "if i else 0", "positions", 0),
    ("count = count + 1 if i and number == numbers[i - 1] else 0", "count = i if number == numbers[0] else 0",
     "positions", 0),
    ("float(a == b)", "0.0", "jaccard", 2),
    ("{tuple(words", "{frozenset(words", "jaccard", 0),
    ("[number] * (", "[number + 1] * (", "pack", 1),
    ("same.tril()", "same.triu()", "may_see", 0),
]
