"""Data parallel training by PyTorch's own engine: `torchrun --nproc-per-node 2 -m minillama pretrain ...`.

Every process draws the step's batches, a pure function of seed and step, and learns its share of them; while
gradients are computed, DistributedDataParallel (arXiv 2006.15704) averages them over the processes. The settings
describe the whole step, so a run means the same on any number of processes, up to the order of sums, and a checkpoint
may be resumed on another number. Every process holds the whole model and optimizer: this saves time, not memory.
"""

import contextlib
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def process_group(device="cpu"):
    """Within it, the processes that torchrun started are one group (gloo, or NCCL on GPUs); alone, nothing happens."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # what "cuda" means from now on
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")  # what is asked of all is no GPU's tensor
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_size():
    """(number of this process, number of processes): (0, 1) outside a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_main_process():
    """Whether this process writes files and shows progress: one of each group does."""
    return rank_and_size()[0] == 0


def learner_of(model):
    """What to call in training: the model itself, or in a group its wrapper, which averages gradients."""
    return DistributedDataParallel(model) if rank_and_size()[1] > 1 else model


def shard(batches, learner):
    """Yield this process's batches of a step; each process has equally many. The last one averages the gradients."""
    rank, size = getattr(learner, "place", None) or rank_and_size()
    if len(batches) % size:
        raise ValueError(f"a step of {len(batches)} batches cannot be shared by {size} processes: make "
                         f"grad_accumulation a multiple of {size}")
    mine = batches[rank::size]
    for i, batch in enumerate(mine):
        apart = hasattr(learner, "no_sync") and i + 1 < len(mine)
        with learner.no_sync() if apart else contextlib.nullcontext():  # held while the caller goes backward
            yield batch


def mean(value):
    """The mean of a tensor over all processes."""
    total, size = value.clone(), rank_and_size()[1]
    if size > 1:
        dist.all_reduce(total)
    return total / size


def wait_for_all():
    """Go on when every process has come here."""
    if rank_and_size()[1] > 1:
        dist.barrier()
