"""Decoding by the engine: each stage of a step is what the PyTorch model computes, and so is the text."""

import functools

import pytest
import torch
from mutants import Mutant

from minillama import engine as engine_module
from minillama import kernels
from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.config import ModelConfig
from minillama.engine import Engine, engine_for, refusal
from minillama.generate import generate_text, generate_tokens, prefill
from minillama.kv_cache import KVCache
from minillama.quant.quantize_linears import quantize_linears
from minillama.transformer import Transformer

pytestmark = pytest.mark.skipif("cpu" not in kernels.built_backends(), reason=f"not built: {kernels.BUILD}")
ODD = [ModelConfig(24, 2, 4, 7, n_kv_heads=K, head_dim=6, hidden_dim=40, max_seq_len=20) for K in (1, 2, 4)]
ODD.append(ModelConfig(40, 1, 5, 31, n_kv_heads=1, head_dim=34, hidden_dim=7, max_seq_len=20, tie_embeddings=True))
ODD.append(ModelConfig(16, 3, 2, 2, n_kv_heads=2, head_dim=2, hidden_dim=1, max_seq_len=20, norm_eps=0.5))


def lively_model(config, dtype=torch.float32, kind=None, seed=0):
    """Random weights and gains that are not one, in a model whose backend is "cpu"."""
    torch.manual_seed(seed)
    model = Transformer(config).requires_grad_(False).eval()
    for weight in model.parameters():
        weight.copy_(torch.randn_like(weight) * 1.5 * weight.shape[-1] ** -0.5 if weight.dim() == 2 else
                     1 + 0.3 * torch.randn_like(weight))
    if kind == "mixed":  # what reads the same rows in two forms
        quantize_linears(model, ("wk", "w1", "layers.0.attention.wo"), "nf4")
        quantize_linears(model, ("wv", "w3", "w2"), "int8")
    elif kind:
        quantize_linears(model, kind=kind, skip=())
    return use_kernels(model.to(dtype), "cpu")


def widened(model):
    """The model in float64, with the numbers that its weights stand for."""
    wide = Transformer(model.config).requires_grad_(False).eval()
    state = model.state_dict()
    for name, layer in model.named_modules():
        if hasattr(layer, "dequantize"):
            state = {key: value for key, value in state.items() if not key.startswith(name + ".")}
            state[f"{name}.weight"] = layer.dequantize()
    wide.load_state_dict(state)
    return wide.double()


def plain_stages(model, tokens_BT, pad_B=None):
    """(logits, the residual stream at each stage) at every place, by the PyTorch model without a cache."""
    stages, parts = [], [model.tok_embeddings, *model.layers, model.norm]
    hooks = [part.register_forward_hook(lambda _, __, out: stages.append(out)) for part in parts]
    logits = model(tokens_BT, left_pad_B=pad_B)
    for hook in hooks:
        hook.remove()
    return logits, torch.stack(stages)


def padded_cache(model, B, pad_B=None, length=20):
    return KVCache(model.config, B, length, model.tok_embeddings.weight.dtype, left_pad_B=pad_B)


def law(ours, plain, exact, what, factor=2):
    """Error against float64 at most `factor` times plain PyTorch's, plus a rounding of the largest number for each of
    the some ten sums that lie one behind another in a layer."""
    unit = 10 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    error, of_plain = (float((found.double() - exact).abs().max()) for found in (ours, plain))
    assert ours.shape == exact.shape and error <= factor * of_plain + unit, (
        f"{what}: error {error:.2e}, plain PyTorch has {of_plain:.2e}")


def check_every_stage(model, B, pads=None, factor=2):
    """Tokens one by one through the engine, from an empty cache to its end, each stage held against float64."""
    tokens_BT = torch.randint(model.config.vocab_size, (B, 20))
    pad_B = None if pads is None else torch.tensor(pads)
    exact, plain = (plain_stages(one, tokens_BT, pad_B) for one in (widened(model), model))
    cache, engine = padded_cache(model, B, pad_B), Engine(model)
    steps = [engine.stages(tokens_BT[:, t].contiguous(), cache) for t in range(20)]
    real = torch.ones(B, 20, dtype=torch.bool) if pads is None else torch.arange(20) >= pad_B[:, None]
    for stage in range(model.config.n_layers + 2):
        ours = torch.stack([found[1][stage] for found in steps], 1)
        law(ours[real], plain[1][stage][real], exact[1][stage][real], f"stage {stage}", factor)
    law(torch.stack([found[0] for found in steps], 1)[real], plain[0][real], exact[0][real], "logits", factor)
    assert cache.length == 20


