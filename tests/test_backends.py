"""Laws of choosing kernels: every backend gives the same losses, gradients and text, and none is taken in silence."""

import copy

import pytest
import torch
from mutants import Mutant

from minillama import backends, kernels
from minillama.backends import BACKENDS, use_kernels
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.quant.quantize_linears import quantize_linears
from minillama.sampling import Sampling
from minillama.transformer import Transformer


def built(backend):
    if backend in kernels.LIBRARIES and backend not in kernels.built_backends():
        pytest.skip(f"backend {backend} is not built here")
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return "cuda" if backend == "cuda" else "cpu"


def loss_and_gradients(model, tokens_BT):
    loss = torch.nn.functional.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
    return loss.item(), torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_references_loss_gradients_and_text(backend):
    device = built(backend)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(32, 2, 4, 61, n_kv_heads=2, hidden_dim=48, max_seq_len=64)).to(device)
    tokens_BT = torch.randint(61, (2, 34), device=device)
    other = use_kernels(copy.deepcopy(model), backend)
    (loss, wanted), (found_loss, found) = (loss_and_gradients(m, tokens_BT) for m in (model, other))
    assert found_loss == pytest.approx(loss, abs=1e-5)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())
    texts = [[ids[0] for ids in generate_tokens(m.eval(), [tokens_BT[0, :9].tolist()], 12, Sampling(temperature=0.0))]
             for m in (model, other)]
    assert texts[0] == texts[1] and len(texts[0]) == 12


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_the_kernels_asked_for_are_the_ones_that_run(backend, monkeypatch):
    built(backend)
    called = []
    for name in ("fused_rope_qk", "flash_attention"):
        real = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a, real=real, name=name, **k: called.append(name) or real(*a, **k))
    model = use_kernels(Transformer(ModelConfig(16, 1, 2, 11, hidden_dim=24, max_seq_len=16)), backend)
    model(torch.zeros(1, 3, dtype=torch.long))
    assert called == ["fused_rope_qk", "flash_attention"]
    model(torch.zeros(1, 1, dtype=torch.long))  # one query fills no vector: PyTorch's is faster
    assert called[2:] == ["fused_rope_qk"] + ["flash_attention"] * (backend != "cpu")


@pytest.mark.parametrize("backend", ["cpu", "simt"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_layers_in_nf4_are_multiplied_by_the_kernels_asked_for(backend, with_adapter):
    """Forward and back, under an adapter too, which asks for its base's gradient by itself; same loss, gradients."""
    built(backend)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(16, 1, 2, 11, hidden_dim=24, max_seq_len=16))
    quantize_linears(model, ("attention.*", "feed_forward.*"))
    if with_adapter:
        add_lora(model, LoRAConfig(2, 4.0, 0.0, ("feed_forward.*",)))
    model.tok_embeddings.weight.requires_grad_()
    tokens_BT = torch.randint(11, (2, 5))
    loss, wanted = loss_and_gradients(use_kernels(model, "torch"), tokens_BT)
    called = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nf4_matmul", "nf4_matmul_backward"):
            real = getattr(kernels, name)
            patch.setattr(kernels, name, lambda *a, real=real, name=name: called.append((name, a[2])) or real(*a))
        found_loss, found = loss_and_gradients(use_kernels(model, backend), tokens_BT)
    assert called == [("nf4_matmul", backend)] * 7 + [("nf4_matmul_backward", backend)] * 7
    assert found_loss == pytest.approx(loss, abs=1e-5)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


def test_back_to_the_reference_is_bit_for_bit_the_reference():
    torch.manual_seed(0)
    model, tokens_BT = Transformer(ModelConfig(16, 1, 2, 11, hidden_dim=24, max_seq_len=16)), torch.arange(7)[None]
    before = model(tokens_BT)
    assert torch.equal(use_kernels(use_kernels(model, "torch"), "reference")(tokens_BT), before)


def test_an_unknown_name_and_an_absent_backend_are_errors(monkeypatch):
    model = Transformer(ModelConfig(16, 1, 2, 11, hidden_dim=24, max_seq_len=16))
    with pytest.raises(ValueError, match="'fast' are not known: choose from reference, torch, cpu"):
        use_kernels(model, "fast")
    monkeypatch.setattr(kernels, "built_backends", lambda: ("reference",))
    with pytest.raises(RuntimeError, match="not built here"):
        use_kernels(model, "simt")


MUTANTS = [
    Mutant("minillama.quant.nf4", "return kernels.nf4_matmul_backward(dy, self, self.backend)",
           "return kernels.nf4_matmul_backward(dy, self, self.backend) * 1.01",
           lambda: test_layers_in_nf4_are_multiplied_by_the_kernels_asked_for("cpu", True)),
    Mutant(backends.__name__, "if isinstance(layer, QuantizedLinear)", "if False",
           lambda: test_layers_in_nf4_are_multiplied_by_the_kernels_asked_for("cpu", False)),
    Mutant(backends.__name__, "attention if backend == \"reference\" else torch_attention",
           "torch_attention if backend == \"reference\" else torch_attention",
           lambda: test_back_to_the_reference_is_bit_for_bit_the_reference()),
]
