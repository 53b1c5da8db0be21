"""Sequences packed into rows: nothing lost, nothing padded, nothing leaking from one document into the next."""

from functools import partial

import pytest
import torch
from mutants import Mutant

from minillama.collate import collate
from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.train import sequence_loss as sequence_loss_module
from minillama.train.packing import pack
from minillama.train.sequence_loss import (
    IGNORE,
    Sequence,
    learned_tokens,
    model_loss,
    next_targets,
    sequence_loss,
)
from minillama.transformer import Transformer


def sequences(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 7, (n,), generator=generator).tolist() for n in lengths]
    return [Sequence(row, [IGNORE if i % 3 == 1 else t for i, t in enumerate(row)]) for row in rows]


def test_packing_uses_every_token_once_in_order_without_padding():
    for lengths in [(1,), (3, 1, 4, 1, 5, 9, 2, 6), (8,), (7, 1), (17, 2), (5, 4, 8)]:
        for length in (2, 7, 8, 100):
            for eos in (None, 9):
                parts, end = sequences(*lengths), [] if eos is None else [eos]
                chunks = pack(parts, length, eos)
                joined = {name: torch.cat([getattr(c, name) for c in chunks]).tolist()
                          for name in ("tokens", "labels", "document_ids")}  # fmt: skip
                assert joined["tokens"] == [t for p in parts for t in p.tokens + end]
                assert joined["labels"] == [t for p in parts for t in p.labels + end]
                assert joined["document_ids"] == [i for i, p in enumerate(parts) for _ in p.tokens + end]
                assert all(len(c.tokens) == length for c in chunks[:-1]) and len(chunks[-1].tokens) <= length
    with pytest.raises(ValueError, match="length is 1"):
        pack(sequences(3), 1)


def wide_model():
    """With weights so large that what a token sees moves its loss by more than rounding does."""
    torch.manual_seed(0)
    shape = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 11, "hidden_dim": 24}
    model = Transformer(ModelConfig(**shape, max_seq_len=32))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def test_packed_documents_behind_a_block_diagonal_mask_have_the_losses_they_have_alone():
    model, parts = wide_model(), sequences(5, 2, 7, 3)
    [chunk] = pack(parts, 17)  # one chunk: no document is cut
    tokens, labels, documents = chunk.tokens[None], chunk.labels[None], chunk.document_ids[None]

    def alone():
        rows = [(torch.tensor([part.tokens]), torch.tensor([part.labels])) for part in parts]
        total = sum(sequence_loss(model(row), row_labels, "sum") for row, row_labels in rows)
        return total / sum(learned_tokens(row_labels) for _, row_labels in rows)

    packed = sequence_loss(model(tokens, document_ids_BT=documents), labels, document_ids_BT=documents)
    assert abs(packed.item() - alone().item()) < 1e-5
    ours = torch.autograd.grad(packed, model.parameters())
    for x, wanted in zip(ours, torch.autograd.grad(alone(), model.parameters()), strict=True):
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-5)  # fp32, sums in another order
    open_loss = sequence_loss(model(tokens), labels, document_ids_BT=documents)
    assert abs(open_loss.item() - alone().item()) > 1e-3  # without the mask documents do see one another


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reduction", ["tokens", "sum"])
def test_a_models_loss_is_that_of_all_its_logits_and_its_head_reads_the_learned_places_alone(reduction, packed):
    """fp32, the same terms in another order: 1e-5 of gradients of size 1."""
    model, seen = wide_model(), []
    chunks = pack(sequences(5, 2, 7, 4), 9)
    tokens, labels, documents = (torch.stack([getattr(chunk, name) for chunk in chunks])
                                 for name in ("tokens", "labels", "document_ids"))
    documents = documents if packed else None
    wanted = sequence_loss(model(tokens, document_ids_BT=documents), labels, reduction, documents)
    model.output.register_forward_pre_hook(lambda head, read: seen.append(tuple(read[0].shape)))
    ours = model_loss(model, tokens, labels, reduction, documents)
    assert seen == [(learned_tokens(labels, documents), 16)]
    torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(loss, model.parameters()) for loss in (ours, wanted))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 3, 100])  # of logits at once
