"""Laws of the linear layers of kernels "cpu": oneDNN's products are PyTorch's but for rounding, gradients too."""

import copy

import pytest
import torch
from mutants import Mutant

from minillama import backends, kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.peft import lora
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
EPS = torch.finfo(torch.float32).eps


def product(x, weight):
    return torch.ops.minillama.linear(x, weight)


def with_gradients(multiply, x, weight, dy):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = multiply(x, weight)
    return y.detach(), *torch.autograd.grad(y, [x, weight], dy)


def bound(a, b):
    """(a b^T in float64, what a sum of K products in fp32 may be off, in whatever order: K eps times that of sizes)."""
    return a.double() @ b.double().T, a.shape[-1] * EPS * (a.double().abs() @ b.double().abs().T)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 9), (1, 129, 131, 67), (2, 65, 130, 260), (1, 1, 1100, 1000),
                                   (4, 256, 64, 33), (1, 4099, 17, 19)])
def test_a_product_and_its_gradients_are_exact_but_for_rounding(shape):
    B, T, K, N = shape
    torch.manual_seed(0)
    x, weight, dy = torch.randn(B, T, K), torch.randn(N, K), torch.randn(B, T, N)
    rows, d_rows = x.view(-1, K), dy.view(-1, N)
    wanted = bound(rows, weight), bound(d_rows, weight.T), bound(d_rows.T, rows.T)
    for found, (exact, allowed) in zip(with_gradients(product, x, weight, dy), wanted, strict=True):
        assert ((found.reshape(exact.shape).double() - exact).abs() <= allowed).all()  # NaN too


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_pytorchs_to_the_bit(dtype):
    x, weight, dy = (torch.randn(size).to(dtype) for size in ((2, 129, 64), (65, 64), (2, 129, 65)))
    for ours, theirs in zip(*(with_gradients(f, x, weight, dy) for f in (product, torch.nn.functional.linear)),
                            strict=True):
        assert torch.equal(ours, theirs)


def test_any_strides_and_no_rows_are_taken():
    x, weight = torch.randn(64, 3, 160).permute(1, 0, 2)[..., ::2], torch.randn(80, 150).T
    exact, allowed = bound(x.reshape(-1, 80), weight)
    assert ((product(x, weight).reshape(-1, 150).double() - exact).abs() <= allowed).all()
    assert product(torch.zeros(0, 80), weight).shape == (0, 150)


def test_a_frozen_weight_keeps_nothing_of_x_and_gets_no_gradient():
    x, weight = torch.randn(64, 128, requires_grad=True), torch.randn(256, 128)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = product(x, weight)
    assert [t.shape for t in kept] == [weight.shape]
    (dx,) = torch.autograd.grad(y.sum(), [x])
    exact, allowed = bound(torch.ones(64, 256), weight.T)
    assert ((dx.double() - exact).abs() <= allowed).all()


def test_what_does_not_fit_is_refused_as_pytorch_refuses_it():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        product(torch.zeros(1024, 40), torch.zeros(64, 41))


def test_the_operator_passes_pytorchs_own_check():
    x, weight = torch.randn(2, 65, 130, requires_grad=True), torch.randn(260, 130, requires_grad=True)
    torch.library.opcheck(torch.ops.minillama.linear.default, (x, weight))


def small_model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(64, 2, 4, 300, hidden_dim=96, max_seq_len=160))


def loss_of(model, tokens):
    return torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_a_model_uses_it_with_these_kernels_alone_and_so_does_its_copy(monkeypatch):
    model, tokens = use_kernels(small_model(), "cpu"), torch.arange(258).view(2, 129)
    wanted = loss_of(small_model(), tokens)  # as the classes themselves multiply
    for one in (model, copy.deepcopy(model)):
        with torch.no_grad():
            one.layers[0].attention.wq.weight.add_(0.25)
        changed = loss_of(one, tokens)  # its own weights, not those of the model that it was copied from
        with torch.no_grad():
            one.layers[0].attention.wq.weight.sub_(0.25)
        assert (changed - wanted).abs() > 1e-4 > (loss_of(one, tokens) - wanted).abs()
    linears = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    for backend, operator in (("cpu", torch.ops.minillama.linear), ("torch", torch.nn.functional.linear)):
        use_kernels(model, backend)
        assert len(linears) == 15 and all(layer.multiply is operator for layer in linears)
    assert set(model.state_dict()) == set(small_model().state_dict())


def test_an_adapters_frozen_base_is_multiplied_by_it_forward_and_back(monkeypatch):
    model, tokens = small_model(), torch.arange(258).view(2, 129)
    add_lora(model, LoRAConfig(3, 6.0, 0.0, ("attention.*", "feed_forward.*")))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found, called, real = [], [], torch.ops.minillama.linear

    def recorded(x, weight):
        called.append(weight.shape)
        return real(x, weight)

    for backend in ("reference", "cpu"):
        use_kernels(model, backend)
        if backend == "cpu":
            for layer in model.modules():
                if getattr(layer, "multiply", None) is real:
                    layer.multiply = recorded
        loss = loss_of(model, tokens)
        found.append([loss, *torch.autograd.grad(loss, trained)])
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).abs().max() <= 1e-4 * max(1.0, plain.abs().max().item())
    assert len(called) == 14 + 1 + 14 - 3  # and back, but for the first layer's q, k and v: nothing learns before them


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant(backends.__name__, "return layer.multiply(x, layer.weight)", "return layer.multiply(x, layer.weight) * 1.01",
           lambda: test_a_model_uses_it_with_these_kernels_alone_and_so_does_its_copy(None)),
    Mutant(lora.__name__, 'getattr(base, "multiply", nn.functional.linear)(dy, base.weight.T)', "dy @ base.weight",
           lambda: test_an_adapters_frozen_base_is_multiplied_by_it_forward_and_back(None)),
]
