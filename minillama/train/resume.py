"""What lets a run be broken off and taken up: its saved state, its metrics file, random numbers."""

import contextlib
import json
from pathlib import Path

import torch

from minillama.checkpoint.pth import read_plain
from minillama.files import atomic_write


def load_training_state(path):
    """A checkpoint of `pretrain` as a dict of plain values and tensors, which stay in the file until they are read;
    nothing in the file is executed."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no {path}: nothing to resume, start with resume=False")
    try:
        return read_plain(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}): begin anew in another --out") from None


def truncate_metrics(path, step):
    """Drop what was recorded after `step` (a later line may be half written) -> the lines that stay,
    parsed."""
    kept = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", newline="") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                if json.loads(line)["step"] > step:
                    break
                kept.append(line)
    history = [json.loads(line) for line in kept]
    if sum("loss" in values for values in history) != step:
        raise ValueError(f"{path} does not hold the {step} steps that the checkpoint beside it has done: "
                         "put the file back, or begin anew in another folder")
    with atomic_write(path, "w") as file:
        file.writelines(kept)
    return history


@contextlib.contextmanager
def own_random_state(seed, device):
    """Inside, torch's random numbers follow `seed`; the caller's own are as before afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def random_state(device):
    """The states of torch's generators, CPU and device, as byte tensors."""
    kind = torch.device(device).type
    own = {"cuda": lambda: torch.cuda.get_rng_state(device), "mps": torch.mps.get_rng_state}.get(kind)
    return {"cpu": torch.get_rng_state(), kind: own() if own else torch.get_rng_state()}


def set_random_state(saved, device):
    """Put back what `random_state` gave."""
    torch.set_rng_state(saved["cpu"])
    if "cuda" in saved:
        torch.cuda.set_rng_state(saved["cuda"], device)
    if "mps" in saved:
        torch.mps.set_rng_state(saved["mps"])
