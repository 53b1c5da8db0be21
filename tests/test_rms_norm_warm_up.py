"""Whether a warm-up can be dropped: the record that lesson 05 shows, and the block that it was measured with."""

import json
import sys
from pathlib import Path

import torch
from mutants import Mutant

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "bench"))
import warm_up  # noqa: E402

RECORD = json.loads((ROOT / "bench" / "warm_up.json").read_text(encoding="utf-8"))


def gains(norm):
    """By how many nats a warm-up lowers the held-out loss, seed by seed."""
    return [run[f"{norm}, none"]["held_out"] - run[f"{norm}, warm-up"]["held_out"] for run in RECORD["seeds"]]


def test_pre_norm_never_gains_from_a_warm_up_post_norm_in_most_seeds_and_is_worse_in_all():
    assert [run["seed"] for run in RECORD["seeds"]] == [0, 1, 2]
    assert max(gains("pre-norm")) < 0 and sorted(gains("post-norm"))[1] > 0.1
    for run in RECORD["seeds"]:
        assert len(run) == 5
        for how in ("none", "warm-up"):
            assert run[f"pre-norm, {how}"]["held_out"] < run[f"post-norm, {how}"]["held_out"]


def test_the_record_is_of_these_settings():
    wanted = {"layers": warm_up.LAYERS, "dim": warm_up.DIM, "steps": warm_up.STEPS, "warmup": warm_up.WARMUP,
              "lr": warm_up.LR, "batch": warm_up.BATCH, "length": warm_up.LENGTH}
    assert {key: RECORD[key] for key in wanted} == wanted


def test_a_post_norm_block_norms_the_sum_and_keeps_the_stream_at_size_one():
    model = warm_up.build("post-norm", 30, 0, layers=2)
    tokens = torch.arange(24).view(2, 12)
    x = model.tok_embeddings(tokens)
    rotations = torch.ones(12, 8, dtype=torch.complex64)
    for block in model.layers:
        y = block(x, rotations)
        after = block.attention_norm(x + block.attention(x, rotations))
        assert torch.equal(y, block.ffn_norm(after + block.feed_forward(after)))
        assert (y.pow(2).mean(-1).sqrt() - 1).abs().max() < 1e-3
        x = y
    assert isinstance(model.norm, torch.nn.Identity)
    assert not isinstance(warm_up.build("pre-norm", 30, 0, layers=2).norm, torch.nn.Identity)


MUTANTS = [
    Mutant("warm_up", "self.ffn_norm(x_BTD + self", "x_BTD + self.ffn_norm(self",
           test_a_post_norm_block_norms_the_sum_and_keeps_the_stream_at_size_one),
]
