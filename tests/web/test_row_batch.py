"""Rows that come and go: each gets the tokens, and where the batch is exact the scores, that it gets alone."""

import random
from functools import partial

import pytest
import torch
from mutants import Mutant
from test_engine_decoding import lively_model
from test_gguf_linear import blocked_model

from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.kv_cache import KVCache
from minillama.sampling import Sampling, row_chances
from minillama.web.row_batch import Row, RowBatch

compiled = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
CONFIG = ModelConfig(64, 2, 4, 97, n_kv_heads=2, hidden_dim=128, max_seq_len=60)
SAMPLINGS = [Sampling(0), Sampling(1.0), Sampling(0.8, top_p=0.9), Sampling(1.5, 20, 0.95, 0.01, 1.3)]


class Watched(Row):
    """A row that keeps its tokens and their scores."""

    def __init__(self, *asked):
        super().__init__(*asked)
        self.told, self.scores = [], []

    def take(self, logits_1V):
        self.scores.append(logits_1V[0])
        self.told.append(super().take(logits_1V))


def asked_at_random(chance, model):
    """What one row asks: (ids, budget, sampling, stop ids, seed)."""
    ids = [chance.randrange(97) for _ in range(chance.randint(1, 58))]
    return ids, chance.randint(0, 30), chance.choice(SAMPLINGS), set(chance.sample(range(97), 3)), chance.randrange(99)


def alone(model, ids, budget, sampling, stop_ids, seed):
    """(tokens, their scores) by `generate_tokens`."""
    scores = []
    rows = list(generate_tokens(model, [ids], budget, sampling, stop_ids, seed,
                                watch=lambda logits_BV, _: scores.append(logits_BV[0])))
    return [row[0] for row in rows], scores


def together(model, all_asked, chance):
    """The rows of `all_asked`, each of which joins the batch at a step of its own."""
    batch, made = RowBatch(model), []
    for ids, budget, sampling, stop_ids, seed in all_asked:
        made.append(Watched(model, ids, budget, sampling, stop_ids, row_chances([ids], 60, seed)[0]))
        while len(batch.rows) == 8 or batch.rows and chance.random() < 0.7:
            batch.step()
        batch.join([made[-1]])
    while batch.step():
        pass
    return made


def check_world(model, seed, exact):
    chance = random.Random(seed)
    all_asked = [asked_at_random(chance, model) for _ in range(12)]
    for row, asked in zip(together(model, all_asked, chance), all_asked, strict=True):
        tokens, scores = alone(model, *asked)
        assert row.told == tokens
        for ours, theirs in zip(row.scores, scores, strict=True):
            if exact:
                assert torch.equal(ours, theirs)
            else:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def model_of_kind(kind, seed):
    """A model that the engine decodes, its weights in one of the forms that it reads."""
    if kind == "blocks":
        return blocked_model("fp32", seed, 97, 60)
    dtype = getattr(torch, kind) if kind in ("bfloat16", "float16") else torch.float32
    model = lively_model(CONFIG, dtype, "nf4" if kind and "nf4" in kind else None, seed)
    return use_kernels(model, "cpu", "int8") if kind == "nf4_int8" else model


