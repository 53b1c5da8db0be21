"""Token files against plain lists of ids, and batches against the definition of an epoch."""

import os

import numpy as np
import pytest
import torch
from mutants import Mutant

from minillama.train.data import (
    HEADER,
    Batches,
    Tokens,
    is_held_out,
    open_tokens,
    permutation,
    write_tokens,
    write_train_and_held_out,
)

DOCUMENTS = ["once upon a time", "", "a llama", "é and 🦙", "the end"]


class Letters:
    """A tokenizer that gives each letter its code point (at most vocab_size) behind bos 1 and before eos 2."""

    unk_id = pad_id = None

    def __init__(self, vocab_size=2**17, bos_id=1, eos_id=2):
        self.vocab_size, self.bos_id, self.eos_id = vocab_size, bos_id, eos_id

    def encode(self, text, bos=False, eos=False):
        return [self.bos_id] * bos + [ord(letter) for letter in text] + [self.eos_id] * eos


def row_of(n, vocab_size=1000, dtype=np.uint16):
    return Tokens(np.arange(n, dtype=dtype) % vocab_size, vocab_size)


def test_a_file_holds_bos_text_eos_of_each_document_in_order(tmp_path):
    tokens = write_tokens(tmp_path / "t.bin", iter(DOCUMENTS), Letters(), progress=False)
    expected = [i for text in DOCUMENTS for i in [1, *map(ord, text), 2]]
    assert tokens.ids.tolist() == expected and len(tokens) == len(expected)
    assert (tokens.documents, tokens.characters) == (5, sum(map(len, DOCUMENTS)))


@pytest.mark.parametrize(("bos_id", "eos_id"), [(1, None), (None, 2)])
def test_one_of_bos_and_eos_is_enough_to_part_documents(tmp_path, bos_id, eos_id):
    tokens = write_tokens(tmp_path / "t.bin", ["ab", "c"], Letters(200, bos_id, eos_id), progress=False)
    assert tokens.ids.tolist() == ([1, 97, 98, 1, 99] if bos_id else [97, 98, 2, 99, 2])
    with pytest.raises(ValueError, match="neither a bos nor an eos"):
        write_tokens(tmp_path / "t.bin", ["ab"], Letters(200, None, None), progress=False)


@pytest.mark.parametrize("vocab_size", [1, 65535, 65536, 65537, 2**32])
def test_ids_take_two_bytes_up_to_65536_pieces_and_four_beyond(tmp_path, vocab_size):
    class Highest(Letters):
        def encode(self, text, bos=False, eos=False):
            return [self.vocab_size - 1, 0]

    tokens = write_tokens(tmp_path / "t.bin", ["x", "y"], Highest(vocab_size), progress=False)
    assert tokens.ids.tolist() == [vocab_size - 1, 0, vocab_size - 1, 0]
    assert tokens.ids.dtype.itemsize == (2 if vocab_size <= 65536 else 4)
    assert isinstance(tokens.ids.base, np.memmap)


def test_an_id_outside_the_vocabulary_is_never_written(tmp_path):
    for vocab_size in (97, 50):  # "a" is 97
        with pytest.raises(ValueError, match=f"vocab_size {vocab_size}"):
            write_tokens(tmp_path / "t.bin", ["a"], Letters(vocab_size), progress=False)
    assert write_tokens(tmp_path / "t.bin", ["a"], Letters(98), progress=False).ids.tolist() == [1, 97, 2]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_tokens(tmp_path / "t.bin", ["old"], Letters(), progress=False)
    with pytest.raises(TypeError, match="a document is a str, not int"):
        write_tokens(tmp_path / "t.bin", ["new", 7], Letters(), progress=False)
    assert os.listdir(tmp_path) == ["t.bin"]
    assert len(open_tokens(tmp_path / "t.bin")) == 5


