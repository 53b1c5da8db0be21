"""One function holds every config against what stands beside its fields: types, finiteness, bounds, choices."""

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest
from mutants import Mutant

from lessons.other_feedback import DPOConfig
from minillama import config_checks
from minillama.chat import ChatSampling
from minillama.config import ModelConfig, RopeScaling
from minillama.config_checks import MOST, SEEDS, Range, check, check_config, choice, number
from minillama.peft.lora import LoRAConfig
from minillama.rlhf.train_ppo import PPOConfig
from minillama.rlhf.train_reward import RewardConfig
from minillama.sampling import Sampling
from minillama.tour.tour import TourConfig
from minillama.train.pretrain import PretrainConfig
from minillama.train.self_instruct import FilterRules
from minillama.train.sft import SftConfig

CONFIGS = (PretrainConfig, SftConfig, PPOConfig, RewardConfig, DPOConfig, Sampling, ChatSampling, LoRAConfig,
           FilterRules, TourConfig, RopeScaling)
ABSURD = (-1, -1e40, 1e40, 10**12, 2**63, 2**64, math.nan, math.inf, -math.inf, "cdua", True, None, 1e-45, -0.5)


@dataclass(frozen=True)
class Settings:
    count: int = number(3, 1, 9)
    share: float = number(0.5, 0, below=1)
    rate: float = number(0.0, 0.25, 4, or_zero=True)
    size: int | None = number(None, 1, 5)
    word: str = choice("a", "a", "b")
    device: str = config_checks.device()
    seed: int = config_checks.seed()
    flag: bool = False
    free: float = 1.0

    def __post_init__(self):
        check_config(self)


@pytest.mark.parametrize("settings", [
    {"count": 1}, {"count": 9}, {"share": 0}, {"share": 0.999}, {"rate": 0}, {"rate": 0.25}, {"rate": 4}, {"size": 5},
    {"size": None}, {"word": "b"}, {"device": "cuda:7"}, {"device": "mps"}, {"seed": SEEDS}, {"flag": True},
    {"free": -1e300}])
def test_what_is_allowed_is_taken_as_it_is(settings):
    (name, value), = settings.items()
    assert getattr(Settings(**settings), name) == value


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"count": 0}, ValueError, "count is 0: it must be a whole number from 1 to 9"),
    ({"count": 10}, ValueError, "count is 10: it must be a whole number from 1 to 9"),
    ({"count": 2.0}, TypeError, "count is 2.0: it must be a whole number from 1 to 9"),
    ({"count": True}, TypeError, "count is True"), ({"count": None}, TypeError, "count is None"),
    ({"share": 1}, ValueError, "share is 1: it must be a number from 0 to below 1"),
    ({"share": True}, TypeError, "share is True"), ({"share": math.nan}, ValueError, "share is nan"),
    ({"rate": 0.1}, ValueError, "rate is 0.1: it must be 0 or a number from 0.25 to 4"),
    ({"size": 6}, ValueError, "size is 6"), ({"size": "5"}, TypeError, "size is '5'"),
    ({"word": "c"}, ValueError, "word is 'c': it must be one of a, b"), ({"word": 1}, TypeError, "word is 1"),
    ({"device": "cdua"}, ValueError, "device is 'cdua': it must be one of cpu, cuda, cuda:1, mps"),
    ({"device": "cuda:"}, ValueError, "device is 'cuda:'"), ({"seed": SEEDS + 1}, ValueError, "seed is 92233720368547"),
    ({"flag": 1}, TypeError, "flag is 1: it must be True or False"),
    ({"free": math.inf}, ValueError, "free is inf: it must be a number"), ({"free": "1"}, TypeError, "free is '1'")])
def test_what_is_not_is_named_with_its_value_and_what_is(settings, error, message):
    with pytest.raises(error, match=message):
        Settings(**settings)


KINDS = {float: (int, float), float | None: (int, float)}  # a whole number is a float


def lines_of(config):
    """A line for each field: its default, and what it may be."""
    for field in fields(config):
        allowed = field.metadata.get("allowed")
        default = "required" if field.default is MISSING else repr(field.default)
        zero = "0 or " if getattr(allowed, "or_zero", False) else ""
        yield f"{config.__name__}.{field.name} = {default}" + (f", {zero}{allowed}" if allowed else "")


