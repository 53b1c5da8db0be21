"""LoRA against float64 loops and against peft: forward, gradients and files, on plain and quantized
bases."""

import math

import pytest
import torch
from mutants import Mutant
from torch import nn

from minillama.config import ModelConfig, preset
from minillama.peft.lora import (
    LoRAConfig,
    add_lora,
    lora_layers,
    low_rank_sum,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear
from minillama.transformer import Transformer

ALL = ("attention.*", "feed_forward.*")
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 5), (24, 40), (40, 24), (3, 3)]  # out, in
BASES = ("linear", "bf16", "nf4", "int8")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(out_features=24, in_features=40, kind="linear", train=True, rank=3, alpha=5.0, dropout=0.0):
    """A LoRALinear on a base of the given kind; with `train`, B is filled with normal numbers."""
    linear = nn.Linear(in_features, out_features, bias=False)
    linear.weight = nn.Parameter(normal(out_features, in_features))
    base = {"linear": lambda: linear, "bf16": linear.bfloat16, "nf4": lambda: NF4Linear.from_linear(linear),
            "int8": lambda: Int8Linear.from_linear(linear)}[kind]()
    model = nn.Sequential(base)
    add_lora(model, LoRAConfig(rank, alpha, dropout, ("0",)))
    if train:
        with torch.no_grad():
            model[0].B.copy_(normal(out_features, rank, seed=1))
    return model[0]


def small_model(seed=0, **changes):
    """A grouped-query model in which every matrix but wq and wo is non-square."""
    torch.manual_seed(seed)
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=61, hidden_dim=40)
    return Transformer(config if not changes else preset("tiny", **changes)).eval()


