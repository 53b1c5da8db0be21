"""What every method keeps: the base's bits, the same text by every road, and a clear no where it cannot be merged."""

import argparse
import copy

import pytest
import torch
from mutants import Mutant
from tuned_models import EVERY, attach, changed, close, small_model, tokens, trained, tuned

from minillama.backends import use_kernels
from minillama.cli.training_commands import add_sft
from minillama.engine import refusal
from minillama.generate import generate_tokens
from minillama.kernels import built_backends
from minillama.peft.methods import METHODS, add_method, merge_method
from minillama.quant.quantize_linears import quantize_linears
from minillama.train.sequence_loss import Sequence
from minillama.train.sft import SftConfig, fine_tune

STARTS_AS_BASE = {"full", "embeddings", "lora", "rslora", "dora", "adapter", "parallel-adapter", "ladder", "bitfit",
                  "ia3"}
FROZEN_BASE = [name for name in EVERY if name not in ("full", "embeddings", "qlora")]  # qlora is lora over nf4


def lessons(count=6):
    rows = torch.randint(61, (count, 12), generator=torch.Generator().manual_seed(7)).tolist()
    return [Sequence(row[:8 + i % 5], [-100] * 3 + row[3:8 + i % 5]) for i, row in enumerate(rows)]


def test_these_are_the_methods_of_sft():
    parser = argparse.ArgumentParser()
    add_sft(parser.add_subparsers())
    [sft] = parser._subparsers._group_actions[0].choices.values()
    [method] = [action for action in sft._actions if action.dest == "method"]
    assert sorted(method.choices) == sorted(EVERY) and len(EVERY) == 15


@pytest.mark.parametrize("name", EVERY)
def test_a_new_one_is_the_base_exactly_where_its_page_says_so(name):
    model = tuned(name, change=False)
    assert (changed(model) == 0) == (name in STARTS_AS_BASE)


@pytest.mark.parametrize("kind", [None, "nf4", "int8"])
@pytest.mark.parametrize("name", FROZEN_BASE)
def test_training_learns_and_leaves_every_bit_of_the_base(name, kind):
    """Padded and packed, with gradient checkpointing and without."""
    model = small_model()
    if kind:
        quantize_linears(model, kind=kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attach(model, name, 4)
    kept = [tensor for tensor in [*model.parameters(), *model.buffers()] if not tensor.requires_grad]
    copies = [tensor.clone() for tensor in kept]
    start = {key: tensor.detach().clone() for key, tensor in trained(model).items()}
    assert len(kept) == len(before)
    for pack_length, checkpointing in ((0, True), (16, False)):
        settings = SftConfig(steps=2, batch_size=3, warmup_steps=1, eval_every=0, pack_length=pack_length,
                             gradient_checkpointing=checkpointing)
        fine_tune(model, lessons(), lessons(2), settings, progress=False)
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert sum(not torch.equal(tensor, start[key]) for key, tensor in trained(model).items()) >= len(start) - 1


@pytest.mark.parametrize("name", EVERY)
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for on in (False, True):
        model = tuned(name).train()
        model.gradient_checkpointing = on
        model(tokens()).square().mean().backward()
        gradients.append([parameter.grad for parameter in trained(model).values()])
    assert all(grad is not None and grad.any() for grad in gradients[0])
    assert all(close(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_padding_and_packing_change_nothing(name):
    """Left padding, and documents of 9, 21 and 7 tokens in one row: each is what it is alone."""
    model, row = tuned(name), tokens()[:1]
    padded = model(torch.cat([torch.zeros(1, 6, dtype=torch.int64), row], 1), left_pad_B=torch.tensor([6]))
    assert close(padded[:, 6:], model(row))
    lengths = [9, 21, 7]
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    alone = torch.cat([model(part) for part in row.split(lengths, 1)], 1)
    assert close(model(row, document_ids_BT=documents), alone)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("backend", [name for name in built_backends() if name in ("reference", "cpu")])
def test_generation_behind_a_cache_is_the_full_forward_pass(backend, name):
    """Also where a plain model is decoded by the engine, which knows of nothing that was added."""
    model, prompts = use_kernels(tuned(name), backend), [[3, 60, 7], [21], [5, 5, 8, 13, 21]]
    assert backend != "cpu" or (refusal(model) is None) == (name in ("full", "embeddings"))
    made = list(zip(*generate_tokens(model, prompts, 6), strict=True))
    for prompt, answer in zip(prompts, made, strict=True):
        row = list(prompt)
        for token in answer:
            scores = model(torch.tensor([row]))[0, -1]
            assert scores[token] >= scores.max() - 1e-4, (prompt, answer)
            row.append(token)


@pytest.mark.parametrize("name", [name for name, (_, why) in METHODS.items() if why])
def test_what_cannot_be_merged_says_why_in_one_line(name):
    with pytest.raises(ValueError, match=f"{name} cannot be merged: .*--adapter$") as error:
        merge_method(tuned(name))
    assert "\n" not in str(error.value)


def test_one_method_at_a_time():
    with pytest.raises(ValueError, match="has an adapter already"):
        add_method(tuned("ia3"), "bitfit")


def test_a_tuned_model_can_be_copied():
    for name in EVERY:
        model = tuned(name)
        assert torch.equal(copy.deepcopy(model)(tokens()), model(tokens())), name


MUTANTS = [
    Mutant("minillama.peft.methods", "        require_mergeable(model.method[0])\n", "",
           lambda: test_what_cannot_be_merged_says_why_in_one_line("ladder")),
    Mutant("minillama.quant.quantized_linear", "    model.requires_grad_(False)\n    for name", "    for name",
           lambda: test_training_learns_and_leaves_every_bit_of_the_base("bitfit", None)),
    Mutant("minillama.transformer", "cache, layer, mask_BTS, prefix, layout is None", "cache, layer, mask_BTS, None, "
           "layout is None", lambda: test_gradient_checkpointing_changes_no_gradient("prefix")),
]
if "cpu" in built_backends():
    MUTANTS.append(Mutant("minillama.engine", "if model.virtual_tokens is not None:", "if False:",
                          lambda: test_generation_behind_a_cache_is_the_full_forward_pass("cpu", "prefix")))
