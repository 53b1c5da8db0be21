"""Training of byte-level BPE beside rustbpe and Hugging Face's tokenizers, in one thread, in seconds of the processor.

The text is that of `bench bpe`, a tenth of each kind and all. Each figure comes from a fresh process, and is of the
work alone, reading the file included, without imports. The peers read the file line by line, ours at once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _rounds
import bpe

TRAINERS = {"rustbpe": bpe.train_rustbpe, "tokenizers": bpe.train_tokenizers}


def train_ours(path, vocab_size, threads):
    from minillama.tokenizer.byte_bpe_training import train_byte_bpe

    return lambda: train_byte_bpe(path, vocab_size, "gpt4", specials=())


def work(name, path, vocab_size):
    """What a child does: prints the seconds as JSON."""
    train = TRAINERS.get(name, train_ours)(Path(path), int(vocab_size), 1)
    start = time.process_time()
    train()
    print(json.dumps(time.process_time() - start))


def in_fresh_process(name, path, vocab_size):
    """Run `work` in a new interpreter and return what it measured."""
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, __file__, "--work", name, str(path), str(vocab_size)], capture_output=True,
                          text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed, nothing was timed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    peers = [name for name in TRAINERS if _rounds.has_peer(name)]
    if not peers:
        raise SystemExit("without rustbpe and tokenizers there is nothing to compare with")
    size, vocab_size, rows = (300_000, 800, []) if chosen.small else (10_000_000, 8000, [])
    with tempfile.TemporaryDirectory() as folder:
        kinds, path = bpe.texts(size), Path(folder, "corpus")
        for share in (10, 1):
            parts = [data[: len(data) // share].decode("utf-8", "ignore") for data in kinds.values()]
            path.write_text("\n".join(parts), encoding="utf-8")
            turns = {name: (lambda name=name: in_fresh_process(name, path, vocab_size)) for name in ("ours", *peers)}
            results = _rounds.alternate(turns, chosen.rounds, measure=lambda turn: turn())
            rows += [_rounds.Row(f"training byte-level BPE, against {bpe.PEERS[peer]}",
                                 f"{path.stat().st_size / 1e6:.1f} MB, {vocab_size} pieces", "s", results["ours"],
                                 results[peer], more_is_better=False) for peer in peers]
    _rounds.show(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
