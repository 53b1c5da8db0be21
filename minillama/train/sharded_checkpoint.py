"""The tensors of a sharded run on disk, in the form of `torch.distributed.checkpoint`.

`OUT/shards-STEP/` holds a file for each process, with its pieces of all tensors, and `.metadata`, which says where
each piece lies. So every process writes and reads a part only, and another number of processes can read it: each
takes what falls into its own pieces. PyTorch reads `.metadata` by pickle, which can run what is in it: its SHA-256
stands in `SUM_FILE` and finds damage, but no intent. Resume runs of your own.
"""

import hashlib
import re
import shutil
from pathlib import Path

import torch

from minillama.quant.nf4 import NF4Linear
from minillama.system.files import atomic_write
from minillama.train import data_parallel
from minillama.train.resume import damaged

FOLDER = re.compile(r"shards-\d{1,10}")
SUM_FILE = "metadata.sha256"


def begin_shards(folder, step, tensors, keep="", group=None):
    """Copy {name: tensor or DTensor} and begin to write the copies behind training, by all processes together -> (the
    name of the new folder within `folder`, what `finish_shards` takes). The tensors may change at once. What killed
    runs left is removed first, but not the folder `keep`. group: for the writers' own messages (`writers_group`)."""
    from torch.distributed import checkpoint  # here, for none but sharded runs need it loaded

    name = f"shards-{step}"
    if data_parallel.is_main_process():
        remove_shards(folder, keep)
    data_parallel.wait_for_all()
    return name, checkpoint.async_save(tensors, checkpoint_id=Path(folder) / name, process_group=group)


def writers_group():
    """A group of all processes for those who write checkpoints. Messages of one group are told apart by their order
    alone, which must be that of every process: those of a thread would fall among training's at any place. It is gloo
    on GPUs too: what is sent are plans and sums, from main memory."""
    return torch.distributed.new_group(backend="gloo")


def finish_shards(path, writing):
    """Wait until all processes have written the set of shards at `path`; then it is whole. OSError where one could
    not."""
    from torch.distributed import checkpoint

    try:
        writing.result()
    except checkpoint.api.CheckpointException as error:  # is no Exception: it gathers those of all processes
        raise OSError(f"{path} could not be written ({_first_of(error)}): is the disk full? The checkpoint before it "
                      "stays; make room, and --resume") from None  # PyTorch's writer hides the system's own words
    if data_parallel.is_main_process():
        with atomic_write(path / SUM_FILE, "w") as file:
            file.write(_sum_of(path))


def read_shards(path, tensors):
    """Fill {name: tensor or DTensor} in place, each process its pieces. ValueError for what is damaged."""
    from torch.distributed import checkpoint

    path = Path(path)
    if not FOLDER.fullmatch(path.name) or not (path / SUM_FILE).is_file():
        raise damaged(path, "it holds no whole set of shards")
    if (path / SUM_FILE).read_text() != _sum_of(path):
        raise damaged(path, f".metadata is not what {SUM_FILE} says")
    try:
        checkpoint.load(tensors, checkpoint_id=path)
    except checkpoint.api.CheckpointException as error:
        raise damaged(path, _first_of(error)) from None


def remove_shards(folder, keep=""):
    """Remove all sets of shards in `folder` but the one called `keep`."""
    for path in Path(folder).iterdir():
        if FOLDER.fullmatch(path.name) and path.name != keep and not path.is_symlink():
            shutil.rmtree(path)


def cut_like(whole, piece):
    """This process's piece of a tensor that every process can read, cut as `piece` is; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    whole = whole.to(piece.to_local().device)
    return distribute_tensor(whole, piece.device_mesh, piece.placements, src_data_rank=None)


def unshard_trained(model):
    """Put what was trained together in every process, in place: an adapter is small, and its file has it whole."""
    for name, weight in list(model.named_parameters()):
        if weight.requires_grad:
            module, _, parameter = name.rpartition(".")
            setattr(model.get_submodule(module), parameter, torch.nn.Parameter(weight.full_tensor()))
    for layer in [layer for layer in model.modules() if isinstance(layer, NF4Linear)][:1]:
        layer.codes = torch.nn.Parameter(layer.codes.full_tensor(), requires_grad=False)  # its file tells them by a sum


def take_part_in_saving(model):
    """While the main process saves a model whose weights are shared out (`sharded`), lend it this process's pieces."""
    for weight in model.parameters():
        if hasattr(weight, "full_tensor") and weight.requires_grad:
            weight.full_tensor()


def _sum_of(path):
    return hashlib.sha256((path / ".metadata").read_bytes()).hexdigest() if (path / ".metadata").is_file() else "none"


def _first_of(error):
    """What the first process that failed says, in one line."""
    rank, (wrong, _) = min(error.failures.items())
    return f"process {rank}: {' '.join(str(wrong).split())[:200]}"
