"""Laws of the tour's pictures: what they show is what the model computes."""

import math

import torch
from mutants import Mutant

from minillama.config import ModelConfig
from minillama.tour_pages import attention_maps, curve
from minillama.train.data import Tokens
from minillama.transformer import Transformer


def test_attention_maps_are_probabilities_that_never_see_the_future_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(24, 2, 4, 50, n_kv_heads=2, max_seq_len=32)).eval()
    ids = torch.randint(50, (1, 13))
    before, attends = model(ids), [block.attention.attend for block in model.layers]
    maps_LHTT = attention_maps(model, ids[0].tolist())
    assert maps_LHTT.shape == (2, 4, 13, 13)
    torch.testing.assert_close(maps_LHTT.sum(-1), torch.ones(2, 4, 13))
    assert (maps_LHTT.triu(1) == 0).all() and (maps_LHTT >= 0).all()
    assert torch.equal(model(ids), before) and [block.attention.attend for block in model.layers] == attends


def test_a_map_mixes_the_values_into_the_head_s_output():
    """The first layer's output, rebuilt from its map by hand: wo (map @ v), head by head."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(16, 1, 2, 20, max_seq_len=16)).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    layer, seen = model.layers[0].attention, []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    maps_HTT = attention_maps(model, ids[0].tolist())[0]
    x_TD, out_TD = seen[0][0][0], seen[0][1][0]
    with torch.inference_mode():
        v_HTd = layer.wv(x_TD).view(5, 2, 8).transpose(0, 1)
        rebuilt = layer.wo((maps_HTT @ v_HTd).transpose(0, 1).flatten(1))
    torch.testing.assert_close(rebuilt, out_TD)


def test_the_curve_is_in_bits_per_character():
    import numpy as np

    tokens = Tokens(np.zeros(30, np.int64), 4, documents=1, characters=60)
    history = [{"step": 0, "held_out_loss": math.log(4)}, {"step": 1, "loss": 9.0}, {"step": 2, "held_out_loss": 0.0}]
    steps, values = curve(history, tokens)
    # log(4) nats are 2 bits a token; 30 tokens spread over 60 characters: 1 bit a character
    assert steps == (0, 2) and values == (1.0, 0.0)


MUTANTS = [
    Mutant("minillama.tour_pages", "layer.attend = attend", "pass",
           test_attention_maps_are_probabilities_that_never_see_the_future_and_leave_the_model_as_it_was),
    Mutant("minillama.tour_pages", "tokens.characters / math.log(2)", "tokens.characters",
           test_the_curve_is_in_bits_per_character),
    Mutant("minillama.tour_pages", "return attention(q_BHTd, k_BKSd, v_BKSd, **options)",
           "return attention(q_BHTd, k_BKSd, 0 * v_BKSd, **options)",
           test_a_map_mixes_the_values_into_the_head_s_output),
]
