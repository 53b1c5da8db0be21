"""New rows at both ends of a model: old ids keep their scores, old text its loss; training by stages."""

import copy
import math
from functools import partial

import pytest
import torch
from mutants import Mutant
from test_sft import CONFIG, EOS, IGNORE, V, a_model
from test_transformer_parity import as_hugging_face
from tiny_run import one_thread

from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.parity.rounding import gamma, unit_of
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.quant.quantize_linears import quantize_linears
from minillama.train.sequence_loss import Sequence
from minillama.train.sft import SftConfig, fine_tune
from minillama.train.vocabulary import grow_vocabulary, train_vocabulary
from minillama.transformer import Transformer

pytestmark = pytest.mark.usefixtures(one_thread.__name__)
TABLES = {"tok_embeddings.weight", "output.weight"}


def tokens(vocab_size, T=11):
    return torch.randint(0, vocab_size, (3, T), generator=torch.Generator().manual_seed(T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [(13, 14), (64, 112), (257, 300)])
def test_old_ids_keep_rows_and_hidden_states_to_the_bit_and_scores_to_the_rounding_of_one_product(sizes, dtype, tied):
    """A product with another number of rows may run another kernel: sums of 32 terms in fp32 in two orders, each
    rounded once to the dtype."""
    torch.manual_seed(0)
    before_size, after = sizes
    model = Transformer(ModelConfig(32, 2, 4, before_size, hidden_dim=48, tie_embeddings=tied)).to(dtype)
    before = copy.deepcopy(model)
    grow_vocabulary(model, after)
    assert model.config.vocab_size == model.tok_embeddings.num_embeddings == model.output.out_features == after
    assert (model.output.weight is model.tok_embeddings.weight) == tied
    wide = torch.promote_types(dtype, torch.float32)
    for T in (1, 2, 31):
        tokens_BT = tokens(before_size, T)
        hidden_BTD, scores_BTV = model.hidden_states(tokens_BT), model(tokens_BT)
        assert torch.equal(hidden_BTD, before.hidden_states(tokens_BT)) and scores_BTV.shape[-1] == after
        sizes_BTV = hidden_BTD.double().abs() @ before.output.weight.double().abs().T
        bound = 2 * (gamma(32, unit_of(wide)) + (dtype != wide) * unit_of(dtype)) * sizes_BTV
        assert ((scores_BTV[..., :before_size].double() - before(tokens_BT).double()).abs() <= bound).all()
    for ours, theirs in ((model.tok_embeddings.weight, before.tok_embeddings.weight),
                         (model.output.weight, before.output.weight)):
        assert ours.dtype == dtype and torch.equal(ours[:before_size], theirs)
        mean = theirs.double().mean(0)
        atol = gamma(before_size, unit_of(wide)) * theirs.abs().max().item()  # a sum; then one rounding to the dtype
        assert torch.allclose(ours[before_size:].double(), mean.expand(after - before_size, -1),
                              rtol=unit_of(dtype), atol=atol)


def test_old_rows_are_where_transformers_keeps_them():
    """Its own resize draws new rows from the old ones' distribution; old logits are the same for both."""
    model = a_model()
    theirs = as_hugging_face(model)
    theirs.resize_token_embeddings(29)
    grow_vocabulary(model, 29)
    tokens_BT = tokens(V)
    torch.testing.assert_close(model(tokens_BT)[..., :V], theirs(tokens_BT).logits[..., :V], rtol=0, atol=2e-5)
    assert model(tokens_BT).shape == theirs(tokens_BT).logits.shape


def trained(rows):
    torch.manual_seed(1)
    model = Transformer(ModelConfig(32, 2, 4, 64, hidden_dim=64, max_seq_len=64))
    fine_tune(model, rows, rows[:3], SftConfig(steps=60, batch_size=8, max_lr=1e-2), progress=False)
    return model


def counting(step, n=24):
    """Rows that count in steps and round again."""
    rows = [[(i + step * t) % 64 for t in range(16)] for i in range(n)]
    return [Sequence(row, row) for row in rows]


def most_lost(model, before, tokens_BT):
    """By how many nats the log-probability of an old token fell, at most over all places and tokens."""
    V = before.config.vocab_size
    with torch.no_grad():
        old, new = (m(tokens_BT).double().log_softmax(-1)[..., :V] for m in (before, model))
    return (old - new).max().item()


def check_old_text_costs_little_more(model, tokens_BT, grown=96):
    """exp is convex, so a row that scores the mean of V scores adds at most the mean of their V exponentials: n such
    rows multiply the softmax's sum by at most 1 + n / V. 1e-5: logits in fp32."""
    before, bound = copy.deepcopy(model), math.log(1 + grown / model.config.vocab_size)
    grow_vocabulary(model, before.config.vocab_size + grown)
    lost = most_lost(model, before, tokens_BT)
    assert lost <= bound + 1e-5
    return lost, bound


def test_old_text_costs_at_most_the_log_of_the_growth_more():
    rows = counting(3)
    tokens_BT = torch.tensor([row.tokens for row in rows])
    check_old_text_costs_little_more(trained(rows), tokens_BT)
    blank = trained(rows)
    blank.output.weight.data.zero_()  # all equally likely: the bound is reached
    lost, bound = check_old_text_costs_little_more(blank, tokens_BT)
    assert lost == pytest.approx(bound, abs=1e-6)


def test_so_it_does_in_a_real_model(weights):
    from minillama.checkpoint import load_model

    model = load_model(weights / "stories260K.bin")[0].eval()
    said = [token for (token,) in generate_tokens(model, [[1]], 100)]
    check_old_text_costs_little_more(model, torch.tensor([[1, *said]]))


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("tied", [False, True])
def test_stage_one_changes_the_two_tables_and_not_a_bit_else(tied):
    model = a_model(ModelConfig(16, 2, 2, V, hidden_dim=24, max_seq_len=40, tie_embeddings=tied))
    grow_vocabulary(model, V + 5)
    before = copy.deepcopy(model.state_dict())
    train_vocabulary(model)
    rows = [Sequence([1, V + i, 3, V + 4 - i, EOS], [IGNORE] * 3 + [V + 4 - i, EOS]) for i in range(5)]
    history = fine_tune(model, rows, rows, CONFIG, progress=False)
    assert changed(model, before) == TABLES
    assert history[-1]["held_out_loss"] < history[0]["held_out_loss"]
    assert all(p.grad is None for name, p in model.named_parameters() if name not in TABLES)


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_stage_two_changes_adapters_and_tables_and_not_a_bit_of_the_base(kind):
    model = a_model()
    grow_vocabulary(model, V + 5)
    if kind:
        quantize_linears(model, kind=kind)
    add_lora(model, LoRAConfig(2, 4.0, 0.0, ("attention.*", "feed_forward.*")))
    train_vocabulary(model, alone=False)
    before = copy.deepcopy(model.state_dict())
    rows = [Sequence([1, V + i, 3, V + 4 - i, EOS], [IGNORE] * 3 + [V + 4 - i, EOS]) for i in range(5)]
    fine_tune(model, rows, rows, CONFIG, progress=False)
    adapters = {f"{layer}.{part}" for layer in lora_layers(model) for part in "AB"}
    assert changed(model, before) == TABLES | adapters


def test_what_cannot_grow_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 12: .* from the present 13 on"):
        grow_vocabulary(a_model(), 12)
    with pytest.raises(ValueError, match="vocab_size is 20.0"):
        grow_vocabulary(a_model(), 20.0)
    model = a_model()
    add_lora(model, LoRAConfig(2, targets=("output",)))
    with pytest.raises(ValueError, match="the head is a LoRALinear"):
        grow_vocabulary(model, 20)


plant = partial(Mutant, "minillama.train.vocabulary")
EQUAL = partial(test_old_ids_keep_rows_and_hidden_states_to_the_bit_and_scores_to_the_rounding_of_one_product,
                (64, 112), torch.float32)
MUTANTS = [
    plant("torch.cat([table.weight, mean.expand(vocab_size - before, -1)])",
          "torch.cat([mean.expand(vocab_size - before, -1), table.weight])", lambda: EQUAL(False)),
    plant("    model.tie_weights()\n", "", lambda: EQUAL(True)),
    plant(".mean(0)", ".amax(0)", test_old_text_costs_at_most_the_log_of_the_growth_more),
    plant("    if alone:\n        model.requires_grad_(False)\n", "",
          lambda: test_stage_one_changes_the_two_tables_and_not_a_bit_else(False)),
    plant("for table in (model.tok_embeddings, model.output):\n        table.weight.requires_grad_()",
          "for table in (model.tok_embeddings,):\n        table.weight.requires_grad_()",
          lambda: test_stage_two_changes_adapters_and_tables_and_not_a_bit_of_the_base(None)),
]
