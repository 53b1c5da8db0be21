"""Paged AdamW is AdamW bit for bit under every cap, keeps to its cap, and leaves no file behind."""

import mmap
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from checkpoints import in_a_folder
from mutants import Mutant
from test_optimizer import give_gradients, torch_adamw
from test_sft import CONFIG, a_model, tuned, with_adapter
from tiny_run import Killed, one_thread, same_weights, without_times

from minillama.train import paged_adamw
from minillama.train.optimizer import AdamW
from minillama.train.paged_adamw import LEAST, PagedAdamW

# at the least cap the first is cut into pieces, whatever the page; then 1, a prime, a multiple of the pieces' stride
SHAPES = [(101, LEAST // 500), (1,), (13,), (3, 1, 2), (64, 2)]
pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def copies(n, dtype=torch.float32):
    torch.manual_seed(0)
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    return [[torch.nn.Parameter(value.clone()) for value in values] for _ in range(n)]


@pytest.mark.parametrize("cap", [LEAST, LEAST + 1, 3 * LEAST + 12345, 2**26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_thirty_steps_equal_adamw_and_torch_bit_for_bit(cap, dtype, tmp_path):
    ours, plain, theirs = copies(3, dtype)
    settings = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = [PagedAdamW(ours, 1e-2, **settings, resident_bytes=cap, folder=tmp_path),
                  AdamW(plain, 1e-2, **settings)]
    if dtype != torch.bfloat16:  # torch keeps no fp32 copy of short weights
        optimizers.append(torch_adamw(theirs, 1e-2, **settings))
    for step in range(30):
        for optimizer in optimizers[:2]:
            optimizer.lr = 1e-2 / (1 + step)
        for group in getattr(optimizers[-1], "param_groups", ()):
            group["lr"] = 1e-2 / (1 + step)
        give_gradients(ours, plain, theirs, scale=10.0 ** (step % 5 - 3))
        if step % 4 == 1:
            ours[2].grad = plain[2].grad = theirs[2].grad = None
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, ours, plain))
    assert dtype == torch.bfloat16 or all(map(torch.equal, ours, theirs))
    states = [optimizer.state_dict() for optimizer in optimizers[:2]]
    assert states[0]["steps"] == states[1]["steps"] == [30, 30, 22, 30, 30]
    assert all(torch.equal(a, b) for key in ("m", "v") for a, b in zip(states[0][key], states[1][key], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_kind_takes_up_what_the_other_saved(dtype, tmp_path):
    for first, second in ((AdamW, partial(PagedAdamW, resident_bytes=LEAST)),
                          (partial(PagedAdamW, resident_bytes=LEAST), AdamW)):
        whole, begun, taken_up = copies(3, dtype)
        for parameters, optimizer in ((whole, AdamW(whole, 1e-2)), (begun, first(begun, 1e-2))):
            torch.manual_seed(1)
            for _ in range(3):
                give_gradients(parameters)
                optimizer.step()
            if optimizer.parameters[0] is whole[0]:
                unbroken = optimizer
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        with torch.no_grad():
            for new, old in zip(taken_up, begun, strict=True):
                new.copy_(old)
        resumed = second(taken_up, 1e-2)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True, mmap=True))
        for _ in range(3):
            give_gradients(whole, taken_up)
            unbroken.step()
            resumed.step()
        assert all(map(torch.equal, whole, taken_up))


def test_no_more_than_the_cap_is_mapped_at_any_moment(tmp_path):
    """Whole pages, as the system counts: each mapping begins and ends on one."""
    live, most = [0], [0]
    whole_pages = lambda length: -(-length // paged_adamw.PAGE) * paged_adamw.PAGE  # noqa: E731

    def counted(file, length, offset=0, real=mmap.mmap):
        block = real(file, length, offset=offset)
        live[0] += whole_pages(length)
        most[0] = max(most[0], live[0])
        weakref.finalize(block, lambda: live.__setitem__(0, live[0] - whole_pages(length)))
        return block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmap, "mmap", counted)
        for cap in (LEAST, 2 * LEAST + 777):
            for dtype in (torch.float32, torch.bfloat16):
                parameters, = copies(1, dtype)
                optimizer = PagedAdamW(parameters, resident_bytes=cap, folder=tmp_path)
                give_gradients(parameters)
                optimizer.step()
                assert 0.5 * cap < most[0] <= cap and live[0] == 0
                most[0] = 0


MEMORY = r"""
import re, sys, torch
from minillama.train.optimizer import AdamW
from minillama.train.paged_adamw import PagedAdamW
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.randn(1000, 8000))
p.grad = torch.randn(1000, 8000)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
small = torch.nn.Parameter(torch.ones(1))
small.grad = torch.ones(1)
AdamW([small]).step()
open("/proc/self/clear_refs", "w").write("5")  # the highest so far is forgotten
before = peak()
optimizer = AdamW([p]) if sys.argv[1] == "plain" else PagedAdamW([p], resident_bytes=2**21, folder=sys.argv[2])
for _ in range(2):
    optimizer.step()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory by /proc")
def test_the_process_grows_by_the_cap_and_not_by_the_state(tmp_path):
    """64 MB of state: AdamW's process grows by that and by the denominator's 32; the paged one by its cap of 2 MiB, the
    denominator's half of it, and what an allocator and a thread pool take (5 MB)."""
    grown = {}
    for kind in ("plain", "paged"):
        done = subprocess.run([sys.executable, "-c", MEMORY, kind, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[kind] = int(done.stdout)
    assert grown["plain"] > 64e6 and grown["paged"] < 8e6, grown


WAIT = """
import sys, torch
from minillama.train.paged_adamw import PagedAdamW
p = torch.nn.Parameter(torch.ones(10, 10))
optimizer = PagedAdamW([p], folder=sys.argv[1])
p.grad = torch.ones(10, 10)
optimizer.step()
print("stepped", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_no_file(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WAIT, tmp_path / "new"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "stepped\n"
    process.kill()
    process.communicate()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("make", [a_model, partial(with_adapter, "nf4")])
def test_a_run_with_it_ends_as_without_it_and_as_one_that_was_broken_off(make, tmp_path):
    paged = replace(CONFIG, paged_optimizer=1)
    whole, history = tuned(CONFIG, model=make())
    same, same_history = tuned(paged, model=make(), folder=tmp_path / "whole")
    assert same_weights(same, whole) and without_times(same_history) == without_times(history)
    model, left = make(), [4]

    def count(part, _):
        left[0] -= part.training
        if left[0] < 0:
            raise Killed

    model.register_forward_pre_hook(count)
    with pytest.raises(Killed):
        tuned(paged, model=model, folder=tmp_path / "broken")
    model, resumed = tuned(paged, model=make(), folder=tmp_path / "broken", resume=True)
    assert same_weights(model, whole) and without_times(resumed) == without_times(history)
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["metrics.jsonl", "training_state.pt"]


def test_what_cannot_be_is_refused(tmp_path):
    p = torch.nn.Parameter(torch.ones(4, 6))
    with pytest.raises(ValueError, match="resident_bytes is 1000: allowed"):
        PagedAdamW([p], resident_bytes=1000)
    with pytest.raises(ValueError, match="not contiguous"):
        PagedAdamW([torch.nn.Parameter(torch.ones(4, 6).T)])
    with pytest.raises(ValueError, match="expected one or more"):
        PagedAdamW([])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is reserved by posix_fallocate")
def test_a_disk_without_room_is_told_at_the_start(tmp_path):
    """A hole in the file that cannot be filled would end the process by a signal in the middle of a step."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="80000000 bytes for the optimizer's state find no room"):
            PagedAdamW([torch.nn.Parameter(torch.zeros(1000, 10_000))], folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def steps_at(cap, dtype=torch.float32):
    return lambda: in_a_folder(lambda folder: test_thirty_steps_equal_adamw_and_torch_bit_for_bit(cap, dtype, folder))


MODULE = "minillama.train.paged_adamw"
mapped = partial(in_a_folder, test_no_more_than_the_cap_is_mapped_at_any_moment)
MUTANTS = [
    Mutant(MODULE, "state[:1], state[1:2])", "state[1:2], state[:1])", steps_at(LEAST)),
    Mutant(MODULE, "[section] + begin * dtype.itemsize", "[section]", steps_at(LEAST)),
    Mutant(MODULE, "[size + k * length for k in range(sections)]", "[size] * sections", steps_at(2**26)),
    Mutant(MODULE, "size += sections * length", "size += length", steps_at(2**26)),
    Mutant(MODULE, "own.copy_(exact)", "pass", steps_at(LEAST, torch.bfloat16)),
    Mutant(MODULE, "- 2 * PAGE", "", mapped),
    Mutant(MODULE, "self.resident_bytes // self.sections[i]", "self.resident_bytes // 2", mapped),
    Mutant(MODULE, "self._mapped(i, 2, begin, end).copy_(p.detach().view(-1)[begin:end])", "pass",
           steps_at(LEAST, torch.bfloat16)),
    Mutant("minillama.train.training_run", 'if getattr(config, "paged_optimizer", 0):', "if True:",
           partial(in_a_folder, lambda folder: tuned(CONFIG, folder=folder))),
]
