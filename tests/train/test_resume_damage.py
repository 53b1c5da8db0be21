"""What a resumed run reads may be damaged or hostile: every damage is one line with the file and the next step."""

import copy
import json
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from functools import partial

import pytest
import torch
from letters import Letters, bare
from test_train_ppo import CONFIG as PPO_CONFIG
from test_train_ppo import QUESTIONS, a_reward_model
from test_train_ppo import a_model as a_policy
from test_train_reward import CONFIG as REWARD_CONFIG
from test_train_reward import a_body, pairs
from tiny_run import one_thread
from tiny_run import run as pretrain

from minillama.rlhf.train_ppo import train_ppo
from minillama.rlhf.train_reward import train_reward
from minillama.train.resume import load_training_state, read_metrics

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def practise(folder, resume=False):
    train_ppo(a_policy(lora=True), a_reward_model(), Letters(), QUESTIONS, replace(PPO_CONFIG, iterations=1), bare,
              progress=False, folder=folder, resume=resume)


def judge(folder, resume=False):
    train_reward(a_body(), pairs(24), Letters(), REWARD_CONFIG, bare, progress=False, folder=folder, resume=resume)


KINDS = {"pretrain": (partial(pretrain), "training_state.pt"), "ppo": (practise, "ppo_state.pt"),
         "reward": (judge, "reward_state.pt")}


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory):
    """(folder of a finished run, f(folder) that resumes it, its state's file, its state)."""
    run, name = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    run(folder)
    return folder, partial(run, resume=True), folder / name, torch.load(folder / name, weights_only=True)


def refusal(resume, folder, what=""):
    """The message of the ValueError with which `resume` refuses the folder, held to one line with a next step."""
    try:
        with pytest.raises(ValueError) as refused:
            resume(folder)
    except BaseException:
        print(what)
        raise
    text = str(refused.value)
    assert type(refused.value) is ValueError and "\n" not in text and len(text) < 900, text
    assert str(folder) in text and "in another --out" in text or "belongs to a run of" in text, text
    assert "weights_only" not in text and "torch.load" not in text and "add_safe_globals" not in text
    return text


def leaves(value, place=()):
    """(place, value) of everything in a state, containers too."""
    if place:
        yield place, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from leaves(part, (*place, key))


def changed(state, place, value):
    """A copy of the state with another value there; value `del`: with none."""
    state = copy.copy(state)
    key, *rest = place
    if rest:
        state[key] = changed(state[key], rest, value)
    elif value == "del" and isinstance(value, str):
        del state[key]
    else:
        state[key] = value
    return state


def wrong_values(value):
    """What may not stand where `value` stands."""
    for wrong in ("del", None, "text", -1, 2**70, float("nan"), [], {}, {"odd": 1}, torch.zeros(2, 3, 4, 5)):
        if isinstance(value, torch.Tensor) or isinstance(wrong, torch.Tensor) or wrong != value:
            yield wrong
    if isinstance(value, torch.Tensor):
        other = torch.float32 if value.dtype == torch.float64 else torch.float64
        yield from (value[None], value.to(other), torch.zeros(0), value.to_sparse() if value.dim() else None)
        if value.is_floating_point():
            yield torch.full_like(value, torch.nan)
            yield torch.where(torch.arange(value.numel()).view(value.shape) == 0, torch.inf, value)


