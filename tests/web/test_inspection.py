"""What the page shows of a model is what the model computes: the same bits of the last layer, the same weights."""

import math
from functools import partial

import pytest
import torch
from mutants import Mutant
from test_generate import ByteTokenizer

from minillama.attention import attention, attention_weights
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.generate import prefill
from minillama.kv_cache import KVCache
from minillama.transformer import Transformer
from minillama.web.inspection import distribution, inspect, inspection

CONFIG = ModelConfig(24, 3, 4, 259, n_kv_heads=2, hidden_dim=32, max_seq_len=40)
TEXT = [256, *b"odd text"]


class Named(ByteTokenizer):
    def id_to_piece(self, index):
        return "" if index == 258 else f"t{index}"


def model_of(seed, kernels="reference"):
    torch.manual_seed(seed)
    model = Transformer(CONFIG).eval()
    use_kernels(model, kernels)
    return model


@pytest.mark.parametrize("kernels", ["reference", "torch"])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_the_lens_of_the_last_layer_is_the_models_logits_bit_for_bit(n, kernels):
    for seed in range(3):
        model = model_of(seed, kernels)
        cache = KVCache(CONFIG, 1, n)
        with torch.inference_mode():
            logits_V = prefill(model, torch.tensor([TEXT[:n]]), cache)[0]
        assert torch.equal(inspect(model, TEXT[:n])[1][-1], logits_V)


@torch.no_grad()
def written_out(model, ids):
    """The attention weights of the last query by a walk over the layers, and the residual stream behind each."""
    kept = []

    def attend(q, k, v, causal=True, mask_BTS=None):
        kept.append(attention_weights(q, k, causal, mask_BTS)[0, :, -1])
        return attention(q, k, v, causal, mask_BTS)

    other = model_of(0)
    other.load_state_dict(model.state_dict())
    for block in other.layers:
        block.attention.attend = attend
    other(torch.tensor([ids]))
    return torch.stack(kept)


@pytest.mark.parametrize("kernels", ["reference", "torch"])
def test_attention_is_the_models_own_and_each_row_sums_to_one(kernels):
    for seed in range(3):
        model = model_of(seed, kernels)
        weights_LHS = inspect(model, TEXT)[0]
        assert weights_LHS.shape == (3, 4, len(TEXT))
        torch.testing.assert_close(weights_LHS.sum(-1), torch.ones(3, 4), rtol=0, atol=1e-6)
        torch.testing.assert_close(weights_LHS, written_out(model, TEXT), rtol=0, atol=1e-6)


def test_each_layer_of_the_lens_is_the_head_on_a_model_that_ends_there():
    model = model_of(1)
    lens_LV = inspect(model, TEXT)[1]
    layers = model.layers
    for depth in range(CONFIG.n_layers + 1):
        model.layers = layers[:depth]
        with torch.no_grad():
            torch.testing.assert_close(lens_LV[depth], model(torch.tensor([TEXT]))[0, -1], rtol=1e-5, atol=1e-5)
    model.layers = layers


def test_looking_leaves_the_model_as_it_was():
    model = model_of(2)
    before = [block.attention.attend for block in model.layers]
    inspect(model, TEXT)
    with pytest.raises(ValueError, match="tokens"):
        inspect(model, [1] * 41)
    assert [block.attention.attend for block in model.layers] == before
    assert not any(block._forward_hooks for block in model.layers)
    with pytest.raises(ValueError, match="at least one token"):
        inspect(model, [])


@pytest.mark.parametrize("n_top", [3, 64, 259])
def test_the_distribution_keeps_every_tokens_mass(n_top):
    """The likeliest one by one and exactly; of the others, steps of logit that lose at most (width / 2)^2 / 2."""
    logits_V = 3 * torch.randn(259, generator=torch.Generator().manual_seed(n_top))
    found = distribution(Named(), logits_V, n_top)
    order = logits_V.argsort(descending=True)
    assert [index for index, _, _ in found["top"]] == order[:n_top].tolist()
    assert sum(count for _, count in found["rest"]) == 259 - n_top
    mass = sum(math.exp(logit) for _, _, logit in found["top"])
    mass += sum(count * math.exp(logit) for logit, count in found["rest"])
    rest = logits_V[order[n_top:]]
    width = (rest.max() - rest.min()).item() / 32 if len(rest) else 0
    assert mass == pytest.approx((logits_V - logits_V.max()).exp().sum().item(), rel=width**2 / 8 + 2e-4)


def test_an_inspection_names_layers_ranks_and_odd_tokens():
    model = model_of(0)
    found = inspection(model, Named(), TEXT, said=258)
    logits_V = inspect(model, TEXT)[1][-1]
    assert [layer["layer"] for layer in found["lens"]] == [0, 1, 2, 3]
    assert found["lens"][-1]["rank"] == 1 + int((logits_V > logits_V[258]).sum())
    assert found["lens"][-1]["logprob"] == pytest.approx(logits_V.log_softmax(-1)[258].item(), abs=1e-6)
    assert (found["heads"], found["kv_heads"], found["virtual_tokens"]) == (4, 2, 0)
    assert {index: text for index, text, _ in distribution(Named(), logits_V, 259)["top"]}[258] == "<258>"


plant = partial(Mutant, "minillama.web.inspection")
MUTANTS = [
    plant("model.logits(model.norm(x_BTD)[:, -1:])", "model.logits(x_BTD[:, -1:])",
          lambda: test_the_lens_of_the_last_layer_is_the_models_logits_bit_for_bit(9, "torch")),
    plant("attention_weights(q_BHTd[:, :, -1:]", "attention_weights(q_BHTd[:, :, :1]",
          lambda: test_attention_is_the_models_own_and_each_row_sums_to_one("torch")),
    plant("undo.callback(setattr, block.attention", "(lambda *_: None)(setattr, block.attention",
          test_looking_leaves_the_model_as_it_was),
    plant("streams = [stream[0][0],", "streams = [stream[0][1],",
          test_each_layer_of_the_lens_is_the_head_on_a_model_that_ends_there),
    plant("others[best.indices] = False", "others[best.indices[:1]] = False",
          lambda: test_the_distribution_keeps_every_tokens_mass(64)),
    plant("(log_V > log_V[said])", "(log_V >= log_V[said])", test_an_inspection_names_layers_ranks_and_odd_tokens),
]
