"""Functions of a test file run by N real processes, gloo on loopback: one fresh Python loads PyTorch and forks."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def in_processes(function, sizes, folder, limit=300):
    """Call function(rank, size, folder) in so many processes, for each of `sizes` one after another; AssertionError
    with what was said where one fails. Each finds the group made, and its tests beside it importable."""
    done = subprocess.run([sys.executable, __file__, function.__code__.co_filename, function.__name__, str(folder),
                           *map(str, sizes)], capture_output=True, text=True, timeout=limit, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                               "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "here"})
    assert done.returncode == 0, done.stderr[-3000:]


def writer_class():
    """PyTorch's class that writes shards; imported here, for it takes seconds, and other tests would wait too."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    return FileSystemWriter


def work(rank, function, size, folder, port):
    """One process: its group, then the function."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=size,
                            timeout=timedelta(seconds=60))
    function(rank, size, folder)
    dist.destroy_process_group()


def main(path, name, folder, *sizes):
    """What the fresh Python does."""
    import torch._dynamo  # noqa: F401  all four before the processes are forked: each would load them, for seconds
    import torch.distributed.checkpoint  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401
    import torch.distributed.tensor  # noqa: F401
    import torch.multiprocessing as processes

    rooms = sorted(room for room in Path(__file__).parent.iterdir() if room.is_dir())  # as conftest has it
    sys.path[:0] = map(str, [Path(path).parent, *rooms])
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for size in map(int, sizes):
        processes.start_processes(work, (getattr(module, name), size, Path(folder), f"{folder}/group-{size}"), size,
                                  start_method="fork")


if __name__ == "__main__":
    main(*sys.argv[1:])
