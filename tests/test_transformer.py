"""The whole model: equal to float64 loops, in one piece, in pieces, padded, packed and recomputed."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from mutants import Mutant
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from minillama.attention import torch_attention
from minillama.config import ModelConfig
from minillama.kv_cache import KVCache
from minillama.transformer import Transformer, positions_and_mask

CONFIG = ModelConfig(48, 3, 4, 61, n_kv_heads=2, hidden_dim=80, max_seq_len=128)
TINY = ModelConfig(12, 2, 4, 11, n_kv_heads=2, head_dim=4, hidden_dim=10, max_seq_len=32)  # for the loops: H d is not D


def random_model(config=CONFIG, seed=0, dtype=torch.float32, **kwargs):
    """Weights large enough for every part to matter, norms that are not one: a swapped pair shows."""
    torch.manual_seed(seed)
    model = Transformer(config, **kwargs).to(dtype)
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) / math.sqrt(weight.shape[-1]) if weight.dim() == 2 else \
            1 + 0.3 * torch.randn_like(weight)
    model.tie_weights()
    return model


def random_tokens(*shape, config=CONFIG):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(sum(shape)))


def worst(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("attend", [None, torch_attention])
def test_it_is_the_papers_architecture(attend):
    model = random_model(TINY, dtype=torch.float64, **({"attend": attend} if attend else {}))
    tokens = [3, 0, 10, 3, 3, 7, 1]
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    wanted = oracles.llama_logits(weights, tokens, 2, 4, 2, TINY.norm_eps)
    # all is float64 but the angles: 7 rad at most, 2^-24 each, through two layers
    assert worst(model(torch.tensor([tokens])), torch.tensor([wanted], dtype=torch.float64)) < 1e-5


@pytest.mark.parametrize("chunks", [[97], [1] * 97, [96, 1], [1, 96], [31, 2, 64], [50, 47]],
                         ids=lambda sizes: f"{len(sizes)} from {sizes[0]}")
def test_reading_in_pieces_through_a_cache_is_reading_at_once(chunks):
    model, tokens, cache, parts = random_model(), random_tokens(2, 97), KVCache(CONFIG, 2, 97), []
    with torch.no_grad():
        for part in tokens.split(chunks, dim=1):
            parts.append(model(part, cache))
        assert worst(torch.cat(parts, 1), model(tokens)) < 1e-5


@pytest.mark.parametrize("way", ["no cache", "one piece", "pieces", "token by token"])
def test_left_padded_rows_are_as_if_they_were_alone(way):
    model, lengths, T = random_model(), [1, 6, 13], 13
    texts = [random_tokens(1, n) for n in lengths]
    pads = torch.tensor([T - n for n in lengths])
    batch = torch.cat([torch.nn.functional.pad(text, (T - text.shape[1], 0), value=60) for text in texts])
    with torch.no_grad():
        if way == "no cache":
            together = model(batch, left_pad_B=pads)
        else:
            cache = KVCache(CONFIG, 3, T, left_pad_B=pads)
            size = {"one piece": T, "pieces": 5, "token by token": 1}[way]
            together = torch.cat([model(part, cache) for part in batch.split(size, dim=1)], 1)
        for row, text in enumerate(texts):
            assert worst(together[row, T - lengths[row]:], model(text)[0]) < 1e-5
    assert together.isfinite().all(), "even where only padding was read"


def test_packed_documents_are_as_if_they_were_alone():
    model, lengths = random_model(), [[1, 7, 5], [12, 1]]
    ids = torch.tensor([[n for n, size in enumerate(row) for _ in range(size)] for row in lengths])
    tokens = random_tokens(2, 13)
    with torch.no_grad():
        packed = model(tokens, document_ids_BT=ids)
        for row in range(2):
            alone = [model(text[None])[0] for text in tokens[row].split(lengths[row])]
            assert worst(packed[row], torch.cat(alone)) < 1e-5
        assert worst(packed, model(tokens)) > 1e-2, "without the mask they do see each other"


def test_padding_and_documents_restart_the_count():
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    assert positions_and_mask(tokens)[0].tolist() == [0, 1, 2, 3, 4]
    assert positions_and_mask(tokens, start=3)[0].tolist() == [3, 4, 5, 6, 7]
    positions, mask = positions_and_mask(tokens, 2, torch.tensor([0, 4]))
    assert positions.tolist() == [[2, 3, 4, 5, 6], [0, 0, 0, 1, 2]] and mask.shape == (2, 5, 7)
    assert mask[0].all() and mask[1, 0].tolist() == [False] * 4 + [True] * 3
    positions, mask = positions_and_mask(tokens, document_ids_BT=torch.tensor([[0, 0, 1, 1, 1], [7, 8, 8, 9, 9]]))
    assert positions.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]]
    assert mask[0].int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 1, 1]] * 3


def test_a_later_token_changes_no_earlier_score():
    model, tokens = random_model(), random_tokens(1, 20)
    changed = tokens.clone()
    changed[0, 11] = (changed[0, 11] + 1) % 61
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :11], after[:, :11]) and (before[:, 11:] != after[:, 11:]).any(-1).all()


def test_its_gradient_is_the_derivative_along_any_direction():
    model, tokens = random_model(TINY, dtype=torch.float64), random_tokens(2, 7, config=TINY)
    weights = list(model.parameters())
    directions = [torch.randn_like(w) for w in weights]

    def loss(step):
        shifted = {name: w + step * d for (name, w), d in zip(model.named_parameters(), directions, strict=True)}
        return torch.func.functional_call(model, shifted, (tokens,)).logsumexp(-1).sum()

    loss(0.0).backward()
    slope = sum((w.grad * d).sum() for w, d in zip(weights, directions, strict=True)).item()
    with torch.no_grad():
        measured = (loss(1e-5) - loss(-1e-5)).item() / 2e-5  # error: h^2 = 1e-10 times a third derivative
    assert measured == pytest.approx(slope, rel=1e-6)


def backward(model, tokens):
    model.zero_grad()
    model(tokens).logsumexp(-1).mean().backward()
    return [weight.grad.clone() for weight in model.parameters()]


def test_recomputed_blocks_give_the_same_gradients_to_the_bit():
    model, tokens = random_model(), random_tokens(2, 33)
    plain = backward(model, tokens)
    model.gradient_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, backward(model, tokens), strict=True))


class Allocations(TorchDispatchMode):
    """Remembers every storage that operations make, without keeping it alive."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.seen[tensor.untyped_storage().data_ptr()] = (
                    StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes())
        return out

    def live_bytes(self, model, tokens):
        """Bytes still held when the loss is known and the backward pass has yet to come, without the weights."""
        self.seen = {}
        with self:
            loss = model(tokens).sum()  # noqa: F841 (holds the graph)
        for weight in model.parameters():
            self.seen.pop(weight.untyped_storage().data_ptr(), None)
        return sum(size for reference, size in self.seen.values() if not reference.expired())


