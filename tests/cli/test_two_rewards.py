"""Laws of `llama2-chat`: the best answers are those of the joined score, and PPO is paid by it."""

import json

import pytest
import torch
import two_rewards
from test_command_line import model_folder, run, tokenizer_file
from test_feedback_commands import pairs_file, reward_folder

from minillama.cli import feedback_commands
from minillama.cli.command_line import build_parser
from minillama.rlhf.llama2_chat import JoinedReward
from minillama.rlhf.reward_file import load_reward

FIXTURES = (model_folder, tokenizer_file, pairs_file, reward_folder)


def test_both_stages_run_on_two_reward_models(model_folder, reward_folder, pairs_file, tmp_path, capsys):
    both = ["--reward", reward_folder, "--safe", reward_folder, "--safety-pairs", pairs_file, "--prompts", pairs_file,
            "--model", model_folder]
    code = two_rewards.main([str(word) for word in ("best", *both, "--out", tmp_path / "best", "--answers", 4,
                                                    "--limit", 12, "--max-new-tokens", 6)])
    err = capsys.readouterr().err
    if code == 0:  # a model that was never taught to stop may end no answer
        lines = [json.loads(line) for line in (tmp_path / "best" / "best.jsonl").read_text().splitlines()]
        assert lines and all(set(line) == {"instruction", "output", "score"} for line in lines)
    else:
        assert "no answer of 6 tokens ended" in err and not (tmp_path / "best" / "best.jsonl").exists()
    words = ("ppo", *both, "--out", tmp_path / "ppo", "--iterations", 2, "--batch-size", 4, "--max-new-tokens", 6)
    assert two_rewards.main([str(word) for word in words]) == 0
    assert len((tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()) == 2
    assert feedback_commands.load_reward is load_reward, "the plain command is as it was"
    assert two_rewards.main(["dance"]) == 2 and "best or ppo" in capsys.readouterr().err
    assert two_rewards.main([str(word) for word in (*words, "--shard")]) == 2
    assert "--shard cuts one reward model" in capsys.readouterr().err
    assert run(capsys, "ppo", "--help")[0] == 0


def test_a_run_is_not_gone_on_with_under_other_safety_pairs(model_folder, reward_folder, pairs_file, tmp_path, capsys):
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(pairs_file.read_text().splitlines(keepends=True)[:-1]))
    words = ["ppo", "--model", model_folder, "--reward", reward_folder, "--safe", reward_folder, "--prompts",
             pairs_file, "--iterations", 1, "--batch-size", 4, "--max-new-tokens", 6, "--out", tmp_path / "ppo"]
    for pairs, more, code in ((pairs_file, [], 0), (fewer, ["--resume"], 2), (pairs_file, ["--resume"], 0)):
        assert two_rewards.main([str(word) for word in (*words, "--safety-pairs", pairs, *more)]) == code
    assert "reward_model" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "read"), [([], "last"), (["--keep", "best"], "best"), (["--keep=best"], "best")])
def test_the_last_policy_is_kept_for_whitened_scores_tell_none_from_another(monkeypatch, given, read):
    asked = []
    monkeypatch.setattr(two_rewards, "minillama", lambda words: asked.append(words) or 0)
    words = "--model M --reward R --prompts P --out O".split() + given
    assert two_rewards.main(["ppo", "--safe", "S", "--safety-pairs", "F", *words]) == 0
    assert build_parser("ppo").parse_args(asked[0]).keep == read and asked[0][:1 + len(words)] == ["ppo", *words]


def test_the_level_is_halfway_between_the_sides_of_the_pairs(reward_folder, pairs_file):
    joint, reads = two_rewards.load_joined(reward_folder, reward_folder, pairs_file)
    assert isinstance(joint, JoinedReward) and len(joint.marked) == 20 and reads.vocab_size == 320
    model, _ = load_reward(reward_folder)
    encoded = two_rewards.encode_pairs(two_rewards.read_pairs(pairs_file), reads)
    with torch.no_grad():
        means = [sum(model(torch.tensor([side[i]]), torch.ones(1, len(side[i]), dtype=torch.bool)).item()
                     for side in encoded) / len(encoded) for i in (0, 1)]
    assert joint.level.item() == pytest.approx(sum(means) / 2, abs=1e-4)
