"""Laws of tensor parallelism: processes that compute each token together end where one does."""

import json
from dataclasses import replace

import pytest
import torch
from forked import in_processes
from test_sharded import CONFIG, SHAPE, Traffic, largest_difference, learn, local_bytes, run_of

from minillama.config import ModelConfig
from minillama.train.mesh import step_traffic, training_bytes
from minillama.train.pretrain import PretrainRun
from minillama.train.sharded import ShardedPretrain
from minillama.train.tensor_parallel import require_cuttable

CUTTABLE = ModelConfig(24, 2, 4, 41, n_kv_heads=2, max_seq_len=32)


def learn_together(rank, size, folder):
    run = run_of(ShardedPretrain, shape=CUTTABLE, tensor_parallel=2)
    run.model.gradient_checkpointing = size == 4
    held = local_bytes(run.trained.values())
    learned = learn(run)
    with Traffic() as traffic:
        run.advance()
    moved = learn(run_of(ShardedPretrain, folder / "moved", 4 if size == 4 else None, CUTTABLE, tensor_parallel=2),
                  resume=True)
    if rank == 0:
        torch.save({"learned": learned, "moved": moved}, folder / f"learned-{size}.pt")
        (folder / f"facts-{size}.json").write_text(json.dumps({"held": held, "traffic": traffic.bytes}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor")
    found = {1: {"learned": learn(run_of(PretrainRun, shape=CUTTABLE))}}
    learn(run_of(PretrainRun, folder / "moved", stop_at=2, shape=CUTTABLE))
    in_processes(learn_together, [4, 2], folder)
    for size in (4, 2):
        facts = json.loads((folder / f"facts-{size}.json").read_text())
        found[size] = {**torch.load(folder / f"learned-{size}.pt", weights_only=True), **facts}
    return found


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_processes_that_cut_the_matrices_learn_what_one_does(runs, size):
    assert largest_difference(runs[size]["learned"], runs[1]["learned"]) <= 1e-6


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_what_is_sent_and_held_is_what_the_formulas_say(runs, size):
    shards, counted = size // 2, runs[size]["traffic"]
    said = step_traffic(CUTTABLE, shards, 2, CONFIG.grad_accumulation // shards, CONFIG.batch_size * CONFIG.seq_len,
                        recompute=size == 4)
    assert counted["all_gather_into_tensor"] == said["tables"]
    assert counted["all_reduce"] == pytest.approx(said["sums"], rel=0.02)
    assert counted.get("allgather_base", 0) == said["weights"]
    assert counted.get("reduce_scatter_base", 0) == said["gradients"]
    assert 4 * runs[size]["held"] == pytest.approx(training_bytes(CUTTABLE, shards, 2), rel=0.01)


@pytest.mark.parametrize(("shape", "size", "told"), [
    (SHAPE, 2, "--tensor-parallel 2 does not divide the model's n_kv_heads 1"),
    (CUTTABLE, 3, "--tensor-parallel 3 does not divide the model's n_heads 4"),
    (replace(CUTTABLE, tie_embeddings=True), 2, "cannot cut a model whose head is its embedding")])
def test_a_model_that_cannot_be_cut_is_refused(shape, size, told):
    with pytest.raises(ValueError, match=told):
        require_cuttable(shape, size)


@pytest.mark.long
def test_a_run_moved_from_one_process_to_a_mesh_of_2_x_2_to_two_ends_like_the_one_that_stayed(runs):
    assert largest_difference(runs[2]["moved"], runs[1]["learned"]) <= 1e-6