@pytest.mark.parametrize("most", [100, pytest.param(10**9, marks=pytest.mark.long)])
def test_every_part_of_a_state_that_is_missing_or_wrong_is_refused_in_one_line(finished, most):
    """most: about so many of the wrong states are tried, spread over all."""
    folder, resume, path, state = finished
    kept = path.read_bytes()
    places = [(place, value) for i, (place, value) in enumerate(leaves(state)) if len(place) < 3 or i % 9 == 0]
    faults = [(place, wrong) for place, value in places for wrong in wrong_values(value)]
    faults = faults[::max(1, len(faults) // most)]
    try:
        for place, wrong in faults:
            torch.save(changed(state, place, wrong), path)
            refusal(resume, folder, f"{place}: {wrong!r:.80}")
    finally:
        path.write_bytes(kept)
    resume(folder)  # and the state itself is taken
    assert len(faults) >= min(most, 200), len(faults)


@pytest.mark.parametrize("whole", [torch.zeros(3), [], {}, 7, {"step": 1}])
def test_a_state_that_is_something_else_is_refused(finished, tmp_path, whole):
    folder, resume, path, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.save(whole, tmp_path / path.name)
    assert "is damaged or no checkpoint" in refusal(resume, tmp_path)


def test_a_state_that_is_cut_short_packed_or_hostile_is_refused_unread(finished, tmp_path):
    folder, resume, path, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state, content = tmp_path / path.name, path.read_bytes()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    for damage in (b"", b"PK nonsense", content[:100], content[:-1], pickle.dumps(print),
                   (tmp_path / "packed").read_bytes(), bytes(len(content))):
        state.write_bytes(damage)
        assert "is damaged or no checkpoint" in refusal(resume, tmp_path)
    state.write_bytes(content)
    for wrong in (print, torch.nn.Linear(2, 2), {"kind": print}):
        torch.save(wrong, state)
        assert "asks for more than tensors" in refusal(resume, tmp_path)


def test_random_states_that_are_none_and_another_kind_of_run_are_refused(finished, tmp_path):
    folder, resume, path, state = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if "random" in state:
        torch.save(changed(state, ("random", "cpu"), torch.zeros_like(state["random"]["cpu"]) + 255),
                   tmp_path / path.name)
        assert "'random' is no state" in refusal(resume, tmp_path)
    torch.save(state | {"kind": "other"}, tmp_path / path.name)
    assert "belongs to a run of 'other'" in refusal(resume, tmp_path)


ROWS = ["{}", "[]", "null", "7", '{"step": null}', '{"step": "1", "loss": 1}', '{"step": 1, "loss": []}', "[" * 100_000,
        '{"iteration": 0}', "\ud800", '{"step": 99, "loss": 1.0}', '{"step": 0, "held_out_loss": "x"}']


@pytest.mark.parametrize("row", ROWS)
def test_metrics_that_are_no_rows_are_refused(finished, tmp_path, row):
    folder, resume, _, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    for place in {0, len(lines) - 1}:
        (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:place], row, *lines[place + 1:]]) + "\n",
                                                errors="surrogatepass", encoding="utf-8")
        assert "put the file back" in refusal(resume, tmp_path)


def test_metrics_without_an_end_of_line_take_no_memory(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_metrics(tmp_path / "metrics.jsonl", 1)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_text(" " * 3_000_000)
    with pytest.raises(ValueError, match="does not hold the 1 steps"):
        read_metrics(tmp_path / "metrics.jsonl", 1)


def test_damage_is_told_with_a_path_a_reason_and_a_next_step(tmp_path):
    path = tmp_path / "training_state.pt"
    path.write_bytes(b"x")
    with pytest.raises(ValueError) as refused:
        load_training_state(path)
    assert re.fullmatch(f"{re.escape(str(path))} is damaged or no checkpoint: .+: begin anew in another --out",
                        str(refused.value))


def test_a_tours_cached_result_that_is_damaged_is_told_and_made_anew(tmp_path):
    from bench.alternatives import check_rows, kept
    from minillama.tour.tour import TourConfig, TourReport

    report, said, made = TourReport(tmp_path, TourConfig()), [], []
    report.say = said.append

    def found():
        return kept(report, "stage", lambda folder: made.append(1) or {"history": [{"kl": 1.0}], "w": torch.ones(2)},
                    lambda found: check_rows(found["history"], ("kl",)), seed=1)

    found()
    path, = tmp_path.rglob("result.pt")
    whole = path.read_bytes()
    assert found()["history"] == [{"kl": 1.0}] and len(made) == 1
    for damage in (b"", whole[:500], pickle.dumps(print), json.dumps({}).encode()):
        path.write_bytes(damage)
        found()
    for damage in ({}, [], {"history": []}, {"history": [{}]}, {"history": [{"kl": "x"}]}, {"history": 3},
                   torch.ones(2)):
        torch.save(damage, path)
        assert found()["history"] == [{"kl": 1.0}]
    assert len(made) == 12 and sum("is damaged: it is made anew" in line for line in said) == 11


def test_a_finished_stage_of_the_tour_whose_metrics_are_damaged_is_refused_in_one_line(tmp_path):
    from letters import Letters
    from tiny_run import CONFIG, SHAPE

    from minillama.tour.tour import TourConfig, TourReport, train_or_load

    report = TourReport(tmp_path, TourConfig(progress=False))
    report.say = lambda text: None
    texts = ["abcdefgh" * 9] * 4, ["hgfedcba" * 9]
    stage = (report, "stage", replace(SHAPE, vocab_size=Letters.vocab_size), Letters(), None, texts, CONFIG)
    history = train_or_load(*stage)[2]
    assert len(train_or_load(*stage)[2]) == len(history)
    metrics, = tmp_path.rglob("metrics.jsonl")
    for damage in ("{}\n" * 20, "", "x"):
        metrics.write_text(damage)
        with pytest.raises(ValueError, match="metrics.jsonl is damaged: it does not hold the 11 steps"):
            train_or_load(*stage)
