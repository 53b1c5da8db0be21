"""The KV cache: what was stored comes back, nothing more, and room that is not there is refused."""

from unittest import mock

import pytest
import torch
from mutants import Mutant

from minillama.config import PRESETS, ModelConfig
from minillama.generate import generate_tokens
from minillama.kv_cache import KVCache
from minillama.transformer import Transformer

CONFIG = ModelConfig(12, 3, 4, 17, n_kv_heads=2, head_dim=4, hidden_dim=10, max_seq_len=64)


def new_rows(T, batch=2):
    torch.manual_seed(T)
    return torch.randn(2, batch, 2, T, 4)


def test_what_was_stored_comes_back_in_order():
    cache, stored = KVCache(CONFIG, 2, 9), []
    for T in (1, 5, 0, 3):
        rows = new_rows(T)
        stored.append(rows)
        for layer in range(3):
            k, v = cache.append(layer, rows[0] + layer, rows[1] - layer)
            everything = torch.cat(stored, dim=3)
            assert torch.equal(k, everything[0] + layer) and torch.equal(v, everything[1] - layer)
        cache.advance(T)
    assert cache.length == cache.max_len == 9


def test_one_forward_pass_advances_once_for_all_layers():
    model, cache = Transformer(CONFIG), KVCache(CONFIG, 1, 8)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache)
        assert cache.length == 3
        model(torch.tensor([[4]]), cache)
    assert cache.length == 4 and (cache.keys[:, :, :, :4] != 0).all() and (cache.keys[:, :, :, 4:] == 0).all()


def test_keys_are_stored_after_rope_and_values_before():
    torch.manual_seed(0)
    model, cache = Transformer(CONFIG), KVCache(CONFIG, 1, 4)
    with torch.no_grad():
        model(torch.tensor([[5, 5, 5, 5]]), cache)  # the same token at four places
    keys, values = cache.keys[0, 0], cache.values[0, 0]
    assert all(not torch.allclose(keys[:, 0], keys[:, t]) for t in (1, 2, 3)), "turned by their place"
    assert torch.allclose(keys.norm(dim=-1), keys[:, :1].norm(dim=-1)), "and only turned"
    assert torch.allclose(values, values[:, :1].expand_as(values), atol=1e-7)


@pytest.mark.parametrize("T", [1, 2])
def test_more_tokens_than_fit_are_refused_and_nothing_is_stored(T):
    cache = KVCache(CONFIG, 2, 4)
    cache.append(0, *new_rows(5 - T))
    cache.advance(5 - T)
    before = cache.keys.clone()
    with pytest.raises(ValueError, match="the cache holds 4 tokens and 5 are wanted"):
        cache.append(0, *new_rows(T))
    assert torch.equal(cache.keys, before)


def test_rows_that_are_kept_go_on_as_if_they_had_always_been_alone():
    model = Transformer(CONFIG)
    tokens = torch.tensor([[0, 0, 5], [1, 2, 3], [0, 7, 8], [4, 4, 4]])
    pads = torch.tensor([2, 0, 1, 0])
    for kept in ([0, 2], [1, 3], [3], [0, 1, 2]):
        cache, alone = KVCache(CONFIG, 4, 5, left_pad_B=pads), KVCache(CONFIG, len(kept), 5, left_pad_B=pads[kept])
        with torch.no_grad():
            model(tokens, cache), model(tokens[kept], alone)
            cache.keep_rows(kept)
            assert (cache.left_pad_B is None) == (pads[kept] == 0).all()
            ours, theirs = model(tokens[kept, :2], cache), model(tokens[kept, :2], alone)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # fp32: sums of batches of two sizes


@pytest.mark.parametrize(("batch", "max_len"), [(0, 4), (2, 0), (-1, 4)])
def test_an_empty_cache_is_refused(batch, max_len):
    with pytest.raises(ValueError, match=f"batch {batch} and max_len {max_len}"):
        KVCache(CONFIG, batch, max_len)


@pytest.mark.parametrize(("name", "bytes_per_token"), [
    ("llama_7b", 2 * 32 * 32 * 128 * 2), ("llama2_70b", 327_680), ("llama3_8b", 2 * 32 * 8 * 128 * 2)])
def test_it_costs_two_numbers_per_layer_head_and_column_of_a_token(name, bytes_per_token):
    cache = KVCache(PRESETS[name], 3, 7, torch.bfloat16, "meta")
    assert (cache.keys.numel() + cache.values.numel()) * 2 == 3 * 7 * bytes_per_token