def train_by_chance(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for module in lora_layers(model).values():
        with torch.no_grad():
            module.B.copy_(0.3 * torch.randn(module.B.shape, generator=generator))
    return model


def tokens(T=37):
    return torch.randint(61, (2, T), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_new_adapter_changes_nothing_bit_for_bit(shape, kind):
    module = layer(*shape, kind=kind, train=False)
    x = normal(4, shape[1], seed=2).to(torch.bfloat16 if kind == "bf16" else torch.float32)
    assert torch.equal(module(x), module.base(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_equation_3(shape):
    """Loops in float64; 1e-5: fp32 sums of at most 40 products of size ~5. The formula and what is run."""
    module = layer(*shape)
    (out_features, in_features), x = shape, normal(2, shape[1], seed=2)
    W, A, B = (t.detach().double() for t in (module.base.weight, module.A, module.B))
    y = module(x).detach()
    plain = low_rank_sum(x, module.base, module.A, module.B, 5.0 / 3).detach()
    for row in range(2):
        low = [sum(A[r, i] * x[row, i].double() for i in range(in_features)) for r in range(3)]
        for o in range(out_features):
            wanted = sum(W[o, i] * x[row, i].double() for i in range(in_features))
            wanted += 5.0 / 3 * sum(B[o, r] * low[r] for r in range(3))
            assert float(y[row, o]) == pytest.approx(float(wanted), abs=1e-5)
            assert float(plain[row, o]) == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_gradients_are_those_of_equation_3_and_the_base_gets_none(kind):
    module, x, dy = layer(kind=kind), normal(4, 40, seed=2).requires_grad_(), normal(4, 24, seed=3)
    module(x).backward(dy)
    dequantized = module.base.weight.detach() if kind == "linear" else module.base.dequantize()
    W, A, B = (t.detach().double() for t in (dequantized, module.A, module.B))
    scaling, dy, x64 = 5.0 / 3, dy.double(), x.detach().double()
    wanted = {"x": dy @ W + scaling * dy @ B @ A, "A": scaling * (dy @ B).T @ x64, "B": scaling * dy.T @ (x64 @ A.T)}
    given = {"x": x.grad, "A": module.A.grad, "B": module.B.grad}
    for name in wanted:
        assert torch.allclose(given[name].double(), wanted[name], atol=2e-5), name  # fp32 sums of size ~30
    assert all(parameter.grad is None for parameter in module.base.parameters())


def test_A_starts_uniform_between_plus_and_minus_one_over_root_in():
    torch.manual_seed(0)
    A = layer(24, 400, rank=50, alpha=1.0).A.detach()
    assert 0.99 / 20 < float(A.abs().max()) <= 1 / 20 * (1 + 1e-6)  # of 20,000 draws
    assert float(A.std()) == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02)


def test_dropout_acts_on_the_input_of_A_in_training_only():
    module = layer(24, 24, rank=24, alpha=24.0, dropout=0.25)
    with torch.no_grad():
        module.A.copy_(torch.eye(24))
        module.B.copy_(torch.eye(24))
    x = 1 + normal(500, 24, seed=2).abs()
    assert torch.allclose(module.eval()(x) - module.base(x), x, atol=1e-4)
    torch.manual_seed(0)
    ratio = (module.train()(x) - module.base(x)) / x
    kept = ratio > 0.5
    assert torch.allclose(ratio[kept], torch.tensor(4 / 3), atol=1e-4)
    assert torch.allclose(ratio[~kept], torch.tensor(0.0), atol=1e-4)
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.02)  # 12,000 draws: 5 spreads


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merging_keeps_the_function_and_unmerging_restores_every_bit(shape):
    module, x = layer(*shape), normal(4, shape[1], seed=2)
    before, weight = module(x), module.base.weight.clone()
    assert module.merge() < 1e-5
    assert torch.allclose(module(x), before, atol=1e-5)
    assert not torch.equal(module.base.weight, weight)
    module.unmerge()
    assert torch.equal(module(x), before) and torch.equal(module.base.weight, weight)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_merging_into_a_quantized_base_is_refused_before_anything_is_changed(kind):
    model = nn.Sequential(layer(24, 40, kind))
    before = model[0].base.dequantize()
    with pytest.raises(ValueError, match="the base is quantized.*dequantize_linears"):
        merge_lora(model)
    assert not model[0].merged and torch.equal(model[0].base.dequantize(), before)


def test_a_base_in_half_precision_tells_how_much_of_the_adapter_it_loses():
    """bf16 rounds to 2^-8 of each weight at most, of a product of 12 % of their size: at most 3 %, and not nothing."""
    module = layer(256, 192, "bf16")
    wanted = module.base.weight.float() + module.product()
    told = module.merge()
    assert told == pytest.approx(float((module.base.weight - wanted).norm() / module.product().norm()), rel=1e-4)
    assert 1e-3 < told < 0.033 and module.base.weight.dtype == torch.bfloat16


def test_merged_logits_are_within_1e_5_and_unmerged_ones_equal():
    model = train_by_chance(small_model())
    add_lora(model, LoRAConfig(rank=4, alpha=8, targets=ALL))
    train_by_chance(model)
    base, before = {name: p.clone() for name, p in model.named_parameters()}, model(tokens())
    errors = merge_lora(model)
    assert len(errors) == 14 and max(errors.values()) < 1e-5
    assert torch.allclose(model(tokens()), before, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="merged already"):
        merge_lora(model)
    unmerge_lora(model)
    assert torch.equal(model(tokens()), before)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
    merge_lora(model, keep_base=False)
    with pytest.raises(ValueError, match="keep_base"):
        unmerge_lora(model)
    remove_lora(model)
    assert set(model.state_dict()) == set(small_model().state_dict())
    assert torch.allclose(model(tokens()), before, rtol=0, atol=1e-5)


def test_only_the_adapter_is_trained():
    model = small_model()
    names = add_lora(model, LoRAConfig(rank=2, targets=("wq", "feed_forward.w2")))
    assert names == [f"layers.{i}.{part}" for i in (0, 1) for part in ("attention.wq", "feed_forward.w2")]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.{part}" for name in names for part in "AB"}


def test_adapters_take_turns_and_the_base_comes_back():
    model = small_model()
    base = model(tokens())
    outputs = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        add_lora(model, LoRAConfig(rank=2, targets=ALL))
        train_by_chance(model, seed)
        outputs.append(model(tokens()))
        remove_lora(model)
        assert torch.equal(model(tokens()), base)
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-3)
    assert torch.equal(outputs[0], outputs[2])


def test_7b_with_rank_8_on_q_and_v_trains_4194304_numbers():
    with torch.device("meta"):
        model = Transformer(preset("llama_7b"))
    add_lora(model, LoRAConfig(rank=8))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_194_304


def test_wrong_requests_are_refused_by_name():
    model = small_model()
    with pytest.raises(ValueError, match="attention.wx"):
        add_lora(model, LoRAConfig(targets=("attention.wq", "attention.wx")))
    add_lora(model, LoRAConfig())
    for call, match in ((lambda: add_lora(model, LoRAConfig()), "already"),
                        (lambda: merge_lora(small_model()), "no adapter to merge"),
                        (lambda: add_lora(small_model(tie_embeddings=True), LoRAConfig(targets="output")), "tied")):
        with pytest.raises(ValueError, match=match):
            call()
    for wrong in ({"rank": 0}, {"rank": 2.0}, {"alpha": 0}, {"alpha": math.nan}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
            LoRAConfig(**wrong)


def test_one_layer_equals_pefts_forward_and_gradients():
    peft_layer = pytest.importorskip("peft.tuners.lora.layer", reason="peft is the oracle of LoRA's forward")
    peft = pytest.importorskip("peft", reason="peft is the oracle of LoRA's forward")
    ours = layer(24, 40)
    base = nn.Linear(40, 24, bias=False)
    base.weight = nn.Parameter(normal(24, 40))
    theirs = peft_layer.Linear(base, "default", peft.LoraConfig(r=3, lora_alpha=5), r=3, lora_alpha=5)
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.A)
        theirs.lora_B["default"].weight.copy_(ours.B)
    x, dy = normal(4, 40, seed=2), normal(4, 24, seed=3)
    y, y_theirs = ours(x), theirs(x)
    y.backward(dy)
    y_theirs.backward(dy)
    assert torch.allclose(y, y_theirs, rtol=1e-6, atol=1e-6)
    for part, parameter in (("A", theirs.lora_A), ("B", theirs.lora_B)):
        grads = getattr(ours, part).grad, parameter["default"].weight.grad
        torch.testing.assert_close(*grads, rtol=2e-6, atol=5e-6)  # s is multiplied in before the sum: sizes up to 21


def test_an_adapter_added_to_a_model_in_eval_mode_does_not_drop():
    model = small_model()
    add_lora(model, LoRAConfig(dropout=0.5, targets=ALL))
    train_by_chance(model)
    assert torch.equal(model(tokens()), model(tokens()))


LORA = "minillama.peft.lora"


def forward():
    test_forward_is_equation_3((3, 5))


def merging():
    test_merging_keeps_the_function_and_unmerging_restores_every_bit((3, 5))


MUTANTS = [
    Mutant(LORA, "else self.rank)", "else 1)", forward),
    Mutant(LORA, "return self.alpha / (", "return 1 / self.alpha * (", forward),
    Mutant(LORA, "change = scaling * low", "change = low", forward),
    Mutant(LORA, "dropped, self.A, self.B, self.config", "dropped, self.B, self.A, self.config",
           lambda: test_forward_is_equation_3((3, 3))),
    Mutant(LORA, "nn.Parameter(torch.zeros(self.out_features, config.rank, **like))",
           "nn.Parameter(torch.randn(self.out_features, config.rank, **like) / 100)",
           lambda: test_a_new_adapter_changes_nothing_bit_for_bit((3, 5), "linear")),
    Mutant(LORA, "kaiming_uniform_(self.A, a=math.sqrt(5))", "kaiming_uniform_(self.A)",
           test_A_starts_uniform_between_plus_and_minus_one_over_root_in),
    Mutant(LORA, "self.config.dropout and self.training:", "self.config.dropout:",
           test_dropout_acts_on_the_input_of_A_in_training_only),
    Mutant(LORA, "self.config.dropout and self.training:", "False:",
           test_dropout_acts_on_the_input_of_A_in_training_only),
    Mutant(LORA, "self.train(base.training)", "pass",
           test_an_adapter_added_to_a_model_in_eval_mode_does_not_drop),
    Mutant(LORA, "if self.merged:", "if False:", merging),
    Mutant(LORA, "self.config.scaling * (self.B", "(self.B", merging),
    Mutant(LORA, "self.config.scaling * (self.B", "-self.config.scaling * (self.B", merging),
    Mutant("minillama.quant.quantized_linear", "    model.requires_grad_(False)\n", "",
           test_only_the_adapter_is_trained),
    Mutant(LORA, "replace_module(model, name, layer.base)", "pass", test_adapters_take_turns_and_the_base_comes_back),
]
