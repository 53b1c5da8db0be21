"""Laws of tensor parallelism: processes that compute each token together end where one does."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import test_sharded
import torch
from checkpoints import model_of
from forked import in_processes
from mutants import Mutant, planted
from test_sharded import CONFIG, SHAPE, Traffic, largest_difference, learn, local_bytes, run_of

from lessons.mesh import step_traffic, training_bytes
from minillama.backends import use_kernels
from minillama.checkpoint import open_weights, save_model
from minillama.checkpoint.convert import convert
from minillama.cli.command_line import main
from minillama.config import ModelConfig
from minillama.generate import generate_tokens
from minillama.sampling import Sampling
from minillama.train import tensor_parallel
from minillama.train.pretrain import PretrainRun
from minillama.train.sharded import ShardedPretrain
from minillama.train.tensor_parallel import read_cut, require_cuttable

EVEN = ModelConfig(24, 2, 4, 41, max_seq_len=32)  # four processes can cut it
CUTTABLE = ModelConfig(24, 2, 4, 41, n_kv_heads=2, max_seq_len=32)


def note_tokens(model):
    """{how many tokens of a row this process has in the residual stream and the norms from now on}."""
    seen = set()
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.add(given[0].to_local().shape[1]))
        for norm in (layer.attention_norm, layer.ffn_norm, model.norm):
            norm.register_forward_hook(lambda _, given, y: seen.update(x.to_local().shape[1] for x in (given[0], y)))
    return seen


def learn_unevenly(size):
    """All processes cut each matrix, and the 15 tokens of a row -> (the weights, tokens of this process)."""
    test_sharded.CONFIG = replace(CONFIG, seq_len=15)
    run = run_of(ShardedPretrain, shape=EVEN, tensor_parallel=size)
    seen = note_tokens(run.model)
    learned = learn(run)
    test_sharded.CONFIG = CONFIG
    return learned, seen


UNSUMMED = Mutant(  # each process takes its tokens for all there are
    tensor_parallel.__name__, "distribute_module(norm, mesh)\n",
    "distribute_module(norm, mesh, None, lambda _, given, mesh: (type(given[0]).from_local(given[0].to_local(), mesh, "
    "[whole]),), lambda _, y, mesh: type(y).from_local(y.to_local(), mesh, [stream]))\n", None)


def learn_together(rank, size, folder):
    run = run_of(ShardedPretrain, shape=CUTTABLE, tensor_parallel=2)
    seen = note_tokens(run.model)
    run.model.gradient_checkpointing = size == 4
    held = local_bytes(run.trained.values())
    learned = learn(run)
    with Traffic() as traffic:
        run.advance()
    moved = learn(run_of(ShardedPretrain, folder / "moved", 4 if size == 4 else None, CUTTABLE, tensor_parallel=2),
                  resume=True)
    uneven, few = learn_unevenly(size)
    with planted(UNSUMMED):
        unsummed = learn(run_of(ShardedPretrain, shape=CUTTABLE, tensor_parallel=2))
    if rank == 0:
        torch.save({"learned": learned, "moved": moved, "uneven": uneven, "unsummed": unsummed},
                   folder / f"learned-{size}.pt")
        (folder / f"facts-{size}.json").write_text(json.dumps({"held": held, "traffic": traffic.bytes}))
    if rank == size - 1:  # whose tokens of 15 are fewer
        (folder / f"tokens-{size}.json").write_text(json.dumps([[*seen], [*few]]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensor")
    found = {1: {"learned": learn(run_of(PretrainRun, shape=CUTTABLE))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_sharded, "CONFIG", replace(CONFIG, seq_len=15))
        found[1]["uneven"] = learn(run_of(PretrainRun, shape=EVEN))
    learn(run_of(PretrainRun, folder / "moved", stop_at=2, shape=CUTTABLE))
    in_processes(learn_together, [4, 2], folder)
    for size in (4, 2):
        facts = json.loads((folder / f"facts-{size}.json").read_text())
        facts["tokens"], facts["few"] = json.loads((folder / f"tokens-{size}.json").read_text())
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
    moved = sum(counted[name] for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"))
    assert moved == pytest.approx(said["tables"] + said["sums"], rel=0.02)  # the rest are scalars
    assert counted["all_reduce"] < 0.02 * said["sums"]
    assert counted.get("allgather_base", 0) == said["weights"]
    assert counted.get("reduce_scatter_base", 0) == said["gradients"]
    assert 4 * runs[size]["held"] == pytest.approx(training_bytes(CUTTABLE, shards, 2), rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_of_the_residual_stream_and_the_norms_a_process_has_its_share_of_the_tokens(runs, size):
    assert runs[size]["tokens"] == [CONFIG.seq_len // 2] and runs[size]["few"] == [15 - (size - 1) * -(-15 // size)]


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_tokens_that_the_processes_do_not_divide_are_learned_from_alike(runs, size):
    assert largest_difference(runs[size]["uneven"], runs[1]["uneven"]) <= 1e-6


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_the_gains_of_norms_would_differ_were_their_gradients_not_summed(runs, size):
    assert largest_difference(runs[size]["unsummed"], runs[1]["learned"]) > 1e-5


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


WRITER = ModelConfig(256, 2, 8, 513, n_kv_heads=4, hidden_dim=768, max_seq_len=64)  # 513: no multiple of 2
PROMPTS = [[1, 5, 9, 2], [3], [7, 7, 400]]
WAYS = [Sampling(0.0), *[Sampling(1.0, top_k=40)] * 3]
FORMS = {2: ("halves",), 4: ("halves", "quarters", "rows", "hf")}  # of the files that so many processes read


def texts_of(model):
    """Ids of three prompts together: greedy, then drawn by three seeds."""
    return [list(generate_tokens(model, PROMPTS, 5, way, seed=seed)) for seed, way in enumerate(WAYS)]


def write_cut(folder, model, n, table_axis=1):
    """Meta's form of a model in n files; table_axis 0: the embedding is cut by the vocabulary, as in Llama 3."""
    save_model(folder, model)
    whole = torch.load(folder / "consolidated.00.pth", weights_only=True)
    for place in range(n):
        def piece(name, tensor, place=place):
            part = name.removesuffix(".weight").rpartition(".")[2]
            axis = table_axis if part == "tok_embeddings" else 1 if part in ("wo", "w2") else 0
            return tensor if tensor.dim() == 1 else tensor.chunk(n, axis)[place].clone()

        torch.save({name: piece(name, tensor) for name, tensor in whole.items()},
                   folder / f"consolidated.{place:02}.pth")