def test_one_string_is_not_taken_for_a_list_of_letters(tmp_path):
    with pytest.raises(TypeError, match="documents is one string"):
        write_tokens(tmp_path / "t.bin", "a whole text", Letters(), progress=False)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    good, bad = tmp_path / "good.bin", tmp_path / "bad.bin"
    write_tokens(good, DOCUMENTS, Letters(), progress=False)
    data = good.read_bytes()
    huge = HEADER.pack(b"MLTOKENS", 1, 4, 2**17, 2**60, 0, 0)
    for content, message in [
            (b"", "not a token file"), (data[:HEADER.size - 1], "not a token file"),
            (b"X" + data[1:], "not a token file"), (data[:-1], "damaged"), (data + b"\0", "damaged"),
            (huge + data[HEADER.size:], "promises 1152921504606846976 ids"),
            (HEADER.pack(b"MLTOKENS", 2, 4, 2**17, 0, 0, 0), "version 2"),
            (HEADER.pack(b"MLTOKENS", 1, 3, 2**17, 0, 0, 0), "3 bytes per id"),
            (HEADER.pack(b"MLTOKENS", 1, 2, 2**17, 0, 0, 0), "vocabulary 131072"),
            (HEADER.pack(b"MLTOKENS", 1, 2, 5, 0, 0, 0), "holds no tokens")]:
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_tokens(bad)


def test_another_vocabulary_is_refused(tmp_path):
    write_tokens(tmp_path / "t.bin", DOCUMENTS, Letters(), progress=False)
    assert open_tokens(tmp_path / "t.bin", 2**17).vocab_size == 2**17
    with pytest.raises(ValueError, match="131072 pieces, not 512"):
        open_tokens(tmp_path / "t.bin", 512)


def test_each_document_is_on_one_side_and_equal_ones_on_the_same(tmp_path):
    texts = [f"story {i % 700}" for i in range(1000)]  # 300 of them occur twice
    train, held_out = write_train_and_held_out(tmp_path, texts, Letters(), 0.2, progress=False)
    sides = [{"".join(map(chr, ids)) for ids in np.split(side.ids, np.flatnonzero(side.ids == 1)[1:])}
             for side in (train, held_out)]
    assert train.documents + held_out.documents == 1000
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 700
    # binomial(700, 0.2): mean 140, deviation 10.6; five deviations
    assert abs(len(sides[1]) - 140) < 53
    assert {text for text in texts if is_held_out(text, 0.2)} == {text[1:-1] for text in sides[1]}


def test_a_larger_fraction_only_adds_documents():
    texts = [str(i) for i in range(300)]
    small, large = ({t for t in texts if is_held_out(t, fraction)} for fraction in (0.1, 0.3))
    assert small < large


@pytest.mark.parametrize("text", ["to be or not to be\n" * 30, "one line without an end " * 40])
def test_of_a_single_document_the_end_is_held_out(tmp_path, text):
    train, held_out = write_train_and_held_out(tmp_path, [text], Letters(), 0.1, progress=False)
    assert train.characters + held_out.characters == len(text)
    assert 0.1 <= held_out.characters / len(text) <= 0.2 and train.documents == held_out.documents == 1


def test_an_impossible_split_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="too few"):
        write_train_and_held_out(tmp_path, [], Letters(), 0.1, progress=False)
    with pytest.raises(ValueError, match="held_out_fraction is 1.0"):
        write_train_and_held_out(tmp_path, DOCUMENTS, Letters(), 1.0, progress=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("n", "seq_len", "batch_size"), [(2, 1, 1), (8, 7, 1), (9, 7, 3), (101, 7, 4), (100, 7, 14)])
def test_an_epoch_predicts_each_target_once(n, seq_len, batch_size):
    n_windows = (n - 1) // seq_len
    batches = Batches(row_of(n), batch_size, seq_len, seed=0)
    rows = [row for step in range(3 * n_windows) for row in batches(step)[1].tolist()]  # 3 B epochs
    for epoch in range(3 * batch_size):
        targets = sum(rows[epoch * n_windows:(epoch + 1) * n_windows], [])
        assert sorted(targets) == list(range(1, n_windows * seq_len + 1))


