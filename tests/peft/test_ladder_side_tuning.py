"""The ladder: its formula step by step, no gradient through the base, and what that saves for the backward pass."""

import torch
from mutants import Mutant
from test_lora import ALL
from tuned_models import close, small_model, tokens, trained, tuned

from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora
from minillama.peft.methods import add_method
from minillama.rope import rope_rotations
from minillama.transformer import Transformer


def test_the_narrow_network_is_its_formula():
    """Each h_l from the plain base, block after block."""
    model, plain = tuned("ladder"), small_model()
    ladder, h = model.norm, plain.tok_embeddings(tokens())
    rotations = rope_rotations(torch.arange(37), plain.frequencies)
    s = h @ ladder.down[0].weight.T
    for layer, block in enumerate(plain.layers):
        h = block(h, rotations)
        g = 1 / (1 + torch.exp(-ladder.gates[layer]))
        s = g * s + (1 - g) * (h @ ladder.down[layer + 1].weight.T)
        norm, feed_forward = ladder.steps[layer]
        s = s + feed_forward(norm(s))
    wanted = plain.logits(plain.norm(h + s @ ladder.up.weight.T))
    assert close(model(tokens()), wanted)


def saved_bytes(model, tokens_BT):
    """What autograd keeps for the backward pass, parameters apart, each storage once."""
    kept, known = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.hidden_states(tokens_BT)
    assert hidden.requires_grad
    return sum(size for size, _ in kept.values())


def test_it_keeps_at_most_60_percent_of_what_lora_keeps_for_the_backward_pass():
    tokens_BT = torch.randint(61, (4, 64), generator=torch.Generator().manual_seed(1))
    config, kept = ModelConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=61, hidden_dim=176), {}
    for name in ("ladder", "lora"):
        torch.manual_seed(0)
        model = Transformer(config)
        if name == "lora":
            add_lora(model, LoRAConfig(8, targets=ALL))
        else:
            add_method(model, name, 8)
        kept[name] = saved_bytes(model, tokens_BT)
    assert 0 < kept["ladder"] <= 0.6 * kept["lora"], kept


def test_an_interrupted_pass_leaves_nothing_behind():
    model = tuned("ladder")
    wanted = model(tokens())
    model.tok_embeddings(tokens())
    model.layers[0](model.tok_embeddings(tokens()), rope_rotations(torch.arange(37), model.frequencies))
    assert torch.equal(model(tokens()), wanted)


def test_nothing_below_the_end_gets_a_gradient():
    model = tuned("ladder")
    model(tokens()).square().mean().backward()
    assert set(trained(model)) == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.startswith("norm.") for name in trained(model))


MUTANTS = [
    Mutant("minillama.peft.ladder_side_tuning", "gate * s_BTr + (1 - gate)", "(1 - gate) * s_BTr + gate",
           test_the_narrow_network_is_its_formula),
    Mutant("minillama.peft.ladder_side_tuning", "s_BTr = s_BTr + step(s_BTr)", "s_BTr = step(s_BTr)",
           test_the_narrow_network_is_its_formula),
    Mutant("minillama.peft.ladder_side_tuning", "isinstance(part, nn.Embedding)", "False",
           test_an_interrupted_pass_leaves_nothing_behind),
    Mutant("minillama.peft.ladder_side_tuning", "    model.requires_grad_(False)\n", "",
           test_it_keeps_at_most_60_percent_of_what_lora_keeps_for_the_backward_pass),
]
