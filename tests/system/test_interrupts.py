"""Laws of stopping: the first signal finishes the step and saves, the second stops at once, an ignored one stays so."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mutants import Mutant
from test_command_line import model_folder, run, tokenizer_file
from test_feedback_commands import FEW, pairs_file, reward_folder
from tiny_run import a_model, one_thread, same_weights, without_times
from tiny_run import run as pretrain

from minillama.rlhf.train_ppo import PPO
from minillama.system.interrupts import SIGNALS, Interrupted, Terminated, raise_on_signals, stop_requested
from minillama.train.resume import load_training_state
from minillama.train.training_run import TrainingRun

FIXTURES = (model_folder, tokenizer_file, pairs_file, reward_folder)
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def pressed(number, at, times=1):
    """A model that hears a signal in the pass of training that begins step `at`."""
    model, passes = a_model(), []

    def press(part, _):
        passes.append(part.training)
        if part.training and sum(passes) == at:
            for _ in range(times):
                signal.raise_signal(number)

    model.register_forward_pre_hook(press)
    return model


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_finishes_the_step_and_saves(tmp_path, number):
    before, kind = handlers(), KeyboardInterrupt if number == signal.SIGINT else Terminated
    with pytest.raises(kind, match="stopped after step 5 of 11, saved in .*: resume=True goes on") as stopped:
        pretrain(tmp_path, model=pressed(number, 5))
    assert handlers() == before and stopped.value.signal == number
    assert load_training_state(tmp_path / "training_state.pt")["step"] == 5
    whole_model, whole = pretrain(tmp_path / "whole")
    resumed, history = pretrain(tmp_path, resume=True)
    assert same_weights(resumed, whole_model) and without_times(history) == without_times(whole)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_is_handled_as_before_the_run(tmp_path, number):
    def at_once(number, frame):
        raise ZeroDivisionError

    before = signal.signal(number, at_once)
    try:
        with pytest.raises(ZeroDivisionError):
            pretrain(tmp_path, model=pressed(number, 5, times=2))
        assert signal.getsignal(number) is at_once
    finally:
        signal.signal(number, before)
    assert load_training_state(tmp_path / "training_state.pt")["step"] == 3


def test_from_a_launcher_the_same_request_twice_is_one(tmp_path, monkeypatch):
    """run.py passes on what a closing terminal told the program already."""
    monkeypatch.setenv("MINILLAMA_LAUNCHER", str(os.getppid()))
    monkeypatch.setattr("minillama.system.interrupts._heard", {})
    with raise_on_signals(), pytest.raises(Terminated, match="stopped after step 4 of 11"):
        pretrain(tmp_path / "a", model=pressed(signal.SIGTERM, 4, times=2))
    monkeypatch.setattr("minillama.system.interrupts.REPEAT_SECONDS", 0.0)
    with raise_on_signals(), pytest.raises(Terminated, match="^$"):
        pretrain(tmp_path / "b", model=pressed(signal.SIGTERM, 4, times=2))


@pytest.mark.parametrize("number", SIGNALS)
def test_an_ignored_signal_stays_ignored(tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with raise_on_signals():
            pretrain(tmp_path, model=pressed(number, 5, times=3))
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_signals_are_nobodys():
    seen = []

    def work():
        with stop_requested() as request, raise_on_signals():
            seen.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def signal_at(monkeypatch, where, count, number):
    """Have method `where` = (class, name) hear a signal in its call number `count`."""
    kind, name = where
    plain, calls = getattr(kind, name), []

    def method(self, *arguments):
        calls.append(1)
        if len(calls) == count:
            signal.raise_signal(number)
        return plain(self, *arguments)

    monkeypatch.setattr(kind, name, method)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["pretrain", "sft", "reward", "ppo"])
def test_a_stopped_command_says_in_one_line_what_is_saved_and_the_flag_that_goes_on(
        command, number, model_folder, reward_folder, pairs_file, tmp_path, capsys, monkeypatch):
    (tmp_path / "data.jsonl").write_text("".join(
        json.dumps({"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))}) + "\n"
        for n in range(2, 40)))
    words, unit = {
        "pretrain": (("--text", ROOT / "lessons" / "checks", "--model", model_folder, "--steps", 3,
                      "--warmup-steps", 1, "--seq-len", 16), "step"),
        "sft": (("--model", model_folder, "--data", tmp_path / "data.jsonl", "--steps", 3, "--warmup-steps", 1,
                 "--template", "question_answer", "--held-out-fraction", 0.3), "step"),
        "reward": (("--model", model_folder, "--pairs", pairs_file, "--batch-size", 16, "--max-new-tokens", 4), "step"),
        "ppo": (("--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, *FEW, "--iterations", 3,
                 "--checkpoint-every", 10), "iteration")}[command]
    out = tmp_path / "out"
    signal_at(monkeypatch, (PPO if command == "ppo" else TrainingRun, "advance"), 2, number)
    code, _, err = run(capsys, command, *words, "--out", out)
    assert code == 128 + number
    assert err.splitlines()[-1] == (f"minillama: interrupted: stopped after {unit} 2 of 3, saved in {out}: "
                                    "--resume goes on")
    code, _, err = run(capsys, command, *words, "--out", out, "--resume")
    assert code == 0, err


def test_before_there_is_a_state_nothing_is_saved_and_what_writes_nothing_says_nothing(
        model_folder, tmp_path, capsys, monkeypatch):
    signal_at(monkeypatch, (TrainingRun, "train"), 1, signal.SIGTERM)
    code, _, err = run(capsys, "pretrain", "--text", ROOT / "lessons" / "checks", "--model", model_folder,
                       "--seq-len", 16, "--out", tmp_path / "out")
    assert (code, err.splitlines()[-1]) == (143, "minillama: interrupted: nothing saved")
    monkeypatch.setattr("minillama.cli.info.describe", lambda: signal.raise_signal(signal.SIGTERM))
    assert run(capsys, "info") == (143, "", "minillama: interrupted\n")


def test_a_stopped_tour_says_that_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    signal_at(monkeypatch, (TrainingRun, "advance"), 2, signal.SIGTERM)
    words = ("tour", "--out", tmp_path, "--documents", 100, "--steps", 40, "--no-progress", "--kernels", "torch")
    code, _, err = run(capsys, *words)
    assert code == 143
    assert err == ("minillama: interrupted: stopped after step 2 of 40: what is finished is kept in "
                   f"{tmp_path}: the same command goes on\n")


LESSON = """# %% [markdown] question
# # 01 · A lesson
# Covers: x
# %% code
import os, signal, tempfile
home = tempfile.TemporaryDirectory()
print(home.name)
os.kill(os.getpid(), signal.SIGTERM)
for i in range(10**9): pass
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
def test_a_terminated_lesson_takes_its_folder_along(tmp_path):
    (tmp_path / "01_lesson.py").write_text(LESSON)
    code = (f"from minillama.course import lesson; from pathlib import Path; import sys\n"
            f"from minillama.cli.command_line import main\n"
            f"lesson.find.__defaults__ = (Path({str(tmp_path)!r}),)\nsys.exit(main(['lesson', '1']))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (143, "minillama: interrupted\n")
    assert str(tmp_path) in done.stdout and {path.name for path in tmp_path.iterdir()} <= {"01_lesson.py"}


CHILD = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import tiny_run as ours
from dataclasses import replace
from minillama.system.interrupts import raise_on_signals
model = ours.a_model()
model.register_forward_pre_hook(lambda part, _: (part.training and print('step', flush=True), time.sleep(0.05))[1])
with raise_on_signals():
    ours.run({folder!r}, replace(ours.CONFIG, steps=2000), model=model)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "group"), [("SIGTERM", False), ("SIGHUP", True)])
