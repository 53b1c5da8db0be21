"""Training of unigram models beside SentencePiece, in one thread, in seconds of the processor.

The text is that of `bench bpe`, a tenth of each kind and all. Each figure comes from a fresh process, and is of the
work alone, without imports.
"""

import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import _rounds
import bpe


def train_ours(path, vocab_size):
    from minillama.tokenizer import sentencepiece_training

    warnings.simplefilter("ignore")  # long lines are skipped, by SentencePiece as well
    return lambda: sentencepiece_training.train_sentencepiece(path, vocab_size, "unigram")


def train_sentencepiece(path, vocab_size):
    import sentencepiece

    return lambda: sentencepiece.SentencePieceTrainer.train(
        input=str(path), model_writer=io.BytesIO(), model_type="unigram", vocab_size=vocab_size, num_threads=1,
        character_coverage=0.99995, split_digits=True, allow_whitespace_only_pieces=True, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=3)


def work(name, path, vocab_size):
    """What a child does: prints the seconds as JSON."""
    train = globals()[f"train_{name}"](Path(path), int(vocab_size))
    start = time.process_time()
    train()
    print(json.dumps(time.process_time() - start))


def in_fresh_process(name, path, vocab_size):
    """Run `work` in a new interpreter and return what it measured."""
    done = subprocess.run([sys.executable, __file__, "--work", name, str(path), str(vocab_size)], capture_output=True,
                          text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed, nothing was timed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    chosen = _rounds.options(__doc__, argv)
    if not _rounds.has_peer("sentencepiece"):
        raise SystemExit("without sentencepiece there is nothing to compare with")
    size, vocab_size, rows = (300_000, 800, []) if chosen.small else (10_000_000, 8000, [])
    with tempfile.TemporaryDirectory() as folder:
        kinds, path = bpe.texts(size), Path(folder, "corpus")
        for share in (10, 1):
            path.write_bytes(b"\n".join(data[: len(data) // share] for data in kinds.values()))
            turns = {name: (lambda name=name: in_fresh_process(name, path, vocab_size))
                     for name in ("ours", "sentencepiece")}
            results = _rounds.alternate(turns, chosen.rounds, measure=lambda turn: turn())
            rows.append(_rounds.Row("training unigram, against sentencepiece",
                                    f"{path.stat().st_size / 1e6:.1f} MB, {vocab_size} pieces", "s", results["ours"],
                                    results["sentencepiece"], more_is_better=False))
    _rounds.show(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
