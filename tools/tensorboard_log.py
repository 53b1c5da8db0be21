"""Metrics to TensorBoard beside the JSON lines: `run.py pretrain ... --tensorboard DIR`, and sft, reward, ppo likewise.

Each number that a run records becomes a point of the curve of its name, over the run's own count (steps or iterations).
Needs the extra `tensorboard`; `tensorboard --logdir DIR` shows the curves.
"""

import os
import sys

import ppo_like

from minillama.cli.command_line import main as minillama
from minillama.system.terminal import explain, tell
from minillama.train.resumable import ResumableRun

FLAG = "--tensorboard"
COMMANDS = ("pretrain", "sft", "reward", "ppo")


def take_folder(words):
    """(the folder after --tensorboard, the other words)."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(FLAG + "=") else [word])]
    at = words.index(FLAG)
    if words[0] not in COMMANDS:
        raise ValueError(f"{words[0]} records no metrics: {FLAG} goes with one of {', '.join(COMMANDS)}")
    if at + 1 == len(words) or words[at + 1].startswith("--"):
        raise ValueError(f"{FLAG} names no folder: give one for the curves")
    return words[at + 1], words[:at] + words[at + 2:]


def open_writer(folder):
    """torch's writer of event files into the folder; ValueError where the extra is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"{FLAG} needs the extra `tensorboard` ({explain(error)}): "
                         "pip install 'minillama[tensorboard]'") from None
    return SummaryWriter(folder)


def add_row(writer, unit, row):
    """A row of metrics as points at its count."""
    for name, value in row.items():
        if name != unit:
            writer.add_scalar(name, value, row[unit])
    writer.flush()


def record_into(writer):
    """`ResumableRun.record` with the writer beside the file -> the method as it was."""
    plain = ResumableRun.record

    def record(run, row):
        plain(run, row)
        if run.is_main:
            add_row(writer, run.unit, row)

    ResumableRun.record = record
    return plain


def main(words):
    """Run `minillama` with the words, its metrics in TensorBoard's form too; the exit code is its own."""
    try:
        folder, words = take_folder(words)
        writer = open_writer(folder) if os.environ.get("RANK", "0") == "0" else None  # of several processes one writes
    except (ValueError, OSError) as error:
        tell(f"error: {explain(error)}")
        return 2
    plain = record_into(writer)
    try:
        like = any(word.split("=")[0] == "--like" for word in words)
        return ppo_like.main(words[1:]) if like else minillama(words)
    finally:
        ResumableRun.record = plain
        if writer:
            writer.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