@compiled
@pytest.mark.parametrize("kind", [None, "nf4", "nf4_int8", "blocks", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_row_has_the_bits_beside_others_that_it_has_alone(kind, seed, vectors):
    model = model_of_kind(kind, seed)
    assert RowBatch(model).exact
    check_world(model, seed, exact=True)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_elsewhere_a_row_differs_by_roundings(backend, seed):
    model = use_kernels(lively_model_of_torch(seed), backend)
    assert not RowBatch(model).exact
    check_world(model, seed, exact=False)


def lively_model_of_torch(seed):
    from minillama.transformer import Transformer

    torch.manual_seed(seed)
    return Transformer(CONFIG).requires_grad_(False).eval()


@compiled
def test_what_rounds_by_its_neighbours_or_sums_otherwise_alone_is_not_exact():
    assert not RowBatch(lively_model(CONFIG, kind="int8")).exact
    assert not RowBatch(blocked_model("int8")).exact


def test_a_row_that_is_ended_from_outside_leaves_and_the_others_go_on():
    model = lively_model_of_torch(0)
    rows = [Watched(model, [1, 2, 3], 20, Sampling(0), (), row_chances([[1, 2, 3]], 60, 0)[0]) for _ in range(3)]
    batch = RowBatch(model)
    batch.join(rows)
    rows[1].left = 0
    batch.step()
    assert batch.rows == [rows[0], rows[2]] and [len(row.told) for row in rows] == [2, 1, 2]
    while batch.step():
        pass
    assert rows[0].told == rows[2].told == alone(model, [1, 2, 3], 20, Sampling(0), (), 0)[0]


def test_where_no_memory_is_left_for_one_more_the_others_go_on_as_if_it_had_never_come():
    """Whichever allocation fails, and also where a row has ended and leaves only then."""
    model = lively_model_of_torch(0)

    def row(ids):
        return Watched(model, ids, 20, Sampling(0), (), row_chances([ids], 60, 0)[0])

    def torn(cache, kept):
        cache.keys.zero_()
        raise MemoryError

    def none_left(*sizes):
        raise MemoryError

    for n_allocated in (0, 1):
        rows, batch = [row([1, 2, 3]), row([4, 5]), row([6])], RowBatch(model)
        batch.join(rows)
        rows[0].left = 0
        with pytest.MonkeyPatch.context() as patch:
            allocate = [none_left, *[KVCache] * n_allocated]
            patch.setattr("minillama.web.row_batch.KVCache", lambda *sizes, left=allocate: left.pop()(*sizes))
            patch.setattr(KVCache, "keep_rows", torn)
            with pytest.raises(MemoryError):
                batch.join([row([7, 8, 9])])
        while batch.step():
            pass
        for one in rows[1:]:
            assert one.told == alone(model, one.ids, 20, Sampling(0), (), 0)[0]


def test_a_prompt_that_does_not_fit_never_becomes_a_row():
    model = lively_model_of_torch(0)
    for ids, word in (([1] * 61, "attends over"), ([97], "knows 0 to 96")):
        with pytest.raises(ValueError, match=word):
            Row(model, ids, 3, Sampling(0), (), None)


plant = partial(Mutant, "minillama.web.row_batch")
MUTANTS = [
    plant("pad:cache.length]\n            joined.values", "0:cache.length - pad]\n            joined.values",
          lambda: test_elsewhere_a_row_differs_by_roundings("torch", 0)),
    plant("self.chances_n[self.made:self.made + 1]", "self.chances_n[:1]",
          lambda: test_elsewhere_a_row_differs_by_roundings("torch", 0)),
    plant("self.seen_1V[0, self.token] = True", "pass", lambda: test_elsewhere_a_row_differs_by_roundings("torch", 0)),
    plant("self.cache.keep_rows(kept)", "self.cache.keep_rows(kept[::-1])",
          lambda: test_elsewhere_a_row_differs_by_roundings("torch", 0)),
    plant("max_seq_len - len(ids) + 1", "max_seq_len - len(ids)",
          lambda: test_elsewhere_a_row_differs_by_roundings("torch", 1)),
    plant("isinstance(layer, Int8Linear) or", "False or",
          test_what_rounds_by_its_neighbours_or_sums_otherwise_alone_is_not_exact),
    plant('and layer.activations == "int8"', 'and layer.activations == "none"',
          test_what_rounds_by_its_neighbours_or_sums_otherwise_alone_is_not_exact),
    plant("            self.cache = self.side_by_side([*parts, *joined])\n            self.rows = [",
          "            self.rows = [row for row, *_ in (*parts, *joined)]\n"
          "            self.cache = self.side_by_side([*parts, *joined])\n            [",
          test_where_no_memory_is_left_for_one_more_the_others_go_on_as_if_it_had_never_come),
    plant("        parts = [(row, self.cache", "        self.leave()\n        parts = [(row, self.cache",
          test_where_no_memory_is_left_for_one_more_the_others_go_on_as_if_it_had_never_come),
    plant("if row.left]\n        if kept", "]\n        if kept",
          test_a_row_that_is_ended_from_outside_leaves_and_the_others_go_on),
]
