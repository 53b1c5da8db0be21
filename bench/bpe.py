"""The tokenizer: training and encoding beside SentencePiece, Hugging Face's tokenizers, rustbpe and bpeasy.

The text is what this machine has: Python sources, package descriptions, translation catalogues. Each figure comes
from a fresh process; what is timed is the work alone, without imports and loading, but memory is the process's peak.
SentencePiece trains the same vocabulary, piece for piece; the others train byte-level BPE, which is less work.
Encoding: documents of 10 kB, one call each; "first pass" with nothing remembered, "again" the same documents. The
vocabulary is LLaMA's where MINILLAMA_WEIGHTS names a folder that has it, else one of our own. Byte-level encoding is
Llama 3's, beside tiktoken, where the package llama-models is installed.
"""

import functools
import gettext
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from pathlib import Path

import _rounds

GPT4_WORDS = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]|\s+(?!\S)|\s+")
PEERS = {"sentencepiece": "sentencepiece", "tokenizers": "HF tokenizers", "rustbpe": "rustbpe", "bpeasy": "bpeasy",
         "tiktoken": "tiktoken"}


# ---- text

def catalogue(path):
    """The translations in a .mo file, one a line."""
    with open(path, "rb") as file:
        entries = gettext.GNUTranslations(file)._catalog.items()
    return "\n".join(text for key, text in entries if key and isinstance(key, str) and text != key).encode()


def gather(paths, size, read=Path.read_bytes):
    """About `size` bytes of UTF-8 of these files, in an order that depends on their number only."""
    paths, parts = sorted(paths), []
    random.Random(0).shuffle(paths)
    for path in paths:
        try:
            parts.append(read(path))
        except (OSError, ValueError, UnicodeError, AttributeError):
            continue
        size -= len(parts[-1])
        if size < 0:
            break
    whole = b"\n".join(parts)[: sum(map(len, parts)) + min(size, 0)]
    return whole.decode("utf-8", "ignore").encode()  # some of the tools stop at a broken character