def test_recomputing_blocks_keeps_a_fraction_of_the_activations():
    model, tokens = random_model(ModelConfig(48, 8, 4, 61, max_seq_len=64)), random_tokens(2, 64)
    plain = Allocations().live_bytes(model, tokens)
    model.gradient_checkpointing = True
    fewer = Allocations().live_bytes(model, tokens)
    block_inputs = 8 * tokens.numel() * 48 * 4  # fp32 inputs of eight blocks: what is left to start again from
    assert block_inputs < fewer < 3 * block_inputs and fewer < plain / 10, (block_inputs, fewer, plain)


def test_recomputing_is_for_training_only():
    model, tokens = random_model(), random_tokens(1, 5)
    model.gradient_checkpointing = True
    model(tokens, KVCache(CONFIG, 1, 5))  # a second pass over a block would store its keys twice
    assert worst(model.eval()(tokens), model.train()(tokens)) == 0


def test_the_weights_have_metas_names():
    block = ["attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2",
             "feed_forward.w3", "attention_norm", "ffn_norm"]
    wanted = {f"layers.{n}.{name}.weight" for n in range(2) for name in block}
    wanted |= {"tok_embeddings.weight", "norm.weight", "output.weight"}
    assert set(Transformer(TINY).state_dict()) == wanted, "and nothing else: the angles are no weights"


def test_a_tied_head_is_the_embedding_table():
    model = Transformer(replace(TINY, tie_embeddings=True))
    assert model.output.weight is model.tok_embeddings.weight
    assert sum(w.numel() for w in model.parameters()) == model.config.n_parameters()
    model.tok_embeddings.weight = torch.nn.Parameter(torch.randn(11, 12))
    model.tie_weights()
    assert model.output.weight is model.tok_embeddings.weight
    assert Transformer(TINY).output.weight is not Transformer(TINY).tok_embeddings.weight


def test_fresh_weights_spread_as_stated():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(128, 8, 4, 512))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all()
            continue
        std = weight.shape[1] ** -0.5 / (4 if name.endswith(("wo.weight", "w2.weight")) else 1)  # sqrt(2 * 8) = 4
        slack = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
        assert weight.std().item() == pytest.approx(std, rel=slack), name
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel()), name


def test_a_fresh_model_scores_every_token_with_unit_variance():
    """A normed state has D numbers of mean square 1, a row of the head D numbers N(0, 1 / D): products are N(0, 1)."""
    torch.manual_seed(0)
    logits_BTV = Transformer(ModelConfig(128, 4, 4, 512))(random_tokens(2, 33))
    # 512 scores of a place give the variance to 5 * sqrt(2 / 512) = 0.31; over 66 places it is far better
    assert logits_BTV.var(-1).mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 512 / 66) + 0.05)


def test_logits_are_fp32_and_angles_stay_fp32_in_a_bf16_model():
    model = random_model().to(torch.bfloat16)
    hidden = model.hidden_states(random_tokens(1, 5))
    assert hidden.dtype == torch.bfloat16 and hidden.shape == (1, 5, 48)
    assert model.logits(hidden).dtype == torch.float32 and model.frequencies.dtype == torch.float32
    assert torch.equal(model(random_tokens(1, 5)), model.logits(hidden))
    with torch.device("meta"):
        assert Transformer(TINY).frequencies.tolist() == Transformer(TINY).frequencies.tolist(), "real numbers"


