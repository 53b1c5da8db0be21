"""Laws of the plan of a mesh; that small runs send what it says is held in test_sharded and test_tensor_parallel."""

from pathlib import Path

import mesh_plan
import pytest
from mutants import Mutant

from lessons import mesh
from lessons.mesh import (
    communication_share,
    describe_mesh,
    describe_ppo,
    held_numbers,
    kept_bytes,
    ppo_traffic,
    ppo_training_bytes,
    step_traffic,
    training_bytes,
)
from minillama.config import preset

SHAPE = preset("llama_65b")


def test_alone_a_process_holds_sixteen_bytes_a_weight_and_sends_nothing():
    assert training_bytes(SHAPE) == 16 * SHAPE.n_parameters()
    assert set(step_traffic(SHAPE, 1, 1, 4, 2048).values()) == {0}


@pytest.mark.parametrize(("shards", "cut"), [(8, 4), (32, 1), (2, 8)])
def test_a_mesh_shares_all_but_the_norms_among_its_processes(shards, cut):
    norms = (2 * SHAPE.n_layers + 1) * SHAPE.dim
    matrices = SHAPE.n_parameters() - norms
    assert sum(held_numbers(SHAPE, shards, cut)) == matrices / (shards * cut) + norms / shards


def test_rows_that_do_not_share_evenly_are_padded():
    small = preset("tiny", vocab_size=41)
    assert held_numbers(small, 4, 1)[1] == 11 * small.dim + small.dim / 4  # one table: its head is tied


def test_what_llama_65b_sends_in_a_step_of_2048_tokens():
    said = step_traffic(SHAPE, 8, 4, 1, 2048, size=2)
    blocks, rest = held_numbers(SHAPE, 8, 4)
    assert said["weights"] == 7 * (2 * blocks + rest) * 2 and said["gradients"] == 7 * (blocks + rest) * 4
    assert said["sums"] == 3 / 4 * ((8 * 80 + 2) * 2048 * 8192 * 2 + 2 * 161 * 8192 * 4)
    assert said["tables"] == 3 / 4 * (32000 + 2 * 8192) * 2048 * 2


def test_a_slower_link_takes_a_larger_share_and_a_longer_batch_a_smaller_one():
    share = {link: communication_share(SHAPE, 8, 4, 1, 2048, link, 1e14) for link in mesh.LINKS}
    ranked = sorted(share, key=mesh.LINKS.get, reverse=True)
    assert ranked == sorted(share, key=share.get) and all(0 < value < 1 for value in share.values())
    assert communication_share(SHAPE, 8, 1, 1, 8192, "pcie4", 1e14) < communication_share(SHAPE, 8, 1, 1, 2048, "pcie4",
                                                                                         1e14)


def test_of_each_blocks_input_a_process_keeps_its_share_of_the_tokens():
    assert kept_bytes(SHAPE, 3, 2047, 4) == 3 * (512 * 80 * 8192 * 2 + 2047 * 32000 * 8)


def test_the_plan_is_said_in_five_lines():
    lines = describe_mesh(SHAPE, 8, 4, 1, 2048, "infiniband-hdr")
    assert len(lines) == 5 and lines[0].startswith("mesh 8 x 4: 30.4 GiB a process") and "infiniband-hdr" in lines[4]
    assert "\n".join(lines) in (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
    sent = step_traffic(SHAPE, 8, 4, 1, 2048, 2, recompute=True)
    assert all(f"{name} {count / 2**30:.2f} GiB" in lines[3] for name, count in sent.items())


def test_what_is_computed_again_takes_eight_flops_a_weight_and_token_for_six():
    both = [communication_share(SHAPE, 1, 4, 1, 2048, "pcie4", 1e14, recompute=again) for again in (False, True)]
    sent = [sum(step_traffic(SHAPE, 1, 4, 1, 2048, 2, again).values()) for again in (False, True)]
    times = [count / mesh.LINKS["pcie4"] * (1 - share) / share for count, share in zip(sent, both, strict=True)]
    assert times[1] / times[0] == pytest.approx(8 / 6, rel=1e-9)


def test_the_command_says_what_the_formulas_say(capsys):
    mesh_plan.main("--mesh 8x4 --model llama_65b --link ethernet-100 --rows 2 --tokens 1024".split())
    assert capsys.readouterr().out.splitlines() == describe_mesh(SHAPE, 8, 4, 2, 1024, "ethernet-100")


def test_what_an_iteration_of_ppo_holds_and_sends():
    """Forty bytes a weight: two models that learn, two that do not. Each forward pass gathers the blocks once, each
    backward pass once more."""
    assert ppo_training_bytes(SHAPE) == 40 * SHAPE.n_parameters()
    assert set(ppo_traffic(SHAPE, 1, 64, 4).values()) == {0}
    blocks, rest = held_numbers(SHAPE, 8, 1)
    said = ppo_traffic(SHAPE, 8, 64, 4, looks=2, size=2)
    judged, head = rest + SHAPE.dim, 32000 // 8 * SHAPE.dim
    assert said["sampling"] == 7 * 2 * (64 * blocks + rest)
    assert said["judging"] == 7 * 2 * (7 * blocks + 5 * rest + 2 * judged + 1)
    assert said["learning"] == 7 * 2 * 4 * (4 * blocks + rest + judged + 1)
    assert said["gradients"] == 7 * 4 * 4 * (2 * blocks + rest + judged + 1 - head)


def test_the_command_says_what_an_iteration_of_ppo_costs(capsys):
    mesh_plan.main("--mesh 8x1 --model llama_7b --answer-tokens 64".split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == describe_ppo(preset("llama_7b"), 8, 64) and "31.4 GiB a process" in lines[-2]


@pytest.mark.parametrize(("words", "told"), [
    ("--mesh 8 --model llama_65b", "--mesh is '8'"), ("--mesh 0x4 --model llama_65b", "--mesh is '0x4'"),
    ("--mesh 8x4 --model llama_66b", "llama_66b"), ("--mesh 8x4 --model llama_65b --link wire", "--link"),
    ("--mesh 8x4 --model llama_65b --tokens 0", "at least one token"),
    ("--mesh 8x3 --model llama_65b", "8x3: 3 does not divide the model's n_heads 64")])
def test_a_mesh_that_cannot_be_planned_is_refused_in_a_line(words, told, capsys):
    with pytest.raises(SystemExit) as error:
        mesh_plan.main(words.split())
    assert error.value.code == 2 and told in capsys.readouterr().err.splitlines()[-1]


MUTANTS = [
    Mutant(mesh.__name__, "passes * blocks + rest", "passes * (blocks + rest)",
           test_what_an_iteration_of_ppo_holds_and_sends),
    Mutant(mesh.__name__, "judged + 1 - head)", "judged + 1)", test_what_an_iteration_of_ppo_holds_and_sends),
    Mutant(mesh.__name__, "others * batches * (2 * blocks", "others * batches * (1 * blocks",
           test_what_llama_65b_sends_in_a_step_of_2048_tokens),
    Mutant(mesh.__name__, "-(-rows // shards) * width", "rows // shards * width",
           test_rows_that_do_not_share_evenly_are_padded),
    Mutant(mesh.__name__, "-(-tokens // cut)", "tokens // cut",
           test_of_each_blocks_input_a_process_keeps_its_share_of_the_tokens),
    Mutant(mesh.__name__, "(6 + 2 * recompute)", "6",
           test_what_is_computed_again_takes_eight_flops_a_weight_and_token_for_six)]
