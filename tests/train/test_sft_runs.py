"""Fine-tuning that is broken off, taken up, or asked for what cannot be."""

import math
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant
from test_sft import CONFIG, HELD_OUT, TRAIN, V, a_model, tuned, with_adapter
from tiny_run import Killed, kill_after, one_thread, same_weights, without_times

from minillama.train.sequence_loss import IGNORE, Sequence
from minillama.train.sft import SftConfig, fine_tune, with_steps

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


@pytest.mark.parametrize("make", [a_model, partial(with_adapter, "nf4")])
def test_a_run_broken_off_ends_like_one_that_was_not(tmp_path, make):
    whole, history = tuned(model=make())
    for after in (0, 1, 4, 6):
        with pytest.raises(Killed):
            tuned(model=kill_after(after, make()), folder=tmp_path / str(after))
        model, resumed = tuned(model=make(), folder=tmp_path / str(after), resume=True)
        assert same_weights(model, whole) and without_times(resumed) == without_times(history)


def test_a_checkpoint_holds_the_trained_parameters_alone(tmp_path):
    model = with_adapter("nf4")
    tuned(model=model, folder=tmp_path)
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert set(state["model"]) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_another_base_other_data_and_other_settings_are_not_resumed(tmp_path):
    tuned(model=with_adapter("nf4"), folder=tmp_path)
    other = with_adapter("nf4")
    other.layers[0].attention.wq.base.codes[0] ^= 1  # one bit of one weight
    with pytest.raises(ValueError, match="cannot resume: frozen_weights is "):
        tuned(model=other, folder=tmp_path, resume=True)
    for train, held_out, name in ((HELD_OUT, HELD_OUT, "sequences"), (TRAIN, TRAIN, "held_out")):
        with pytest.raises(ValueError, match=f"cannot resume: {name} is "):
            fine_tune(with_adapter("nf4"), train, held_out, CONFIG, tmp_path, resume=True, progress=False)
    for field in fields(SftConfig):
        if field.name in ("steps", "checkpoint_every", "paged_optimizer"):
            continue
        value = getattr(CONFIG, field.name)
        other = not value if field.type is bool else value / 2 + 0.125 if field.type is float else value + 2
        with pytest.raises(ValueError, match=f"cannot resume: {field.name} is "):
            tuned(replace(CONFIG, **{field.name: other}), with_adapter("nf4"), folder=tmp_path, resume=True)


def test_what_does_not_fit_is_refused_by_name():
    long = Sequence([1] * 41, [IGNORE] * 40 + [1])
    for wrong, said in (([], "sequences is empty"),
                        ([Sequence([1, 2], [1, IGNORE])], r"sequences\[0\] has no trainable token"),
                        ([*TRAIN, Sequence([1, V], [IGNORE, V])], r"sequences\[10\] holds the id 13"),
                        ([long], r"sequences\[0\] has 41 tokens")):
        with pytest.raises(ValueError, match=said):
            fine_tune(a_model(), wrong, HELD_OUT, CONFIG, progress=False)
    with pytest.raises(ValueError, match=r"held_out\[0\] has 41 tokens"):
        fine_tune(a_model(), TRAIN, [long], replace(CONFIG, pack_length=8), progress=False)
    with pytest.raises(ValueError, match="pack_length 41"):
        tuned(replace(CONFIG, pack_length=41))
    frozen = a_model().requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        tuned(model=frozen)


@pytest.mark.parametrize(("rows", "steps"), [(10, 150), (800, 150), (811, 152), (2400, 450), (2667, 500), (10**6, 500)])
def test_steps_that_are_not_given_are_three_epochs_between_150_and_500(rows, steps):
    assert with_steps(SftConfig(), rows).steps == steps
    assert with_steps(SftConfig(batch_size=8, grad_accumulation=2), rows).steps == steps
    assert with_steps(SftConfig(steps=7, warmup_steps=1), rows).steps == 7
    with pytest.raises(ValueError, match="warmup_steps 500"):
        with_steps(SftConfig(warmup_steps=500), rows)


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"batch_size": 0}, {"max_lr": math.nan}, {"pack_length": 1},
                  {"warmup_steps": 150, "steps": 150}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SftConfig(**wrong)
    for wrong in ({"separate_documents": 1}, {"gradient_checkpointing": None}, {"steps": True}, {"max_lr": "1"}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            SftConfig(**wrong)


run = partial(Mutant, "minillama.train.training_run")
MUTANTS = [
    run("if p.requires_grad}", "if p.requires_grad or True}",
        lambda: in_a_folder(test_a_checkpoint_holds_the_trained_parameters_alone)),
    Mutant("minillama.train.resume", "\"frozen_weights\": frozen_fingerprint(model)", "\"frozen_weights\": 0",
        lambda: in_a_folder(test_another_base_other_data_and_other_settings_are_not_resumed)),
]
