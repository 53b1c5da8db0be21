"""Rows of unequal length as one tensor: every token keeps its place, and what is padding is known."""

import pytest
import torch
from mutants import Mutant

from minillama.collate import IGNORE, collate, pad_rows, real_tokens
from minillama.train.packing import Chunk
from minillama.train.sequence_loss import Sequence

ROWS = [[4, 5, 6, 7, 8], [9], [1, 2, 3]]


@pytest.mark.parametrize("left", [False, True])
def test_every_row_stands_whole_at_its_end_and_the_rest_is_filling(left):
    padded, real = pad_rows(ROWS, -7, left), real_tokens(ROWS, left)
    assert padded.dtype == torch.int64 and padded.shape == real.shape == (3, 5)
    for row, got, mask in zip(ROWS, padded.tolist(), real.tolist(), strict=True):
        filling = [-7] * (5 - len(row))
        assert got == (filling + row if left else row + filling)
        assert [token for token, is_real in zip(got, mask, strict=True) if is_real] == row
        assert sum(mask) == len(row)


def test_tensors_are_rows_too():
    assert torch.equal(pad_rows([torch.tensor(row) for row in ROWS]), pad_rows(ROWS))


def test_the_labels_of_padding_are_not_learned_and_its_document_is_none():
    tokens, labels = collate([Sequence([5, 2], [IGNORE, 2]), Sequence([1, 3, 2], [1, IGNORE, 2])])
    assert tokens.tolist() == [[5, 2, 0], [1, 3, 2]]
    assert labels.tolist() == [[IGNORE, 2, IGNORE], [1, IGNORE, 2]]
    chunks = [Chunk(*(torch.tensor(row) for row in (ids, ids, [0] * len(ids)))) for ids in ([1, 2], [3])]
    assert [x.tolist() for x in collate(chunks)] == [[[1, 2], [3, 0]], [[1, 2], [3, IGNORE]], [[0, 0], [0, -1]]]


@pytest.mark.parametrize("rows", [[], [[]], [[1], []]])
def test_a_row_without_a_token_is_refused(rows):
    with pytest.raises(ValueError, match=f"{len(rows)} rows, of which one holds no token: give at least one"):
        pad_rows(rows)


MUTANTS = [
    Mutant("minillama.collate", "value=fill", "value=0",
           lambda: test_every_row_stands_whole_at_its_end_and_the_rest_is_filling(False)),
    Mutant("minillama.collate", "(T - len(row), 0) if left", "(0, T - len(row)) if left",
           lambda: test_every_row_stands_whole_at_its_end_and_the_rest_is_filling(True)),
    Mutant("minillama.collate", '"document_ids": -1', '"document_ids": 0',
           test_the_labels_of_padding_are_not_learned_and_its_document_is_none),
]