def resident(path):
    """Bytes of a mapped file that this process has in memory."""
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(1024 * int(re.search(r"Rss: +(\d+)", block)[1]) for block in blocks
               if block.split("\n")[0].endswith(str(path)))


def write_together(rank, size, folder):
    from torch.distributed.device_mesh import init_device_mesh

    mesh, found = init_device_mesh("cpu", (size,)), {}
    for form in FORMS[size]:
        model = use_kernels(read_cut(open_weights(folder / form), mesh, torch.float32), "torch")
        found[form] = texts_of(model)
        found[f"held {form}"] = local_bytes(model.parameters())
    found["read"] = [resident(folder / "halves" / f"consolidated.{place:02}.pth") for place in range(2)]
    (folder / f"written-{size}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """(folder with one model in four forms, its texts by one process)"""
    folder, even = tmp_path_factory.mktemp("cut"), replace(WRITER, vocab_size=512)
    model = model_of(WRITER)
    save_model(folder / "whole", model)
    convert(folder / "whole", folder / "hf", "hf")
    for name, n, axis in (("halves", 2, 1), ("quarters", 4, 1), ("rows", 2, 0)):
        write_cut(folder / name, model_of(even), n, axis)
    return folder, {"hf": texts_of(use_kernels(model, "torch")), **dict.fromkeys(
        ("halves", "quarters", "rows"), texts_of(use_kernels(model_of(even), "torch")))}


def assert_written_alike(folder, alone, size):
    in_processes(write_together, [size], folder)
    for rank in range(size):
        found = json.loads((folder / f"written-{size}-{rank}.json").read_text())
        for form in FORMS[size]:
            assert found[form] == alone[form], (form, rank)
            assert found[f"held {form}"] <= 4 * WRITER.n_parameters() / size * 1.02  # norms are whole
        yield found


@pytest.mark.long
def test_two_processes_write_the_ids_of_one_and_each_reads_the_file_of_its_part(writers):
    for rank, found in enumerate(assert_written_alike(*writers, 2)):
        size = (writers[0] / "halves" / f"consolidated.{rank:02}.pth").stat().st_size
        assert found["read"][rank] > 0.9 * size and found["read"][1 - rank] < 0.15 * size


@pytest.mark.long
def test_four_processes_write_the_ids_of_one_from_files_of_any_number(writers):
    assert len(list(assert_written_alike(*writers, 4))) == 4


@pytest.mark.parametrize(("started", "words", "told"), [
    (None, "", "--tensor-parallel 2 wants 2 processes and has 1: start them by `torchrun --nproc-per-node 2"),
    (3, "", "--tensor-parallel 2 wants 2 processes and has 3"),
    (2, "--load-4bit", "cuts plain weights alone, without --load-4bit: `merge` an adapter first"),
    (2, "--adapter there", "cuts plain weights alone, without --adapter"),
    (2, "--kernels cpu", "--kernels cpu cannot multiply matrices that are cut: use torch or auto")])
def test_what_cannot_be_written_together_is_told_in_one_line_before_any_work(started, words, told, monkeypatch, capsys):
    if started:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", str(started))
    assert main(["generate", "--model", "nowhere", "--tensor-parallel", "2", *words.split()]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
