"""The reference of PPO is the policy as it began, whatever of it learns: held to a whole copy made at the start."""

import copy

import pytest
import torch
from letters import Letters
from mutants import Mutant
from test_train_ppo import a_run, prompts, walk

from minillama.config import ModelConfig
from minillama.evaluate.diagnosis import describe
from minillama.peft.lora import LoRAConfig, add_lora, lora_layers
from minillama.quant.quantize_linears import quantize_linears
from minillama.rlhf.ppo import kl_estimate
from minillama.rlhf.rollout import sample_answers
from minillama.transformer import Transformer

HEAD, NORMS = "output.weight", ("norm.weight", "layers.0.attention_norm.weight")
WAYS = {  # what learns: the model's kind, an adapter or none, what learns beside it
    "all weights": {"adapter": False},
    "all but a frozen table": {"adapter": False, "frozen": ("tok_embeddings.weight",)},
    "an adapter": {},
    "an adapter that has learned before": {"trained": True},
    "an adapter and both tables": {"learns": ("tok_embeddings.weight", HEAD)},
    "an adapter and tied tables": {"learns": (HEAD,), "tied": True},
    "a trained adapter, a table and norms": {"trained": True, "learns": (HEAD, *NORMS)},
    "an adapter over NF4": {"kind": "nf4"},
    "a trained adapter over int8, both tables": {"kind": "int8", "trained": True,
                                                 "learns": ("tok_embeddings.weight", HEAD)},
}


def a_policy(adapter=True, trained=False, learns=(), frozen=(), tied=False, kind=None):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(16, 1, 2, Letters.vocab_size, hidden_dim=24, max_seq_len=32, tie_embeddings=tied))
    if kind:
        quantize_linears(model, kind=kind, **({"block_size": 8} if kind == "nf4" else {}))
    if adapter:
        add_lora(model, LoRAConfig(rank=2, alpha=8.0, targets=("attention.*", "feed_forward.*")))
    for layer in lora_layers(model).values() if trained else ():
        torch.nn.init.normal_(layer.B)
    for name in learns:
        model.get_parameter(name).requires_grad_()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    return model.eval()


@pytest.mark.parametrize("way", WAYS)
def test_the_kl_is_that_from_a_copy_of_the_policy_as_it_was_given(way):
    policy = a_policy(**WAYS[way])
    start = copy.deepcopy(policy)
    run = a_run(policy)
    walk(run)
    now = {name: p.clone() for name, p in policy.named_parameters()}
    rollout = sample_answers(policy, prompts(run, 0), Letters.eos_id, 6, seed=9)
    with torch.no_grad():
        begun_BA, ours_BA = run.log_probs(start, rollout), run.log_probs(policy, rollout)
        told = run.make_experience(rollout)
    kl_BA = kl_estimate(ours_BA, begun_BA).masked_fill(~rollout.answer_mask_BA, 0.0)
    assert torch.equal(run.reference_log_probs(rollout), begun_BA) and torch.equal(told.ref_log_prob_BA, begun_BA)
    assert describe(told)["kl"] == kl_BA.sum(-1).mean().item() and kl_BA.abs().max() > 1e-3
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, now[name]), "the policy is as it was before it was asked"
        assert torch.equal(parameter, start.get_parameter(name)) != parameter.requires_grad, name


def test_an_error_in_between_leaves_the_policy_as_it_is():
    run = a_run(a_policy())
    walk(run, 1)
    now = {name: p.clone() for name, p in run.policy.named_parameters()}
    with pytest.raises(ArithmeticError), run.reference.as_it_began():
        raise ArithmeticError
    assert all(torch.equal(p, now[name]) for name, p in run.policy.named_parameters())


def _with(way):
    return lambda: test_the_kl_is_that_from_a_copy_of_the_policy_as_it_was_given(way)


MUTANTS = [
    Mutant("minillama.rlhf.reference", "p.detach().clone())", "p.detach())", _with("all weights")),
    Mutant("minillama.rlhf.reference", "if p.requires_grad]", "if p.requires_grad and p.shape[0] != 16]",
           _with("an adapter and both tables")),
    Mutant("minillama.rlhf.reference", "            parameter.copy_(kept)\n", "",
           _with("an adapter and both tables")),
    Mutant("minillama.rlhf.reference", "finally:\n                self._swap()", "finally:\n                0",
           _with("an adapter")),
]
