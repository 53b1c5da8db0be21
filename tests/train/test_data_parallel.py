"""Laws of data parallel training: two processes end where one does, and take up each other's checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mutants import Mutant

from minillama.checkpoint import load_model
from minillama.train import data_parallel
from minillama.train.data_parallel import (
    is_main_process,
    learner_of,
    mean,
    process_group,
    rank_and_size,
    shard,
)

ROOT = Path(__file__).parents[2]


def test_alone_there_is_no_group_and_nothing_changes():
    model = torch.nn.Linear(2, 2)
    with process_group():
        assert rank_and_size() == (0, 1) and is_main_process() and learner_of(model) is model
        assert list(shard([1, 2, 3], model)) == [1, 2, 3] and mean(torch.tensor(3.0)) == 3


@pytest.mark.parametrize(("device", "backend", "gpu"), [("cpu", "gloo", []), ("cuda", "cpu:gloo,cuda:nccl", [3])])
def test_torchruns_processes_are_one_group_that_ends_with_the_block(monkeypatch, device, backend, gpu):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_RANK", "3")
    done, devices = [], []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(data_parallel.dist, "init_process_group", done.append)
    monkeypatch.setattr(data_parallel.dist, "destroy_process_group", lambda: done.append("ended"))
    with pytest.raises(KeyError), process_group(device):
        assert done == [backend] and devices == gpu
        raise KeyError
    assert done == [backend, "ended"]


@pytest.mark.parametrize(("available", "begun", "wanted"), [(True, True, (1, 3)), (True, False, (0, 1)),
                                                            (False, True, (0, 1))])
def test_rank_and_size_are_the_groups_where_there_is_one(monkeypatch, available, begun, wanted):
    for name, value in (("is_available", available), ("is_initialized", begun), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(data_parallel.dist, name, lambda value=value: value)
    assert rank_and_size() == wanted and is_main_process() is (wanted[0] == 0)


def test_a_mean_is_the_sum_over_all_by_their_number_and_leaves_what_was_given(monkeypatch):
    given = torch.tensor([3.0, 5.0])
    monkeypatch.setattr(data_parallel, "rank_and_size", lambda: (1, 4))
    monkeypatch.setattr(data_parallel.dist, "all_reduce", lambda value: value.add_(torch.tensor([9.0, 7.0])))
    assert mean(given).tolist() == [3.0, 3.0] and given.tolist() == [3.0, 5.0]


def test_only_a_group_waits_and_wraps_its_learner(monkeypatch):
    met, model = [], torch.nn.Linear(1, 1)
    monkeypatch.setattr(data_parallel.dist, "barrier", lambda: met.append(1))
    monkeypatch.setattr(data_parallel, "DistributedDataParallel", lambda model: [model])
    for size, wrapped in ((1, model), (2, [model])):
        monkeypatch.setattr(data_parallel, "rank_and_size", lambda size=size: (0, size))
        data_parallel.wait_for_all()
        assert len(met) == size - 1 and learner_of(model) == wrapped


class Learner:
    def __init__(self):
        self.said = []

    def no_sync(self):
        from contextlib import contextmanager

        @contextmanager
        def context():
            self.said.append("apart")
            yield
            self.said.append("done")
        return context()


def test_each_process_gets_as_many_batches_and_gradients_meet_at_its_last(monkeypatch):
    shares = []
    for rank in range(3):
        monkeypatch.setattr(data_parallel, "rank_and_size", lambda rank=rank: (rank, 3))
        learner = Learner()
        shares.append(list(shard(list(range(9)), learner)))
        assert learner.said == ["apart", "done"] * 2
    assert sorted(sum(shares, [])) == list(range(9)) and {len(part) for part in shares} == {3}


def test_a_step_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(data_parallel, "rank_and_size", lambda: (0, 2))
    with pytest.raises(ValueError, match="3 batches cannot be shared by 2 processes: make grad_accum"):
        list(shard([1, 2, 3], Learner()))


BREAK_OFF = """if True:
    import sys
    from minillama.cli.command_line import main
    from minillama.train.training_run import TrainingRun
    save = TrainingRun.save
    def save_and_break_off(self):
        save(self)
        if self.step == 2:
            sys.exit("broken off")
    TrainingRun.save = save_and_break_off
    main(sys.argv[1:])
