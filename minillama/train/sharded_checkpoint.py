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

from minillama.system.files import atomic_write
from minillama.train import data_parallel
from minillama.train.resume import damaged

FOLDER = re.compile(r"shards-\d{1,10}")
SUM_FILE = "metadata.sha256"


def write_shards(folder, step, tensors, keep=""):
    """Write {name: tensor or DTensor}, by all processes together -> the name of the new folder within `folder`. What
    killed runs left is removed first, but not the folder `keep`."""
    from torch.distributed import checkpoint  # here, for none but sharded runs need it loaded

    name = f"shards-{step}"
    if data_parallel.is_main_process():
        remove_shards(folder, keep)
    data_parallel.wait_for_all()
    path = Path(folder) / name
    try:
        checkpoint.save(tensors, checkpoint_id=path)
    except checkpoint.api.CheckpointException as error:  # is no Exception: it gathers those of all processes
        raise OSError(f"{path} could not be written ({_first_of(error)}): is the disk full? The checkpoint before it "
                      "stays; make room, and --resume") from None  # PyTorch's writer hides the system's own words
    if data_parallel.is_main_process():
        with atomic_write(path / SUM_FILE, "w") as file:
            file.write(_sum_of(path))
    return name


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
