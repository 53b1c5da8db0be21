"""Cleaning a corpus: seconds and peak memory; and what two small models learn from raw text with planted junk and from
the same text cleaned, in bits a character of clean text that neither has seen."""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _rounds
import torch

from lessons.cleaning import CleaningRules
from minillama.config import ModelConfig
from minillama.corpus import mixture
from minillama.tokenizer import train_bpe
from minillama.train.data import Batches, write_tokens
from minillama.train.pretrain import PretrainConfig, pretrain
from minillama.transformer import Transformer

sys.path.insert(0, str(_rounds.ROOT / "tools"))
from clean_corpus import Cleaning, clean_corpus  # noqa: E402

JUNK_SHARE = 0.4  # of the documents


def raw_text(seed, n):
    """(stories, the same with junk among them): menus, adverts, gibberish, and copies of a few of the stories."""
    rng, stories = random.Random(seed), [document.text for document in mixture(seed, n)]
    raw = []
    for text in stories:
        raw.append(text)
        while rng.random() < JUNK_SHARE:
            raw.append(rng.choice([
                " | ".join(f"Item {rng.randrange(10**6)}" for _ in range(12)),
                f"Buy {rng.randrange(10**6)} now! " * 15,
                " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(30)) + ".",
                stories[rng.randrange(10)].replace("the", "that", 1)]))
    return stories, raw


def speed(megabytes, workers):
    """Clean a file of so many megabytes of different words; a row."""
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20_000)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "raw.txt")
        with open(path, "w") as file:
            while file.tell() < megabytes * 1e6:
                for _ in range(1000):
                    file.write(" ".join(rng.choices(vocabulary, k=120)) + ".\n\n")
        command = [sys.executable, _rounds.ROOT / "tools" / "clean_corpus.py", "--text", path, "--out",
                   Path(folder, "out"), "--workers", str(workers)]
        start = time.perf_counter()
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(_rounds.ROOT)},
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)  # with its workers, which it has waited for
        if status:
            raise SystemExit(f"{command} failed: nothing was timed")
        seconds, megabytes = time.perf_counter() - start, path.stat().st_size / 1e6
    return (f"{megabytes:.0f} MB, {workers} workers: {seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU "
            f"time; the largest process {usage.ru_maxrss / 1e3:.0f} MB")


def held_out_bits(texts, held_out, seed, steps):
    """Bits a character that a small model needs for `held_out` once it has learned from `texts`."""
    tokenizer = train_bpe(held_out[: len(held_out) // 2], 400)
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(64, 2, 2, tokenizer.vocab_size, max_seq_len=128))
    with tempfile.TemporaryDirectory() as folder:
        parts = [write_tokens(Path(folder, name), part, tokenizer, progress=False)
                 for name, part in (("train.bin", texts), ("held_out.bin", held_out[len(held_out) // 2 :]))]
        config = PretrainConfig(steps=steps, batch_size=16, seq_len=128, seed=seed, max_lr=4e-3)
        pretrain(model, *parts, config, Path(folder, "run"))
        tokens_BT, targets_BT = Batches(parts[1], 64, 128, seed=0)(0)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(tokens_BT).flatten(0, 1), targets_BT.flatten())
    characters = len(tokenizer.decode(targets_BT.flatten().tolist()))
    return loss.item() * targets_BT.numel() / characters / torch.log(torch.tensor(2.0)).item()


def models(seeds, steps):
    """For each seed the bits a character behind the raw and behind the cleaned text."""
    for seed in seeds:
        _, raw = raw_text(seed, 2000)
        held_out = [document.text for document in mixture(seed, 300, "held-out")]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "raw.txt").write_text("\n\n".join(raw))
            clean_corpus([Path(folder, "raw.txt")], Path(folder, "out"), Cleaning(CleaningRules(min_words=8)))
            cleaned = [text for bucket in ("head", "middle")
                       for text in Path(folder, "out", "latin", f"{bucket}.txt").read_text().split("\n\n")]
        bits = [held_out_bits(texts, held_out, seed, steps) for texts in (raw, cleaned)]
        print(f"seed {seed}: {bits[0]:.3f} bits a character behind the raw text, {bits[1]:.3f} behind the cleaned one")


def main():
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--small", action="store_true", help="one megabyte, one seed, 20 steps")
    chosen = parser.parse_args()
    print(_rounds.machine())
    print(speed(1 if chosen.small else chosen.megabytes, chosen.workers))
    models(range(1 if chosen.small else 3), 20 if chosen.small else chosen.steps)


if __name__ == "__main__":
    main()