@pytest.mark.parametrize(("number", "B"), [(0, 1), (1, 8), (2, 3), (3, 2), (4, 5)])
def test_every_stage_keeps_the_tolerance_law(number, B, vectors):
    check_every_stage(lively_model(ODD[number], seed=B), B)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_and_caches_in_half_precision_are_no_further_off_than_pytorch(dtype, vectors):
    for config in ODD[:2]:
        check_every_stage(lively_model(config, dtype), 2, factor=1)


class Held(KVCache):
    """A cache that answers with the keys and values that another holds, whatever it is given."""

    def __init__(self, held, dtype):
        self.keys, self.values, self.max_len = held.keys.to(dtype), held.values.to(dtype), held.max_len
        self.length, self.left_pad_B = 0, held.left_pad_B

    def append(self, layer, k, v):
        end = self.length + k.shape[2]
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_fp32_reads_a_cache_in_half_precision_as_the_numbers_it_holds(dtype, vectors):
    for model, pads in ((lively_model(ODD[1]), None), (lively_model(ODD[3], kind="nf4"), [7, 0, 1])):
        tokens_BT, pad_B = torch.randint(7, (3, 20)), pads and torch.tensor(pads)
        cache, engine = KVCache(model.config, 3, 20, dtype, left_pad_B=pad_B), Engine(model)
        ours = torch.stack([engine.step(tokens_BT[:, t].contiguous(), cache) for t in range(20)], 1)
        exact, plain = (one(tokens_BT, Held(cache, of)) for one, of in ((widened(model), torch.float64),
                                                                        (model, torch.float32)))
        real = torch.arange(20) >= (torch.zeros(3, 1) if pads is None else pad_B[:, None])
        law(ours[real], plain[real], exact[real], "logits")


@pytest.mark.parametrize("kind", ["nf4", "int8", "mixed"])
def test_quantized_layers_keep_the_tolerance_law(kind, vectors):
    """LLM.int8 rounds activations: its error is that rounding's, the same for both but for numbers on a half."""
    for B in (1, 5):
        check_every_stage(lively_model(ODD[1], kind=kind), B)
    check_every_stage(lively_model(ODD[1], torch.bfloat16, kind), 2, factor=1.5)


def test_padding_is_never_attended_to_and_takes_no_position(vectors):
    check_every_stage(lively_model(ODD[0]), 4, pads=[0, 3, 11, 19])
    check_every_stage(lively_model(ODD[3], torch.bfloat16), 3, pads=[7, 0, 1], factor=1)


def test_pytorch_and_the_engine_share_a_cache():
    """Prefilled by PyTorch or by the engine, continued by either: keys and values differ by roundings."""
    model, tokens_BT = lively_model(ODD[1]), torch.randint(7, (3, 20))
    caches = [padded_cache(model, 3, torch.tensor([2, 0, 5])) for _ in range(2)]
    prefill(model, tokens_BT[:, :9], caches[0])
    engine = Engine(model)
    for t in range(9):
        engine.step(tokens_BT[:, t].contiguous(), caches[1])
    for cache in caches:
        cache.keep_rows([0, 2])
    kept = tokens_BT[[0, 2]]
    for t in range(9, 20, 2):  # in turn
        by_engine, by_torch = (engine.step(kept[:, t].contiguous(), cache) for cache in caches), None
        one, two = by_engine
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
        if t + 1 < 20:
            by_torch = [prefill(model, kept[:, t + 1:t + 2], cache) for cache in caches]
            torch.testing.assert_close(*by_torch, rtol=0, atol=2e-5)
    seen = torch.arange(20) >= torch.tensor([2, 5])[:, None]
    for a, b in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
        rows = seen[None, :, None, :, None].expand_as(a)
        torch.testing.assert_close(a[rows], b[rows], rtol=0, atol=2e-5)