def test_targets_are_the_tokens_one_place_later():
    tokens_BT, targets_BT = Batches(row_of(101), 4, 7, seed=3)(2)
    assert tokens_BT.shape == targets_BT.shape == (4, 7)
    assert tokens_BT.dtype == targets_BT.dtype == torch.int64
    assert torch.equal(targets_BT, tokens_BT + 1)  # the row counts 0, 1, 2 ...


def test_a_batch_depends_on_seed_and_step_alone():
    row = row_of(997)
    fresh = [Batches(row, 5, 4, seed=1)(step) for step in (80, 3, 51)]
    walked = Batches(row, 5, 4, seed=1)
    history = [walked(step) for step in range(90)]
    for (tokens_BT, targets_BT), step in zip(fresh, (80, 3, 51), strict=True):
        assert torch.equal(tokens_BT, history[step][0]) and torch.equal(targets_BT, history[step][1])
    assert not torch.equal(Batches(row, 5, 4, seed=2)(3)[0], history[3][0])


def test_epochs_have_different_orders():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9 and all(sorted(order) == list(range(50)) for order in orders)
    batches = Batches(row_of(51), 50, 1, seed=0)  # a batch is an epoch
    assert len({tuple(batches(epoch)[0].flatten().tolist()) for epoch in range(3)}) == 3


def test_the_order_of_windows_is_the_same_on_every_machine():
    """Written down once from PCG64's raw stream, which NumPy promises not to change (NEP 19)."""
    assert permutation(10, 0, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_windows_are_drawn_evenly():
    """Each of 5 windows comes first in a fifth of 2000 epochs: deviation sqrt(2000 / 5 * 4 / 5) = 18; five of them."""
    first = np.bincount([permutation(5, 7, epoch)[0] for epoch in range(2000)], minlength=5)
    assert (abs(first - 400) < 90).all()


def test_too_short_a_row_and_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="7 tokens do not fill one window of seq_len \\+ 1 = 8"):
        Batches(row_of(7), 1, 7, seed=0)
    for wrong in (8, -1):
        with pytest.raises(ValueError, match="outside its vocabulary of 8"):
            Batches(Tokens(np.array([0, 1, wrong]), 8), 1, 2, seed=0)(0)


def test_tokens_are_a_row_of_integers_with_a_vocabulary():
    for ids in ([1, 2], np.ones(3), np.ones((2, 2), dtype=int)):
        with pytest.raises(TypeError, match="one-dimensional numpy array of integers"):
            Tokens(ids, 8)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        Tokens(np.array([0]), 0)


def test_a_fingerprint_sees_every_id():
    row = np.arange(1000, dtype=np.uint16)
    original = Tokens(row, 1000).fingerprint()
    for place in (0, 499, 999):
        changed = row.copy()
        changed[place] ^= 1
        assert Tokens(changed, 1000).fingerprint() != original
    assert Tokens(row.copy(), 1000).fingerprint() == original


MUTANTS = [
    Mutant("minillama.train.data", "ids[:, 1:].contiguous()", "ids[:, :-1].contiguous()",
           test_targets_are_the_tokens_one_place_later),
    Mutant("minillama.train.data", "* self.seq_len + self._within", "* (self.seq_len + 1) + self._within",
           lambda: test_an_epoch_predicts_each_target_once(100, 7, 14)),
    Mutant("minillama.train.data", "(len(tokens) - 1) // seq_len", "len(tokens) // (seq_len + 1)",
           lambda: test_an_epoch_predicts_each_target_once(100, 7, 14)),
    Mutant("minillama.train.data", "self._order(i // self.n_windows)", "self._order(0)",
           test_epochs_have_different_orders),
    Mutant("minillama.train.data", "PCG64([seed, epoch])", "PCG64([seed])", test_epochs_have_different_orders),
    Mutant("minillama.train.data", "PCG64([seed, epoch])", "PCG64([epoch])",
           test_a_batch_depends_on_seed_and_step_alone),
    Mutant("minillama.train.data", ".view(np.uint8))", ".view(np.uint8)[:64])", test_a_fingerprint_sees_every_id),
    Mutant("minillama.train.data", "< fraction * 2**64", ">= fraction * 2**64",
           test_a_larger_fraction_only_adds_documents),
]