def test_run_py_passes_a_signal_on_and_waits_and_a_group_that_hears_it_twice_still_saves(tmp_path, name, group):
    number = getattr(signal, name)
    code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path / "run"))
    front = f"import sys, run; sys.exit(run.call({sys.executable!r}, '-c', {code!r}))"
    parent = subprocess.Popen([sys.executable, "-c", front], cwd=ROOT, start_new_session=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert parent.stdout.readline() == "step\n"
    (os.killpg if group else os.kill)(parent.pid, number)
    out, err = parent.communicate(timeout=60)
    assert (parent.returncode, err) == (128 + number, "")
    assert load_training_state(tmp_path / "run" / "training_state.pt")["step"] >= 1


def test_texts_for_callers_of_the_library_name_their_argument():
    assert str(Interrupted("stopped after step 1 of 2", "there")).endswith("saved in there: resume=True goes on")
    assert str(Terminated("stopped after step 1 of 2")) == "stopped after step 1 of 2"
    assert Terminated(number=signal.SIGTERM).code == 143


def stopped_twice():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_a_second_signal_is_handled_as_before_the_run(Path(folder), signal.SIGTERM)


def ignored():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        test_an_ignored_signal_stays_ignored(Path(folder), signal.SIGTERM)


MUTANTS = [
    Mutant("minillama.system.interrupts", "        if request:\n", "        if False:\n", stopped_twice),
    Mutant("minillama.system.interrupts", "not in (signal.SIG_IGN, None)", "is not None", ignored),
]
