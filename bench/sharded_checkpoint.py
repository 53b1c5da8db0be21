"""Checkpoints in shards: seconds that training stands still for one, written behind training and waited for.

Two processes on this machine hold a model of 63 million weights (`--shard`), 0.76 GB with AdamW's averages. "waits" is
begin and finish at once. Also how long a step takes while one is written, and while none is.

    torchrun --nproc-per-node 2 bench/sharded_checkpoint.py FOLDER
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from minillama.config import ModelConfig  # noqa: E402
from minillama.train import data_parallel  # noqa: E402
from minillama.train.data import Tokens  # noqa: E402
from minillama.train.pretrain import PretrainConfig  # noqa: E402
from minillama.train.sharded import ShardedPretrain  # noqa: E402
from minillama.transformer import Transformer  # noqa: E402

SHAPE = ModelConfig(768, 8, 12, 4096, max_seq_len=64)
CONFIG = PretrainConfig(steps=1000, warmup_steps=1, batch_size=1, grad_accumulation=2, seq_len=32, eval_windows=1)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder, rounds=5):
    """{what: seconds, one for each round}, of a process."""
    tokens = Tokens(np.random.default_rng(0).integers(0, SHAPE.vocab_size, 4096), SHAPE.vocab_size)
    run = ShardedPretrain(Transformer(SHAPE), tokens, tokens, CONFIG, folder)
    found = {"waits": [], "goes on": [], "a step": [], "a step while one is written": [], "until it counts": []}
    run.advance()
    for _ in range(rounds):
        found["a step"].append(seconds(run.advance))
        found["waits"].append(seconds(lambda: (run.save(), run.finish_checkpoint())))
        run.advance()
        begun = time.perf_counter()
        found["goes on"].append(seconds(run.save))
        found["a step while one is written"].append(seconds(run.advance))
        while run.writing:
            run.advance()
        found["until it counts"].append(time.perf_counter() - begun)
    return found


def main(folder):
    with data_parallel.process_group():
        found = measure(Path(folder))
        if data_parallel.is_main_process():
            print(f"{SHAPE.n_parameters() / 1e6:.1f} M parameters")
            for what, values in found.items():
                print(f"{what:<28} {statistics.median(values):7.3f} s ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main(sys.argv[1])
