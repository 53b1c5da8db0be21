"""P-tuning: peft's counts and networks, and its file both ways."""

import pytest
import torch
from mutants import Mutant
from tuned_models import close, same_in_peft, small_model, tokens, trained, tuned

KINDS = {"MLP": False, "LSTM": True}


def settings(peft, kind):
    return peft.PromptEncoderConfig(num_virtual_tokens=5, task_type="CAUSAL_LM", encoder_hidden_size=9,
                                    encoder_reparameterization_type=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_compute_the_same(kind):
    same_in_peft("p-tuning", lambda peft: settings(peft, kind), h=9, lstm=KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_pefts_number_by_number(kind):
    peft = pytest.importorskip("peft", reason="the oracle of the networks")
    ours = tuned("p-tuning", h=9, lstm=KINDS[kind]).virtual_tokens
    config = settings(peft, kind)
    config.token_dim, config.num_transformer_submodules = 32, 1
    theirs = peft.PromptEncoder(config)
    theirs.embedding.weight.data = ours.embedding.data
    theirs.mlp_head.load_state_dict(ours.mlp.state_dict())
    if ours.lstm is not None:
        theirs.lstm_head.load_state_dict(ours.lstm.state_dict())
    assert close(ours.flat(), theirs(torch.arange(5)[None])[0])


def test_counts_of_a_tiny_model():
    """8 tokens of width 64 and networks of width 32: as peft counts them."""
    from minillama.peft.p_tuning import EncodedPrompt

    start = torch.zeros(8, 64)
    assert [sum(p.numel() for p in EncodedPrompt(start, 32, lstm).parameters()) for lstm in (False, True)] == [
        5760, 59008]


def test_the_vectors_begin_as_normal_numbers_as_pefts_do():
    start = tuned("p-tuning", 400, change=False, h=3).virtual_tokens.embedding
    assert start.shape == (400, 32)  # 12,800 numbers; five standard errors of their mean and of their deviation
    assert abs(start.mean()) < 5 / 12800**0.5 and torch.allclose(start.std(), torch.ones(()), rtol=5 / 25600**0.5)


def test_only_vectors_and_network_learn():
    assert all(name.startswith("virtual_tokens.") for name in trained(tuned("p-tuning")))


def test_the_encoder_is_as_wide_as_the_model_unless_another_width_is_asked_for():
    widths = [tuned("p-tuning", **asked).virtual_tokens.mlp[0].out_features for asked in ({}, {"h": 9})]
    assert widths == [32, 9]


def test_a_saved_prompt_needs_no_network(tmp_path):
    from minillama.peft.adapter_file import load_adapter, save_adapter

    model = tuned("p-tuning", h=9)
    save_adapter(tmp_path, model)
    load_adapter(tmp_path, again := small_model())
    assert close(again(tokens()), model(tokens())) and not hasattr(again.virtual_tokens, "mlp")


MUTANTS = [
    Mutant("minillama.peft.p_tuning", "num_layers=2", "num_layers=1", test_counts_of_a_tiny_model),
    Mutant("minillama.peft.p_tuning", "nn.Linear(inner, inner), nn.ReLU(),", "nn.Linear(inner, inner), nn.Tanh(),",
           lambda: test_the_network_is_pefts_number_by_number("MLP")),
    Mutant("minillama.peft.p_tuning", "self.lstm(self.embedding)[0]", "self.lstm(self.embedding.flip(0))[0]",
           lambda: test_the_network_is_pefts_number_by_number("LSTM")),
    Mutant("minillama.peft.p_tuning", "bidirectional=True", "bidirectional=False", test_counts_of_a_tiny_model),
    Mutant("minillama.peft.p_tuning", "torch.randn(n,", "0.1 * torch.randn(n,",
           test_the_vectors_begin_as_normal_numbers_as_pefts_do),
    Mutant("minillama.peft.methods", "size, h or model.config.dim, lstm)", "size, model.config.dim, lstm)",
           test_the_encoder_is_as_wide_as_the_model_unless_another_width_is_asked_for),
    Mutant("minillama.peft.p_tuning", "    model.requires_grad_(False)\n", "", test_only_vectors_and_network_learn),
]
