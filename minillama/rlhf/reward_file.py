"""A reward model as a folder: its body like any model, in Meta's form, and beside it the head that reads the score."""

import pickle
from pathlib import Path

import torch

from minillama.checkpoint import load_model, save_model
from minillama.checkpoint.convert import write_tokenizer
from minillama.files import atomic_write
from minillama.rlhf.reward_model import RewardModel

HEAD_FILE = "reward_head.pth"
PARTS = ("weight", "mean", "deviation")  # (1, D), and the two numbers of the normalisation


def save_reward(folder, model, tokenizer):
    """Write a `RewardModel` and the tokenizer it reads with; the head last: a folder that has it is whole."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_model(folder, model.body)
    write_tokenizer(Path(folder), tokenizer, as_json=False)
    values = model.head.weight.detach(), model.mean, model.deviation
    with atomic_write(Path(folder) / HEAD_FILE) as file:
        torch.save({name: value.cpu() for name, value in zip(PARTS, values, strict=True)}, file)


def load_reward(folder, device="cpu"):
    """(RewardModel in eval mode, frozen; tokenizer). ValueError for a folder that holds no reward model."""
    path = Path(folder) / HEAD_FILE
    if not path.exists():
        raise ValueError(f"{folder} holds no reward model ({HEAD_FILE} is missing): make one with `reward`")
    body, tokenizer = load_model(folder, device)
    try:
        head = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is damaged: make the reward model again") from error
    model, dim = RewardModel(body, body.config.dim).to(device), body.config.dim
    for name, own in zip(PARTS, (model.head.weight, model.mean, model.deviation), strict=True):
        value = head.get(name) if isinstance(head, dict) else None
        if not isinstance(value, torch.Tensor) or value.shape != own.shape or not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name!r} is not a finite tensor of shape {tuple(own.shape)}, which a body of "
                             f"width {dim} needs")
        own.data.copy_(value)
    return model.eval().requires_grad_(False), tokenizer