def test_wrong_tokens_are_refused_with_what_is_expected():
    model = Transformer(TINY)
    with pytest.raises(ValueError, match=r"tokens have shape \(5,\): expected \(batch, time\)"):
        model(torch.arange(5))
    with pytest.raises(ValueError, match="33 tokens are more than the 32 this model attends over"):
        model(torch.zeros(1, 33, dtype=torch.int64))
    model(torch.zeros(1, 32, dtype=torch.int64))
    cache = KVCache(TINY, 1, 40)
    with torch.no_grad():
        model(torch.zeros(1, 30, dtype=torch.int64), cache)
        with pytest.raises(ValueError, match="33 tokens are more than the 32"):
            model(torch.zeros(1, 3, dtype=torch.int64), cache)


def test_arguments_that_contradict_each_other_are_refused():
    model, tokens = Transformer(TINY), torch.zeros(1, 4, dtype=torch.int64)
    cache, pads = KVCache(TINY, 1, 8), torch.tensor([1])
    with pytest.raises(ValueError, match="left_pad_B was given beside a cache"):
        model(tokens, cache, left_pad_B=pads)
    with pytest.raises(ValueError, match="neither a filled cache nor padding"):
        model(tokens, left_pad_B=pads, document_ids_BT=tokens)
    with torch.no_grad(), pytest.raises(ValueError, match="neither a filled cache nor padding"):
        model(tokens, cache)
        model(tokens, cache, document_ids_BT=tokens)


def _architecture():
    test_it_is_the_papers_architecture(torch_attention)


def _pieces():
    test_reading_in_pieces_through_a_cache_is_reading_at_once([31, 2, 64])


def _padded():
    test_left_padded_rows_are_as_if_they_were_alone("pieces")


MUTANTS = [
    Mutant("minillama.transformer", "return x_BTD + self.feed_forward(self.ffn_norm(x_BTD))",
           "return self.ffn_norm(x_BTD) + self.feed_forward(self.ffn_norm(x_BTD))", _architecture),
    Mutant("minillama.transformer", "return x_BTD + self.feed_forward(self.ffn_norm(x_BTD))",
           "return self.ffn_norm(x_BTD + self.feed_forward(x_BTD))", _architecture),
    Mutant("minillama.transformer", "self.feed_forward(self.ffn_norm(x_BTD))",
           "self.feed_forward(self.attention_norm(x_BTD))", _architecture),
    Mutant("minillama.transformer", "return self.norm(x_BTD)", "return x_BTD", _architecture),
    Mutant("minillama.transformer", "RMSNorm(config.dim, config.norm_eps)\n\n", "RMSNorm(config.dim, 1e-2)\n\n",
           _architecture),
    Mutant("minillama.transformer", "return places[start:], None", "return places[:T], None", _pieces),
    Mutant("minillama.transformer", "cache.advance(tokens_BT.shape[1])", "cache.advance(1)", _pieces),
    Mutant("minillama.transformer", "(places >= left_pad_B[:, None])", "(places >= -left_pad_B[:, None])", _padded),
    Mutant("minillama.transformer", "(places >= left_pad_B[:, None])", "(places > left_pad_B[:, None])", _padded),
    Mutant("minillama.transformer", "(places[start:] - left_pad_B[:, None])",
           "(places[start:] - 0 * left_pad_B[:, None])", test_padding_and_documents_restart_the_count),
    Mutant("minillama.transformer", "return places - (new_BT * places).cummax(-1).values, same_BTS",
           "return places, same_BTS", test_padding_and_documents_restart_the_count),
    Mutant("minillama.transformer", "document_ids_BT[:, :, None] == document_ids_BT[:, None, :]",
           "document_ids_BT[:, :, None] >= document_ids_BT[:, None, :]",
           test_packed_documents_are_as_if_they_were_alone),
    Mutant("minillama.transformer", "self.gradient_checkpointing and self.training", "False and self.training",
           test_recomputing_blocks_keeps_a_fraction_of_the_activations),
    Mutant("minillama.transformer", "            self.output.weight = self.tok_embeddings.weight",
           "            self.output.weight.data = self.tok_embeddings.weight.data.clone()",
           test_a_tied_head_is_the_embedding_table),
    Mutant("minillama.transformer", "if writes_to_stream else 1.0", "if not writes_to_stream else 1.0",
           test_fresh_weights_spread_as_stated),
    Mutant("minillama.transformer", "return scores_BTV.to(torch.promote_types(scores_BTV.dtype, torch.float32))",
           "return scores_BTV", test_logits_are_fp32_and_angles_stay_fp32_in_a_bf16_model),
    Mutant("minillama.transformer", "self.frequencies = rope_frequencies",
           "self.register_buffer('frequencies', None); self.frequencies = rope_frequencies",
           test_logits_are_fp32_and_angles_stay_fp32_in_a_bf16_model),
    Mutant("minillama.transformer", "+ (cache.length if cache is not None else 0)", "",
           test_wrong_tokens_are_refused_with_what_is_expected),
]