def test_the_loss_under_a_large_frozen_head_is_that_of_all_logits_and_never_has_them_at_once(rows, dtype):
    """The same terms, rounded at other places: a few units in the last place of gradients of size 1."""
    model = wide_model().to(dtype)
    model.output.requires_grad_(False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    chunk = pack(sequences(5, 2, 7, 4), 18)[0]
    tokens, labels = chunk.tokens[None], chunk.labels[None]
    wanted, calls, log_softmax = model_loss(model, tokens, labels), [], torch.Tensor.log_softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_loss_module, "HEAD_BYTES", 4 * rows * model.output.out_features)
        patch.setattr(torch.Tensor, "log_softmax", lambda x, dim: calls.append(len(x)) or log_softmax(x, dim))
        ours = model_loss(model, tokens, labels)
    learned = learned_tokens(labels)
    assert calls == ([] if rows == 100 else [rows] * (learned // rows) + [learned % rows] * (learned % rows > 0))
    unit = torch.finfo(dtype).eps
    assert ours.item() == pytest.approx(wanted.item(), rel=8 * max(unit, 1e-7 if dtype == torch.bfloat16 else 0))
    gradients = (torch.autograd.grad(loss, trained) for loss in (ours, wanted))
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 16 * unit * max(1, b.abs().max().item())


def test_a_head_that_is_trained_or_adapted_gets_its_gradient_however_large():
    model, tokens = wide_model(), torch.tensor([[1, 2, 3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_loss_module, "HEAD_BYTES", 1)
        (gradient,) = torch.autograd.grad(model_loss(model, tokens, tokens), [model.output.weight])
        assert gradient.any()
        add_lora(model, LoRAConfig(2, 4.0, 0.0, ("output",)))
        model_loss(model, tokens, tokens).backward()
        assert model.output.B.grad.any()


def test_a_batch_that_teaches_nothing_adds_nothing_and_has_no_mean():
    model, tokens = wide_model(), torch.tensor([[1, 2, 3]])
    model_loss(model, tokens, torch.full((1, 3), IGNORE), "sum").backward()
    assert not any(weight.grad.any() for weight in model.parameters())
    with pytest.raises(ValueError, match="0/0"):
        model_loss(model, tokens, torch.full((1, 3), IGNORE))


def test_the_first_token_of_a_document_is_not_predicted_from_the_last_document():
    labels, documents = torch.tensor([[4, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 2]])
    assert next_targets(labels, documents).tolist() == [[5, IGNORE, 7, IGNORE]]
    assert next_targets(labels).tolist() == [[5, 6, 7, 8]]
    assert (learned_tokens(labels, documents), learned_tokens(labels)) == (2, 4)


def test_padding_on_the_right_is_not_learned_but_a_sequences_own_eos_is():
    tokens, labels = collate([Sequence([5, 9], [IGNORE, 9]), Sequence([1, 2, 3, 9], [IGNORE, 2, 3, 9])])
    assert tokens.tolist() == [[5, 9, 0, 0], [1, 2, 3, 9]]
    assert labels.tolist() == [[IGNORE, 9, IGNORE, IGNORE], [IGNORE, 2, 3, 9]]


plant, PACK = partial(Mutant, "minillama.train.sequence_loss"), "minillama.train.packing"
PACKING = test_packing_uses_every_token_once_in_order_without_padding
BLOCKS = test_packed_documents_behind_a_block_diagonal_mask_have_the_losses_they_have_alone
HEAD = partial(test_the_loss_under_a_large_frozen_head_is_that_of_all_logits_and_never_has_them_at_once, 2,
               torch.float32)
TRAINED = test_a_head_that_is_trained_or_adapted_gets_its_gradient_however_large
RIGHT = test_padding_on_the_right_is_not_learned_but_a_sequences_own_eos_is


def whole(reduction="tokens", packed=True):
    law = test_a_models_loss_is_that_of_all_its_logits_and_its_head_reads_the_learned_places_alone
    return lambda: law(reduction, packed)


# fmt: off
MUTANTS = [
    plant("F.pad(learned_BT, (0, 1))", "F.pad(learned_BT, (1, 0))", whole()),
    plant("logits_NV = model(tokens_BT, document_ids_BT=document_ids_BT,", "logits_NV = model(tokens_BT,", whole()),
    plant("targets_N, logits_at_BT = targets_BT[learned_BT]", "targets_N, logits_at_BT = labels_BT[:, :-1][learned_BT]",
          whole(packed=False)),
    plant(".gather(1, targets)[:, 0]", ".gather(1, targets.flip(0))[:, 0]", HEAD),
    plant("hidden_ND.split(rows)", "hidden_ND.detach().requires_grad_().split(rows)", HEAD),
    plant("type(head) is torch.nn.Linear and not", "not", TRAINED),
    Mutant("minillama.transformer", "hidden_BTD if logits_at_BT is None else hidden_BTD[logits_at_BT]", "hidden_BTD",
           whole()),
    plant("document_ids_BT[:, 1:] != document_ids_BT[:, :-1], IGNORE", "document_ids_BT[:, 1:] < 0, IGNORE", BLOCKS),
    Mutant(PACK, "range(0, len(tokens), length)", "range(0, len(tokens) - length + 1, length)", PACKING),
    Mutant(PACK, "range(0, len(tokens), length)", "range(0, len(tokens), length - 1)", PACKING),
    Mutant(PACK, "labels += sequence.labels + end", "labels += sequence.labels + [-100] * len(end)", PACKING),
    Mutant(PACK, "[number] * (len(sequence.tokens) + len(end))", "[0] * (len(sequence.tokens) + len(end))", PACKING),
    Mutant("minillama.collate", '"labels": IGNORE', '"labels": 0', RIGHT),
]
# fmt: on
