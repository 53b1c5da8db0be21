"""A reward model as a folder: its body like any model, in Meta's form, and beside it the head that reads the score."""

from pathlib import Path

import torch

from minillama.checkpoint import load_model
from minillama.checkpoint.convert import HEAD_FILE, save_with_tokenizer
from minillama.checkpoint.pth import read_pth
from minillama.rlhf.reward_model import RewardModel
from minillama.system.claim import require_finished
from minillama.system.files import atomic_write

PARTS = ("weight", "mean", "deviation")  # (1, D), and the two numbers of the normalisation


def save_reward(folder, model, tokenizer):
    """Write a `RewardModel` and the tokenizer it reads with; the head first: with its body the folder is whole."""
    (Path(folder) / "params.json").unlink(missing_ok=True)
    values = model.head.weight.detach(), model.mean, model.deviation
    with atomic_write(Path(folder) / HEAD_FILE) as file:
        torch.save({name: value.cpu() for name, value in zip(PARTS, values, strict=True)}, file)
    save_with_tokenizer(folder, model.body, tokenizer)


def load_reward(folder, device="cpu"):
    """(RewardModel in eval mode, frozen; tokenizer). ValueError for a folder that holds no reward model."""
    path = Path(folder) / HEAD_FILE
    require_finished(folder)
    if not path.exists():
        raise ValueError(f"{folder} holds no reward model ({HEAD_FILE} is missing): make one with `reward`")
    body, tokenizer = load_model(folder, device)
    head = read_pth(path)
    model, dim = RewardModel(body, body.config.dim).to(device), body.config.dim
    for name, own in zip(PARTS, (model.head.weight, model.mean, model.deviation), strict=True):
        value = head.get(name)
        if value is None or value.shape != own.shape or not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name!r} is not a finite tensor of shape {tuple(own.shape)}, which a body of "
                             f"width {dim} needs")
        own.data.copy_(value)
    return model.eval().requires_grad_(False), tokenizer