def test_defaults_and_bounds_are_those_that_are_written_down():
    """A default is a promise: commands, lessons and saved runs rest on it. One that is changed is changed there too."""
    written = (Path(__file__).parent / "settings.txt").read_text(encoding="utf-8").splitlines()
    assert written == [line for config in CONFIGS if config is not DPOConfig for line in lines_of(config)]


def test_every_number_of_every_config_has_bounds_and_a_default_within():
    for config in CONFIGS:
        for field in fields(config):
            if field.type in (int, float):
                allowed = field.metadata["allowed"]
                assert allowed.most < math.inf or allowed.below < math.inf, f"{config.__name__}.{field.name}"
        config()


@pytest.mark.parametrize("config", CONFIGS)
def test_no_config_takes_a_value_beyond_a_field_s_bounds(config):
    for field in (field for field in fields(config) if field.type is not tuple and field.name != "rope_scaling"):
        for value in ABSURD:
            if value is None and field.default is None:
                config(**{field.name: value})  # a default that is worked out
                continue
            allowed = field.metadata.get("allowed")
            is_bool, right = isinstance(value, bool), KINDS.get(field.type, field.type)
            if is_bool is not (field.type is bool) or not isinstance(value, right):
                with pytest.raises(TypeError, match=field.name):
                    config(**{field.name: value})
            elif allowed and not (value == 0 and allowed.or_zero) if isinstance(allowed, Range) else allowed:
                inside = isinstance(allowed, Range) and allowed.least <= value <= allowed.most and value < allowed.below
                if not inside:
                    with pytest.raises(ValueError, match=field.name):
                        config(**{field.name: value})


@pytest.mark.parametrize(("config", "settings"), [
    (PretrainConfig, {"beta1": 1.0}), (SftConfig, {"beta2": 1.0}), (PretrainConfig, {"device": "cdua"}),
    (RewardConfig, {"epochs": 1.5}), (RewardConfig, {"warmup_steps": -1}), (RewardConfig, {"epochs": 10**12}),
    (Sampling, {"temperature": 1e-40}), (ChatSampling, {"temperature": 1e-38}), (Sampling, {"top_p": 1e-46}),
    (Sampling, {"repetition_penalty": 1e-45}), (SftConfig, {"batch_size": 10**12}), (PPOConfig, {"seed": 10**20}),
    (PretrainConfig, {"eps": 1e-46}), (PPOConfig, {"gamma": 1e40}), (LoRAConfig, {"rank": 10**12}),
    (LoRAConfig, {"alpha": math.inf}), (PPOConfig, {"lr": 1e40}), (PretrainConfig, {"clip_norm": 1e-45}),
    (TourConfig, {"seed": -1}), (TourConfig, {"text_dim": 0}), (DPOConfig, {"label_smoothing": 0.5})])
def test_numbers_with_which_the_sums_end_badly_are_refused(config, settings):
    with pytest.raises((TypeError, ValueError), match=next(iter(settings))):
        config(**settings)


def test_a_shape_has_no_number_that_a_loop_would_not_end_with():
    with pytest.raises(ValueError, match="n_heads is"):
        ModelConfig(2**31, 1, 2**31, 8, n_kv_heads=3)


def test_a_lone_number_is_held_against_its_bounds_by_the_same_function():
    check("rows", 5, int, Range(1, MOST))
    with pytest.raises(ValueError, match="rows is 0: it must be a whole number from 1 to 1000000000"):
        check("rows", 0, int, Range(1, MOST))



MUTANTS = [
    Mutant("minillama.config_checks", "value < self.below", "value <= self.below",
        lambda: test_what_is_not_is_named_with_its_value_and_what_is({"share": 1}, ValueError, "share is 1")),
    Mutant("minillama.config_checks", "kind is float and not math.isfinite(value) or", "",
        lambda: test_what_is_not_is_named_with_its_value_and_what_is({"free": math.inf}, ValueError, "free is inf")),
    Mutant("minillama.config_checks", "self.or_zero and value == 0 or", "",
        lambda: test_what_is_allowed_is_taken_as_it_is({"rate": 0})),
]