def texts(size):
    """{kind: bytes}: 60 % code, 20 % descriptions, 20 % other languages, or what there is of them."""
    site = Path(sysconfig.get_path("purelib"))
    catalogues = [*site.rglob("*.mo"), *Path("/usr/share").rglob("*.mo")]
    prose = [path for pattern in ("METADATA", "*.md", "*.rst", "*.txt") for path in site.rglob(pattern)]
    return {"code": gather([*site.rglob("*.py"), *Path(sysconfig.get_path("stdlib")).glob("*.py")], size * 6 // 10),
            "prose": gather(prose, size * 2 // 10), "languages": gather(catalogues, size * 2 // 10, catalogue)}


# ---- the work, in a process of its own: `python bench/bpe.py --work train ours FILE 8000 1`

def train_ours(path, vocab_size, threads):
    from minillama.tokenizer import train_bpe

    warnings.simplefilter("ignore")  # long lines are skipped, by SentencePiece as well
    return lambda: train_bpe(path, vocab_size, threads=threads)


def train_sentencepiece(path, vocab_size, threads):
    import sentencepiece

    return lambda: sentencepiece.SentencePieceTrainer.train(
        input=str(path), model_writer=io.BytesIO(), model_type="bpe", vocab_size=vocab_size, num_threads=threads,
        character_coverage=0.99995, split_digits=True, allow_whitespace_only_pieces=True, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=3)


def train_tokenizers(path, vocab_size, threads):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    return lambda: tokenizer.train([str(path)], trainer)


def train_rustbpe(path, vocab_size, threads):
    import rustbpe

    file = open(path, encoding="utf-8", errors="replace")
    return lambda: rustbpe.Tokenizer().train_from_iterator(file, vocab_size, pattern=GPT4_WORDS)


def train_bpeasy(path, vocab_size, threads):
    import bpeasy

    file = open(path, encoding="utf-8", errors="replace")
    return lambda: bpeasy.train_bpe(file, GPT4_WORDS, 128, vocab_size)


def encode_ours(model):
    from minillama.tokenizer import load_tokenizer

    return loaded(load_tokenizer(model))


def loaded(tokenizer):
    """Its `encode`, with the compiled core in place, which the first call makes."""
    tokenizer.encode("a")
    return tokenizer.encode


def encode_sentencepiece(model):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model)).encode


def encode_tokenizers(model):
    """The same vocabulary, its merges by score: left and right of every piece that are pieces too."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    from minillama.tokenizer import load_tokenizer

    pieces = load_tokenizer(model).pieces
    ids, merges = {piece.text: index for index, piece in enumerate(pieces)}, []
    for text, score, kind in pieces:
        parts = [(text[:cut], text[cut:]) for cut in range(1, len(text)) if kind == 1]
        merges += [(-score, ids[a], ids[b], (a, b)) for a, b in parts if a in ids and b in ids]
    model = models.BPE(ids, [pair for *_, pair in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def encode_bytes(model):
    """Ours, of a byte-level vocabulary."""
    from minillama.tokenizer import load_tokenizer

    return loaded(load_tokenizer(model))


def encode_tiktoken(model):
    import base64

    import tiktoken

    from minillama.tokenizer.byte_bpe import LLAMA3_WORDS

    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, model.read_bytes().splitlines())}
    return tiktoken.Encoding("llama3", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def measured(work):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def work(task, name, path, *numbers):
    """What a child does: prints {measure: number} as JSON."""
    if task == "train":
        import resource  # not on Windows

        took, _ = measured(globals()[f"train_{name}"](Path(path), *map(int, numbers)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"seconds": took, "megabytes": peak / 1e6}))
        return
    encode = globals()[f"encode_{name}"](Path(numbers[0]))
    documents = json.loads(Path(path).read_text(encoding="utf-8"))
    size = sum(len(document.encode()) for document in documents) / 1e6
    (first, ids), (again, _) = (measured(lambda: list(map(encode, documents))) for _ in range(2))
    print(json.dumps({"first pass": size / first, "again": size / again, "ids": sum(map(len, ids))}))


# ---- rounds and rows

def in_fresh_process(*words, threads=1):
    """Run `work` with these words in a new interpreter and return what it measured."""
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run([sys.executable, __file__, "--work", *map(str, words)], capture_output=True, text=True,
                          env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed, nothing was timed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def take_turns(task, names, rounds, path, *numbers, threads=1):
    """{name: [measurements of each round]}"""
    turns = {name: functools.partial(in_fresh_process, task, name, path, *numbers, threads=threads) for name in names}
    return _rounds.alternate(turns, rounds, measure=lambda turn: turn())


def rows_of(results, names, measures, what, size, more_is_better=False):
    """A row for each measure and peer."""
    return [_rounds.Row(f"{what}{label}, against {PEERS[peer]}", size, unit,
                        [turn[measure] for turn in results["ours"]], [turn[measure] for turn in results[peer]],
                        more_is_better=more_is_better)
            for measure, label, unit in measures for peer in names if peer != "ours"]


def training(chosen, names, path, sizes):
    measures = (("seconds", "", "s"), ("megabytes", ", peak memory", "MB"))
    rows, megabytes = [], path.stat().st_size / 1e6
    for vocab_size in sizes:
        for threads in sorted({1, chosen.threads}):
            results = take_turns("train", names, chosen.rounds, path, vocab_size, threads, threads=threads)
            rows += rows_of(results, names, measures, f"training BPE, {threads} thread{'s' * (threads > 1)}",
                            f"{megabytes:.1f} MB, {vocab_size} pieces")
    return rows


def encoding(chosen, names, folder, kinds, model, what="encoding"):
    measures = (("first pass", ", first pass", "MB/s"), ("again", ", again", "MB/s"))
    rows = []
    for kind, documents in kinds.items():
        path = folder / f"{kind}.json"
        path.write_text(json.dumps(documents), encoding="utf-8")
        results = take_turns("encode", names, chosen.rounds, path, model)
        counts = {name: turns[0]["ids"] for name, turns in results.items()}
        results["ours"] = results.get("bytes", results.get("ours"))
        if len({counts[name] for name in counts if name != "tokenizers"}) > 1:
            raise SystemExit(f"{kind}: not the same number of ids, {counts}: nothing is shown")
        size = sum(len(document.encode()) for document in documents) / 1e6
        rows += rows_of(results, [name for name in names if name in PEERS], measures, f"{what} {kind}",
                        f"{size:.1f} MB", more_is_better=True)
    return rows


def documents_of(data, length=10_000):
    text = data.decode("utf-8", "ignore")
    return [text[at : at + length] for at in range(0, len(text), length)]


def vocabulary(folder, path, vocab_size):
    """LLaMA's tokenizer.model if it is here, else one trained on the corpus."""
    weights = Path(os.environ.get("MINILLAMA_WEIGHTS", ""), "llama_tokenizer.model")
    if weights.is_file():
        return weights
    print(f"encoding with {vocab_size} pieces of our own: MINILLAMA_WEIGHTS names no folder with llama_tokenizer.model")
    train_ours(path, vocab_size, 1)().save(folder / "own.model")
    return folder / "own.model"


def llama3_vocabulary():
    """Llama 3's own file, or None."""
    spec = importlib.util.find_spec("llama_models")
    path = Path(spec.origin).parent / "llama3" / "tokenizer.model" if spec else Path()
    return path if path.is_file() else None


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: parser.add_argument(
        "--megabytes", type=int, default=10, help="of text to train on, if this machine has as much (default 10)"))
    if chosen.megabytes < 1:
        raise SystemExit(f"--megabytes {chosen.megabytes}: at least 1 is needed")
    size, sizes = (300_000, [2500]) if chosen.small else (chosen.megabytes * 1_000_000, [8000, 32000])
    peers = [name for name in PEERS if _rounds.has_peer(name)]
    with tempfile.TemporaryDirectory() as folder:
        folder, kinds = Path(folder), texts(size)
        path = folder / "corpus"
        path.write_bytes(b"\n".join(kinds.values()))
        print(f"{path.stat().st_size / 1e6:.1f} MB: " + ", ".join(f"{k} {len(d) / 1e6:.1f}" for k, d in kinds.items()))
        rows = training(chosen, ["ours", *(name for name in peers if f"train_{name}" in globals())], path, sizes)
        model = vocabulary(folder, path, sizes[-1])
        size = min(size, 10_000_000)
        kinds = {kind: documents_of(data[: size // 5]) for kind, data in kinds.items()}
        line = " ".join(kinds["code"] + kinds["prose"]).replace("\n", " ")[: size // 10]
        kinds["code and prose in one line"] = [line]
        names = ["ours", *(name for name in peers if f"encode_{name}" in globals() and name != "tiktoken")]
        rows += encoding(chosen, names, folder, kinds, model)
        if "tiktoken" in peers and (model := llama3_vocabulary()):
            rows += encoding(chosen, ["bytes", "tiktoken"], folder, kinds, model, "byte-level encoding")
    _rounds.show(rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
