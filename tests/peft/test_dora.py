"""DoRA and rsLoRA: the base at the start, equation 5, peft's numbers both ways, merging."""

import pytest
import torch
from mutants import Mutant
from test_lora import ALL, normal, small_model, tokens
from test_lora_file import close, peft_twin
from torch import nn
from tuned_models import disturb, trained

from minillama.peft.adapter_file import load_adapter, save_adapter
from minillama.peft.dora import DoRALinear
from minillama.peft.lora import LoRAConfig, LoRALinear, add_lora, lora_layers, merge_lora, unmerge_lora
from minillama.quant.int8 import Int8Linear
from minillama.quant.nf4 import NF4Linear

KINDS = {"dora": (DoRALinear, False), "rslora": (LoRALinear, True), "both": (DoRALinear, True)}
SHAPES = [(1, 7), (7, 1), (3, 5), (24, 40)]  # out, in


def adapted(kind, change=True):
    model = small_model()
    add_lora(model, LoRAConfig(4, 6.0, 0.0, ALL, KINDS[kind][1]), KINDS[kind][0])
    return disturb(model) if change else model


def test_rank_stabilized_scaling_is_alpha_over_the_root_of_the_rank():
    assert LoRAConfig(16, 6.0, rank_stabilized=True).scaling == 1.5 and LoRAConfig(16, 8.0).scaling == 0.5


