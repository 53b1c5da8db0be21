"""Laws of `ppo --like`: a program's column of the table runs, as it is printed; the user's own flag beats it."""

import contextlib
import io
import re

import ppo_like
import pytest
import torch
from mutants import Mutant
from test_command_line import model_folder, tokenizer_file
from test_feedback_commands import pairs_file, reward_folder

from minillama.cli.command_line import build_parser
from minillama.rlhf import ppo
from minillama.rlhf.train_ppo import PPOConfig

FIXTURES = (model_folder, tokenizer_file, pairs_file, reward_folder)  # of other tests, used here by name
COLUMNS = {"instructgpt": "InstructGPT", "openai-2019": "OpenAI 2019", "trl-v1": "TRL v1", "trl-v2": "TRL v2",
           "colossalchat": "ColossalChat", "deepspeed-chat": "DeepSpeed-Chat"}


def table():
    """{column: its cells, from the first choice to the last} of the table in the docstring of `rlhf.ppo`."""
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in ppo.__doc__.splitlines()
            if line.startswith("|")]
    return {column: [row[at] for row in rows[2:]] for at, column in enumerate(rows[0])}


def test_the_table_and_the_data_file_say_the_same():
    columns = table()
    assert list(columns)[2:] == list(COLUMNS.values()) and list(ppo_like.PROGRAMS) == list(COLUMNS)
    for name, title in COLUMNS.items():
        settings = ppo_like.settings_of(name)
        (place, limit, estimator, coefficient, whitening, rewards, cap, mean, old, target, rate, kept,
         average) = columns[title]
        assert (settings["score_at"], settings["estimator"]) == (place, estimator), name
        assert settings["score_limit"] == (0 if limit in ("-", "optional") else float(limit)), name
        assert settings.get("whitening", "not told") == whitening.replace("no whitening", "none"), name
        assert settings["whiten_rewards"] is (rewards == "yes"), name
        assert settings["ratio_limit"] == (0 if cap == "-" else float(cap)), name
        assert settings["mean_ratio"] == (1e12 if mean == "-" else float(mean)), name
        assert settings["old_kl"] == 0 and old in ("-", "optional"), name
        assert (settings["kl_target"] > 0) is (coefficient == "adaptive"), name
        assert target == (f"{settings['kl_target']}, {settings['kl_horizon']}" if settings["kl_target"] else "-"), name
        assert settings.get("lr", "not told") == (rate if rate == "not told" else float(rate)), name
        assert settings.get("keep", "not told") == kept and settings.get("average", "not told") == average, name


def test_every_setting_of_the_data_file_is_one_of_ppo_and_allowed():
    for name in ppo_like.PROGRAMS:
        PPOConfig(**ppo_like.settings_of(name))


@pytest.mark.parametrize("name", COLUMNS)
def test_each_program_runs_two_rounds_with_the_settings_that_are_printed(name, model_folder, reward_folder, pairs_file,
                                                                         tmp_path, capsys):
    words = ("--model", model_folder, "--reward", reward_folder, "--prompts", pairs_file, "--out", tmp_path / "out",
             "--iterations", 2, "--batch-size", 8, "--max-new-tokens", 6, "--like", name)
    assert ppo_like.main([str(word) for word in words]) == 0
    err = capsys.readouterr().err
    printed = {flag: (value, whose) for flag, value, whose in re.findall(r"^  --([\w-]+) (.+?)  \((.*)\)$", err, re.M)}
    used = torch.load(tmp_path / "out" / "ppo_state.pt", weights_only=True)["signature"]
    unused = {"checkpoint_every"}
    for flag, (value, _) in printed.items():
        setting = flag.replace("-", "_")
        if setting not in unused and value != "by the model":
            assert str(used[setting]) == value, flag
    published = ppo_like.settings_of(name)
    published.pop("pretraining_weight", None)  # no text was given, which is said
    assert all(float(used[key]) == value if isinstance(value, float) else used[key] == value
               for key, value in published.items() if key != "batch_size")
    assert printed["batch-size"] == ("8", f"yours; {name} has {published['batch_size']}"
                                     if "batch_size" in published else "yours")
    assert printed["iterations"][1] == "yours" and printed["adam-eps"][1] == "ours"
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def called(*words):
    """(the command that would run, what was said) of `ppo --like` with these words."""
    ran, said = [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(ppo_like, "minillama", lambda words: ran.append(words) or 0)
        code = ppo_like.main(["--model", "m", "--reward", "r", "--prompts", "p", "--out", "o", *words])
    return code, ran, said.getvalue()


def test_the_users_own_flag_wins_and_is_said():
    code, ran, said = called("--like=trl-v1", "--kl-coefficient", "0.5", "--no-whiten-rewards")
    assert code == 0 and "--kl-coefficient 0.5  (yours; trl-v1 has 0.2)" in said and "--clip 0.2  (trl-v1)" in said
    assert build_parser("ppo").parse_args(ran[0]).kl_coefficient == 0.5


def test_an_unknown_name_is_refused():
    for words in (["--like", "nobody"], ["--like=nobody"], ["--like"]):
        code, ran, said = called(*words)
        assert code == 2 and not ran and said.count("\n") == 1 and all(name in said for name in COLUMNS)


def test_instructgpt_mixes_in_the_text_that_it_is_given():
    for text, weight in ((["--pretraining-text", "t"], True), ([], False)):
        _, ran, said = called("--like", "instructgpt", *text)
        assert ("--pretraining-weight 27.8" in " ".join(ran[0])) is weight and ("left out" in said) is not weight


MUTANTS = [
    Mutant("ppo_like", "if name not in PROGRAMS", "if not name", test_an_unknown_name_is_refused),
    Mutant("ppo_like", "same = value == published[field.name]", "same = True",
           test_the_users_own_flag_wins_and_is_said),
    Mutant("ppo_like", '["ppo", *flags_of(published), *words]', '["ppo", *words, *flags_of(published)]',
           test_the_users_own_flag_wins_and_is_said),
]