"""


def pretrain(folder, tokenizer, launcher, *more, ends_well=True):
    """Five steps of four batches -> all weights, or None. Adam divides by sqrt(v) + eps: with eps = 1e-8 the rounding
    of a gradient near 0 would become a step of up to the whole rate; with 1e-5 it stays below 1e-3 of that."""
    words = ["pretrain", "--text", str(ROOT / "README.md"), str(ROOT / "minillama"), "--max-lr", "1e-3",
             "--eps", "1e-5",
             "--tokenizer", str(tokenizer), "--out", str(folder), "--steps", "5", "--warmup-steps", "1", "--seq-len",
             "32", "--batch-size", "2", "--grad-accumulation", "4", "--checkpoint-every", "2", "--eval-windows", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *words, *more], env=environment, capture_output=True, text=True,
                          cwd=ROOT, timeout=300)
    assert (done.returncode == 0) is ends_well, done.stderr[-3000:]
    assert done.stderr.count(": trained; try") == ends_well, "one of all processes says so"
    return dict(load_model(folder)[0].named_parameters()) if ends_well else None


@pytest.mark.long
def test_two_processes_end_where_one_does_and_take_up_its_broken_run(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    from minillama.cli.command_line import main

    tokenizer, alone = tmp_path / "t.model", ["-m", "minillama"]
    both = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minillama"]
    assert main(["tokenizer", "train", "--text", str(ROOT / "README.md"), "--vocab-size", "400", "--out",
                 str(tokenizer)]) == 0
    one = pretrain(tmp_path / "one", tokenizer, alone)
    two = pretrain(tmp_path / "two", tokenizer, both)
    pretrain(tmp_path / "broken", tokenizer, ["-c", BREAK_OFF], ends_well=False)
    assert torch.load(tmp_path / "broken" / "training_state.pt", weights_only=True)["step"] == 2
    mended = pretrain(tmp_path / "broken", tokenizer, both, "--resume")
    for name, weight in one.items():
        assert (weight - two[name]).abs().max() <= 1e-6, name
        assert (weight - mended[name]).abs().max() <= 1e-6, name
    rows = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
            for name in ("one", "two", "broken")]
    assert [row["step"] for row in rows[0]] == [0, 1, 2, 3, 4, 5, 5]
    for other in rows[1:]:  # what was measured is the whole step's, not one process's share of it
        assert [row["step"] for row in other] == [row["step"] for row in rows[0]]
        for name in ("loss", "grad_norm", "held_out_loss"):
            assert [row.get(name) for row in other if name in row] == pytest.approx(
                [row[name] for row in rows[0] if name in row], rel=1e-5)


SHARDED = """if True:
    import copy, torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn import functional as F
    from minillama.config import ModelConfig
    from minillama.train.optimizer import AdamW, clip_gradients
    from minillama.transformer import Transformer

    dist.init_process_group("gloo")
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    torch.manual_seed(0)
    whole = Transformer(ModelConfig(24, 2, 2, 41, n_kv_heads=1, max_seq_len=32))
    sharded = copy.deepcopy(whole)
    for part in (*sharded.layers, sharded):
        fully_shard(part, mesh=mesh)
    held = sum(p.to_local().numel() for p in sharded.parameters())
    assert held < 0.6 * sum(p.numel() for p in whole.parameters()), "each process holds about half"
    optimizers = [AdamW(model.parameters(), 1e-3, eps=1e-5) for model in (whole, sharded)]
    for step in range(5):
        ids = torch.randint(41, (4, 17), generator=torch.Generator().manual_seed(step))
        for model, optimizer, rows in ((whole, optimizers[0], ids), (sharded, optimizers[1], ids[2 * rank:][:2])):
            F.cross_entropy(model(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten()).backward()
            clip_gradients(optimizer.parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad()
    off = max((p.full_tensor() - q).abs().max().item() for p, q in zip(sharded.parameters(), whole.parameters()))
    assert off <= 1e-6, off
    dist.destroy_process_group()
    if rank == 0:
        print("equal")
"""


@pytest.mark.long
def test_a_sharded_model_learns_what_a_whole_one_does(tmp_path):
    """FSDP2 on gloo: our model, optimizer and clipping, five steps, every weight within 1e-6."""
    pytest.importorskip("torch.distributed.fsdp", reason="this PyTorch has no FSDP")
    if not hasattr(torch.distributed.fsdp, "fully_shard") or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no fully_shard, or no gloo")
    (tmp_path / "sharded.py").write_text(SHARDED)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           tmp_path / "sharded.py"], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr[-3000:]


def shares_are_fair():
    with pytest.MonkeyPatch.context() as monkeypatch:
        test_each_process_gets_as_many_batches_and_gradients_meet_at_its_last(monkeypatch)


MUTANTS = [Mutant(data_parallel.__name__, "batches[rank::size]", "batches[rank:]", shares_are_fair)]
