"""Prefix tuning: peft's numbers both ways, and a prefix made of a text is that text."""

import pytest
import torch
from mutants import Mutant
from tuned_models import close, same_in_peft, small_model, tokens, trained, tuned

from minillama.kv_cache import KVCache
from minillama.peft.methods import add_method

WORDS = [3, 60, 7, 7, 21]


@pytest.mark.parametrize("h", [0, 9])
def test_peft_and_we_compute_the_same(h):
    same_in_peft("prefix", lambda peft: peft.PrefixTuningConfig(
        num_virtual_tokens=5, task_type="CAUSAL_LM", prefix_projection=h > 0, encoder_hidden_size=h), h=h)


def test_8_tokens_in_2_layers_of_32_numbers_are_1024():
    assert sum(p.numel() for p in trained(tuned("prefix", 16)).values()) == 16 * 2 * 2 * 16  # K d = 16 here
    assert sum(p.numel() for p in trained(tuned("prefix", 8)).values()) * 2 == 8 * 2 * 2 * 32


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_made_of_a_text_are_that_text(method):
    """Also behind a cache. The texts are read at other positions, and RoPE rounds there anew."""
    model, plain = tuned(method, change=False, ids=WORDS), small_model()
    behind = torch.cat([torch.tensor([WORDS, WORDS]), tokens()], 1)
    wanted = plain(behind)[:, len(WORDS):]
    assert close(model(tokens()), wanted) and not close(plain(tokens()), wanted)
    cache = KVCache(model.config, 2, 37)
    with torch.no_grad():
        parts = [model(part, cache) for part in tokens().split([20, 1, 16], 1)]
    assert close(torch.cat(parts, 1), wanted)


def test_even_zero_keys_and_values_move_attention():
    model = tuned("prefix", 4, change=False)
    with torch.no_grad():
        model.virtual_tokens.embedding.zero_()
    assert not torch.allclose(model(tokens()), small_model()(tokens()), atol=0.01)


def test_what_was_kept_for_generation_is_made_anew_after_training():
    model = tuned("prefix")
    with torch.no_grad():
        before = model(tokens())
        assert torch.equal(model(tokens()), before)
        model.virtual_tokens.embedding += 1
        made_anew = model(tokens())
    assert not torch.equal(made_anew, before) and torch.equal(made_anew, model(tokens()).detach())


def test_a_text_does_not_go_behind_an_encoder():
    with pytest.raises(ValueError, match="encoder cannot begin as a text"):
        add_method(small_model(), "prefix", h=9, ids=WORDS)


def peft_agrees():
    test_peft_and_we_compute_the_same(0)


def text_law():
    test_virtual_tokens_made_of_a_text_are_that_text("prefix")


MUTANTS = [
    Mutant("minillama.peft.prefix_tuning", "-self.shape[0], device", "0, device", text_law),
    Mutant("minillama.peft.prefix_tuning", "both_L2Knd.permute(3, 0, 1, 2, 4)",
           "both_L2Knd.permute(3, 0, 1, 2, 4).flip(1)", text_law),
    Mutant("minillama.peft.prefix_tuning", "self.kept[0] != made_of", "False",
           test_what_was_kept_for_generation_is_made_anew_after_training),
    Mutant("minillama.peft.adapter_file", "keys_nLW = rows(name, keys_nLW.permute(2, 0, 1), *heads).permute(1, 2, 0)",
           "", peft_agrees),
    Mutant("minillama.attention", "[k_BKnd, k_BKSd], 2", "[k_BKSd, k_BKnd], 2", text_law),
    Mutant("minillama.attention", "mask_BTS = nn.functional.pad(mask_BTS, (k_BKnd.shape[2], 0), value=True)",
           "mask_BTS = nn.functional.pad(mask_BTS, (k_BKnd.shape[2], 0), value=False)",
           lambda: __import__("test_methods").test_padding_and_packing_change_nothing("prefix")),
]