class Rounded(KVCache):
    """The plain form: numbers of the model's own dtype, each rounded once to another and back."""

    def __init__(self, *arguments, rounded, **settings):
        super().__init__(*arguments, **settings)
        self.rounded = rounded

    def append(self, layer, k, v):
        return super().append(layer, k.to(self.rounded).to(k.dtype), v.to(self.rounded).to(v.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cache_of_another_dtype_rounds_keys_and_values_once_and_nothing_else(dtype):
    torch.manual_seed(3)
    model, tokens = Transformer(CONFIG), torch.randint(17, (2, 11))
    caches = [KVCache(CONFIG, 2, 11, dtype), Rounded(CONFIG, 2, 11, rounded=dtype)]
    with torch.no_grad():
        for part in tokens.split([7, 1, 3], 1):
            one, other = (model(part, cache) for cache in caches)
            assert one.dtype == torch.float32 and torch.equal(one, other)
    assert not torch.equal(one, model(tokens)[:, -3:]), "and rounding is seen"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_generation_keeps_its_cache_in_the_models_cache_dtype(dtype):
    model, made = Transformer(CONFIG), []
    with mock.patch("minillama.generate.KVCache", lambda *arguments: made.append(KVCache(*arguments)) or made[-1]):
        for model.cache_dtype in (None, dtype):
            list(generate_tokens(model, [[1, 2, 3]], 4))
    assert [cache.keys.dtype for cache in made] == [torch.float32, dtype]
    assert [cache.values.dtype for cache in made] == [torch.float32, dtype]


@pytest.mark.long
def test_half_precision_in_the_cache_hardly_moves_smollm2():
    """KL of the next token's probabilities from those with a cache in fp32, on 256 tokens each of a manual, a program
    and stories. Measured: 2.9e-5 nats for bfloat16, 4.7e-7 for float16."""
    from test_nf4_weights import original, texts

    model, tokenizer = original()
    ids_BT, scores = torch.tensor([tokenizer.encode(text)[:256] for text in texts()]), {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            cache = KVCache(model.config, 3, 256, dtype)
            scores[dtype] = torch.cat([model(part, cache) for part in ids_BT.split(64, 1)], 1).double().log_softmax(-1)
    wanted = scores.pop(torch.float32)
    kl = {dtype: float((wanted.exp() * (wanted - other)).sum(-1).mean()) for dtype, other in scores.items()}
    print(kl)
    assert 0 < kl[torch.float16] < 1e-6 and 1e-6 < kl[torch.bfloat16] < 1e-4


MUTANTS = [
    Mutant("minillama.kv_cache", "held[:, :, :self.length].index_select(0, kept)", "held[:len(rows), :, :self.length]",
           test_rows_that_are_kept_go_on_as_if_they_had_always_been_alone),
    Mutant("minillama.kv_cache", "self.left_pad_B = self.left_pad_B[kept] if",
           "self.left_pad_B = self.left_pad_B[:len(rows)] if",
           test_rows_that_are_kept_go_on_as_if_they_had_always_been_alone),
    Mutant("minillama.kv_cache", "self.values[layer, :, :, self.length:end] = v_BKTd",
           "self.values[layer, :, :, self.length:end] = k_BKTd", test_what_was_stored_comes_back_in_order),
    Mutant("minillama.kv_cache", "self.keys[layer, :, :, :end].to", "self.keys[layer].to",
           test_what_was_stored_comes_back_in_order),
    Mutant("minillama.generate", "model.cache_dtype or weight.dtype", "weight.dtype",
           lambda: test_generation_keeps_its_cache_in_the_models_cache_dtype(torch.bfloat16)),
    Mutant("minillama.kv_cache", "self.keys[layer, :, :, self.length:end] = k_BKTd",
           "self.keys[layer, :, :, self.length:end] = k_BKTd.to(torch.float8_e4m3fn).to(self.keys.dtype)",
           lambda: test_a_cache_of_another_dtype_rounds_keys_and_values_once_and_nothing_else(torch.bfloat16)),
    Mutant("minillama.kv_cache", "self.length += n_tokens", "self.length = n_tokens",
           test_what_was_stored_comes_back_in_order),
    Mutant("minillama.kv_cache", "self.keys[layer, :, :, self.length:end] = k_BKTd",
           "self.keys[:, :, :, self.length:end] = k_BKTd; self.length += layer",
           test_what_was_stored_comes_back_in_order),
    Mutant("minillama.kv_cache", "if end > self.max_len:", "if end > self.max_len + 1:",
           lambda: test_more_tokens_than_fit_are_refused_and_nothing_is_stored(1)),
    Mutant("minillama.kv_cache", "config.n_kv_heads, max_len", "config.n_heads, max_len",
           lambda: test_it_costs_two_numbers_per_layer_head_and_column_of_a_token("llama2_70b", 327_680)),
]
