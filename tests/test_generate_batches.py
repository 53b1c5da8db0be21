"""Batches of unequal prompts: each row is what it is alone, up to the context's end, drawn or not."""

import pytest
import torch
from mutants import Mutant
from test_generate import BOS, EOS, column, lively_model

import minillama.transformer
from minillama import kernels
from minillama.backends import use_kernels
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.kv_cache import KVCache
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.quant.quantize_linears import quantize_linears
from minillama.sampling import Sampling
from minillama.transformer import Transformer, positions_and_mask

TINY = ModelConfig(8, 1, 2, 11, hidden_dim=8, max_seq_len=32)
NEAR_THE_END = [[7, 8, 9], [5] * 38, [BOS], [1, 2] * 10, [200] * 40, [3, 1] * 19]  # the context holds 40


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_a_longer_neighbour_takes_none_of_a_rows_context(backend):
    if backend == "cpu" and "cpu" not in kernels.built_backends():
        pytest.skip("the kernels for processors are not built")
    model = use_kernels(lively_model(26), backend)
    alone = [column(generate_tokens(model, [prompt], 35)) for prompt in NEAR_THE_END]
    assert [len(said) for said in alone] == [35, 3, 35, 21, 1, 3]  # 41 - length, at most 35
    for prompt, said in zip(NEAR_THE_END, alone, strict=True):
        with torch.no_grad():
            first, second = model(torch.tensor([prompt + said[:-1]]))[0, len(prompt) - 1:].topk(2).values.T
        assert (first - second).min() > 1e-2, "the choice hangs on rounding: of logits of size 10, fp32 keeps 1e-5"
    steps = list(generate_tokens(model, NEAR_THE_END, 35))
    for row, said in enumerate(alone):
        assert [step[row] for step in steps] == said + [None] * (35 - len(said))


def test_so_it_is_over_nf4_with_an_adapter():
    model = lively_model(26)
    quantize_linears(model, kind="nf4", block_size=8)
    add_lora(model, LoRAConfig(rank=2, targets=("attention.*", "feed_forward.*")))
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.B, std=0.1)
    alone = [column(generate_tokens(model, [prompt], 35, Sampling())) for prompt in NEAR_THE_END]
    steps = list(generate_tokens(model, NEAR_THE_END, 35, Sampling()))
    assert [column(steps, row) for row in range(len(alone))] == alone


def test_a_row_draws_what_it_draws_alone():
    model, settings = lively_model(), Sampling(temperature=0.8, top_k=50)
    alone = [column(generate_tokens(model, [prompt], 35, settings, (EOS,), seed=3)) for prompt in NEAR_THE_END]
    assert len({tuple(said[:1]) for said in alone}) > 3, "each has a stream of its own"
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 0, 2, 1, 3], [2, 3]):
        steps = list(generate_tokens(model, [NEAR_THE_END[i] for i in order], 35, settings, (EOS,), seed=3))
        assert [column(steps, row) for row in range(len(order))] == [alone[i] for i in order]


def test_copies_of_a_prompt_differ_and_are_the_same_beside_others():
    model, settings = lively_model(), Sampling()
    copies = list(generate_tokens(model, [[1, 2]] * 3, 9, settings))
    beside = list(generate_tokens(model, [[1, 2], [5] * 7, [1, 2], [1, 2], [9]], 9, settings))
    said = [tuple(column(copies, row)) for row in range(3)]
    assert len(set(said)) == 3 and said == [tuple(column(beside, row)) for row in (0, 2, 3)]
    assert list(generate_tokens(model, [[1, 2]] * 3, 4, settings)) == copies[:4], "asked for less, the beginning"


def test_no_token_is_read_at_a_position_beyond_the_context(monkeypatch):
    model, read = lively_model(), []

    def recording(*given):
        read.append(positions_and_mask(*given)[0].max().item())
        return positions_and_mask(*given)

    monkeypatch.setattr(minillama.transformer, "positions_and_mask", recording)
    assert len(list(generate_tokens(model, NEAR_THE_END, 100))) == 40
    assert max(read) == 39


def test_padding_takes_no_position():
    model, tokens, pads = Transformer(TINY), torch.zeros(2, 40, dtype=torch.int64), torch.tensor([8, 30])
    with torch.no_grad():
        model(tokens, left_pad_B=pads)
        model(tokens, KVCache(TINY, 2, 40, left_pad_B=pads))
        for given in ({"left_pad_B": pads - 1}, {"cache": KVCache(TINY, 2, 40, left_pad_B=pads - 1)}):
            with pytest.raises(ValueError, match="33 tokens are more than the 32"):
                model(tokens, **given)


def _near_the_end():
    test_a_longer_neighbour_takes_none_of_a_rows_context("torch")


MUTANTS = [
    Mutant("minillama.generate", "config.max_seq_len - len(prompt) + 1)",
           "config.max_seq_len - tokens_BT.shape[1] + 1)", _near_the_end),
    Mutant("minillama.generate", "step + 1 < budgets[row]", "step + 1 < max_new_tokens", _near_the_end),
    Mutant("minillama.generate", "cache.keep_rows(kept)", "cache.keep_rows(kept[::-1])", _near_the_end),
    Mutant("minillama.generate", "seen_BV[kept], u_Bn[kept], next_B[kept]", "seen_BV[kept], u_Bn, next_B[kept]",
           test_a_row_draws_what_it_draws_alone),
    Mutant("minillama.sampling", "{seed} {copies[prompt]} {prompt}", "{seed} {len(rows)}",
           test_a_row_draws_what_it_draws_alone),
    Mutant("minillama.sampling", "        copies[prompt] += 1\n", "",
           test_copies_of_a_prompt_differ_and_are_the_same_beside_others),
    Mutant("minillama.transformer", "length -= int(pad_B.min())", "length -= int(pad_B.max())",
           test_padding_takes_no_position),
]