@pytest.mark.parametrize("base", ["linear", "nf4", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_new_layer_is_the_base_bit_for_bit(shape, base):
    linear = nn.Linear(shape[1], shape[0], bias=False)
    base = {"linear": lambda: linear, "nf4": lambda: NF4Linear.from_linear(linear),
            "int8": lambda: Int8Linear.from_linear(linear)}[base]()
    x = normal(4, shape[1])
    assert torch.equal(DoRALinear(base, LoRAConfig(3))(x), base(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_equation_5(shape):
    linear = nn.Linear(shape[1], shape[0], bias=False)
    layer = DoRALinear(linear, LoRAConfig(3, 5.0))
    with torch.no_grad():
        layer.B.copy_(normal(*layer.B.shape))
        layer.m.copy_(normal(shape[0], seed=4))
    x, m = normal(4, shape[1]), layer.m.detach().double()
    W = linear.weight.detach().double() + 5 / 3 * (layer.B.double() @ layer.A.double()).detach()
    lengths = torch.tensor([sum(float(w) ** 2 for w in row) ** 0.5 for row in W])
    assert torch.allclose(layer(x).double(), x.double() @ (m[:, None] * W / lengths[:, None]).T, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_equation_5_with_the_norm_held_constant(shape):
    """Section 4.3. float64 autograd of the formula; fp32 sums of at most 40 products and a division: 1e-5."""
    layer = DoRALinear(nn.Linear(shape[1], shape[0], bias=False), LoRAConfig(3, 5.0))
    layer.B.data, x, dy = normal(*layer.B.shape), normal(4, shape[1], seed=4), normal(4, shape[0], seed=6)
    layer(x).backward(dy)
    A, B, m = (p.detach().double().requires_grad_() for p in (layer.A, layer.B, layer.m))
    W = layer.base.weight.detach().double() + 5 / 3 * B @ A
    (x.double() @ ((m / W.detach().norm(dim=1))[:, None] * W).T).backward(dy.double())
    for ours, wanted in ((layer.A, A), (layer.B, B), (layer.m, m)):
        assert torch.allclose(ours.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5 * float(wanted.grad.abs().max()))


def test_a_row_of_zeros_stays_zeros():
    base = nn.Linear(5, 3, bias=False)
    base.weight.data[1] = 0
    y = DoRALinear(base, LoRAConfig(2))(normal(4, 5))
    assert y.isfinite().all() and not y[:, 1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_compute_the_same(kind):
    model = adapted(kind)
    with peft_twin(small_model()) as (peft, theirs, folder):
        save_adapter(folder, model)
        read = peft.PeftModel.from_pretrained(theirs, folder).eval()
        assert close(model(tokens()), read(tokens()).logits)
        assert not torch.allclose(model(tokens()), small_model()(tokens()), atol=0.05)
    with peft_twin(small_model()) as (peft, theirs, folder):
        made = disturb(peft.get_peft_model(theirs, peft.LoraConfig(
            r=4, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=kind != "rslora",
            use_rslora=kind != "dora")).eval())
        assert made.get_nb_trainable_parameters()[0] == sum(map(torch.numel, trained(model).values()))
        made.save_pretrained(folder)
        load_adapter(folder, again := small_model())
        assert close(again(tokens()), made(tokens()).logits)
        assert all(type(layer) is KINDS[kind][0] for layer in lora_layers(again).values())


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_the_function_and_unmerging_restores_every_bit(kind):
    model = adapted(kind)
    beside = model(tokens()).detach()
    assert max(merge_lora(model).values()) < 1e-5 and close(model(tokens()), beside)
    unmerge_lora(model)
    assert torch.equal(model(tokens()), beside)


def test_a_file_without_its_lengths_is_refused(tmp_path):
    from minillama.checkpoint.safetensors import read_safetensors, write_safetensors

    save_adapter(tmp_path, adapted("dora"))
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(path).items()}
    write_safetensors(path, {name: t for name, t in tensors.items() if not name.endswith("vector")})
    with pytest.raises(ValueError, match="lack A or B or m"):
        load_adapter(tmp_path, small_model())
    write_safetensors(path, {name: t[1:] if name.endswith("vector") else t for name, t in tensors.items()})
    with pytest.raises(ValueError, match="made for another base"):
        load_adapter(tmp_path, small_model())


def peft_agrees():
    test_peft_and_we_compute_the_same("both")


MUTANTS = [
    Mutant("minillama.peft.dora", ".norm(dim=1)", ".norm(dim=0)", lambda: test_forward_is_equation_5((24, 40))),
    Mutant("minillama.peft.dora", "(h * (self.m / self.row_norms()))", "(h * self.m)",
           lambda: test_forward_is_equation_5((3, 5))),
    Mutant("minillama.peft.dora", "[:, None] * super()", "[:, None] + super()",
           lambda: test_merging_keeps_the_function_and_unmerging_restores_every_bit("dora")),
    Mutant("minillama.peft.dora", "nn.Parameter(self.row_norms())", "nn.Parameter(self.row_norms().square())",
           lambda: test_a_new_layer_is_the_base_bit_for_bit((3, 5), "linear")),
    Mutant("minillama.peft.dora", ".clamp(min=1e-30)", "", test_a_row_of_zeros_stays_zeros),
    Mutant("minillama.peft.dora", "self.row_norms())).to(", "self.row_norms()).detach()).to(",
           lambda: test_gradients_are_those_of_equation_5_with_the_norm_held_constant((3, 5))),
    Mutant("minillama.peft.lora", "(self.B @ self.A).detach()", "(self.B @ self.A)",
           lambda: test_gradients_are_those_of_equation_5_with_the_norm_held_constant((3, 5))),
    Mutant("minillama.peft.lora_file", '"use_rslora": config.rank_stabilized', '"use_rslora": False',
           lambda: test_peft_and_we_compute_the_same("rslora")),
    Mutant("minillama.peft.lora_file", "config[\"use_rslora\"]), kind", "False), kind",
           lambda: test_peft_and_we_compute_the_same("rslora")),
    Mutant("minillama.peft.lora", "math.sqrt(self.rank) if", "self.rank if",
           test_rank_stabilized_scaling_is_alpha_over_the_root_of_the_rank),
    Mutant("minillama.peft.lora_file", "m = rows_to_hf(path, layer.m.detach(), model.config.n_heads,",
           "m = rows_to_hf(path, layer.m.detach(), model.config.n_kv_heads,", peft_agrees),
    Mutant("minillama.peft.lora_file", "tensor if part == \"A\" else rows", "tensor if part != \"B\" else rows",
           peft_agrees),
]