def test_the_number_of_threads_changes_no_bit(vectors):
    """Sizes at which products, the feed-forward layer, attention and the head are shared among threads."""
    model = lively_model(ModelConfig(256, 2, 4, 1100, n_kv_heads=2, head_dim=64, hidden_dim=700, max_seq_len=80))
    tokens_BT, before, found = torch.randint(1100, (8, 70)), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        cache = padded_cache(model, 8, length=80)
        if found:
            cache.keys.copy_(found[0][1])
            cache.values.copy_(found[0][2])
            cache.advance(69)
        else:
            prefill(model, tokens_BT[:, :69], cache)
        begun = cache.keys.clone(), cache.values.clone()
        found.append((Engine(model).stages(tokens_BT[:, 69].contiguous(), cache), *begun))
    torch.set_num_threads(before)
    assert all(map(torch.equal, found[0][0], found[1][0]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_greedy_text_is_the_plain_models(seed, vectors):
    config = ModelConfig(24, 2, 4, 259, n_kv_heads=2, hidden_dim=32, max_seq_len=40)
    model = lively_model(config, seed=seed)
    prompts = [[256], [9, 8, 7, 6, 5], [1, 2, 3], [0, 0]]
    steps = [list(generate_tokens(use_kernels(model, backend), prompts, 30, stop_ids={1, 2, 3}))
             for backend in ("cpu", "reference")]
    assert steps[0] == steps[1]


def test_generation_lets_the_engine_decode_up_to_8_rows(monkeypatch):
    model, rows = lively_model(ODD[1]), []
    monkeypatch.setattr(engine_module.Engine, "step",
                        lambda self, tokens_B, cache, step=Engine.step: rows.append(len(tokens_B)) or
                        step(self, tokens_B, cache))
    for batch, wanted in ((1, [1] * 5), (8, [8] * 5), (9, [])):
        rows.clear()
        list(generate_tokens(model, [[1, 2]] * batch, 6))
        assert rows == wanted
    rows.clear()
    list(generate_tokens(use_kernels(model, "torch"), [[1, 2]], 6))
    assert not rows, "only where the backend is cpu"


def test_models_that_it_cannot_decode_are_refused_with_the_reason():
    model = lively_model(ODD[0])
    assert refusal(model) is None
    assert refusal(use_kernels(lively_model(ODD[0]), "torch")) == "its kernels are 'torch', not 'cpu'"
    assert "float64" in refusal(lively_model(ODD[0]).double())
    hooked = lively_model(ODD[0])
    hooked.layers[1].register_forward_hook(lambda *_: None)
    assert "hooked" in refusal(hooked)
    other = lively_model(ODD[0])
    other.layers[0].attention.wq = torch.nn.Sequential(other.layers[0].attention.wq)
    assert refusal(other) == "it has a layer that is a Sequential" and engine_for(other) is None
    with pytest.raises(ValueError, match="the engine cannot decode this model: it has a layer that is a Sequential"):
        Engine(other)


def test_what_does_not_fit_is_refused_before_any_work():
    model = lively_model(ODD[0])
    engine, cache = Engine(model), padded_cache(model, 1, length=2)
    with pytest.raises(RuntimeError, match="token 7 is not known: ids go from 0 to 6"):
        engine.step(torch.tensor([7]), cache)
    with pytest.raises(RuntimeError, match=r"keys has shape \[2, 1, 1, 2, 6\], wanted \[2, 3, 1, 2, 6\]"):
        engine.step(torch.tensor([1, 2, 3]), cache)
    for _ in range(2):
        engine.step(torch.tensor([1]), cache)
    with pytest.raises(RuntimeError, match="the cache holds 2 tokens and 3 are wanted"):
        engine.step(torch.tensor([1]), cache)
    full = padded_cache(model, 1, length=30)
    full.advance(20)
    with pytest.raises(ValueError, match="21 tokens are more than the 20 this model attends over"):
        engine.step(torch.tensor([1]), full)


@functools.cache
def story(path, backend):
    model, tokenizer = load_model(path)
    assert (engine_for(use_kernels(model.eval(), backend)) is not None) == (backend == "cpu")
    return "".join(generate_text(model, tokenizer, "", 200))


def test_the_published_model_says_its_464_bytes(weights, vectors):
    path = weights / "stories260K.bin"
    text = story.__wrapped__(path, "cpu")
    assert len(text.encode()) == 464 and text == story(path, "reference")


MUTANTS = [] if "cpu" not in kernels.built_backends() else [
    Mutant("minillama.engine", "feed_forward.w1, feed_forward.w2, feed_forward.w3",
           "feed_forward.w3, feed_forward.w2, feed_forward.w1",
           lambda: check_every_stage(lively_model(ODD[0]), 1)),
    Mutant("minillama.engine", "cache.advance(1)", "cache.advance(cache.length == 0)",
           lambda: check_every_stage(lively_model(ODD[0]), 1)),
    Mutant("minillama.engine", "cache.length, cache.left_pad_B,", "cache.length, None,",
           lambda: check_every_stage(lively_model(ODD[0]), 2, pads=[0, 4])),
    Mutant("minillama.generate", "tokens_BT[:, 0], cache", "tokens_BT[:, 0] * 0, cache",
           lambda: test_the_greedy_text_is_the_plain_models(0, None)),
]
