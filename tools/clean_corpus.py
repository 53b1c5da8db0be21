"""`run.py clean-corpus`: what `lessons.cleaning` asks of a text, for text larger than memory, in pieces, by
several processes, going on after a stop.

Each pass reads all shards (`corpus_shards`), and keeps what it finds of each in OUT/work, so that a stopped run goes on
behind the last of them:

    lines     the hashes of all lines                -> those in many documents are boilerplate
    faults    the rules, and a signature             -> near-duplicates of earlier documents
    scores    perplexity and quality                 -> buckets
    write     head, middle and tail of each language, what was dropped and why, and the report

Memory holds 0.5 kB for each document and 8 bytes for each line; the text itself never.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from corpus_report import write_corpus
from corpus_shards import SUFFIXES, cut_into_shards, read_shards
from resumable_command import end_well

from lessons.cleaning import (
    LANGUAGES,
    CleaningRules,
    PerplexityModel,
    QualityClassifier,
    compile_word_list,
    even_out,
    find_fault,
    find_language,
    hash_words,
    split_by_perplexity,
    without_lines,
)
from lessons.minhash import HASHES, SHINGLE, find_near_duplicates, hash_runs, hash_word, signature
from minillama.cli.flags import add_fields, add_number, from_flags
from minillama.config_checks import Range
from minillama.system.claim import claims
from minillama.system.files import atomic_write, require_regular
from minillama.system.terminal import tell, tqdm

SAMPLE = 2_000_000  # characters that a language's n-gram model and the classifier learn from
SAMPLE_SHARE = 1 / 16  # of each shard: where there is no file of reference, the corpus is its own


@dataclass(frozen=True)
class Cleaning:
    """What to clean by: rules, languages allowed (none: all), a file of words not wanted, a file of good text for the
    perplexity (default: the corpus itself), one for the classifier (default: no classifier), and its least quality."""

    rules: CleaningRules = field(default_factory=CleaningRules)
    languages: tuple = ()
    word_list: str | None = None
    reference: str | None = None
    good: str | None = None
    min_quality: float = 0.0


def clean_corpus(paths, out, cleaning=None, workers=1):
    """Clean the documents of files and folders into the folder `out`; {reason or language/bucket: how many}.

    ValueError where `out` holds finished work, or work of other settings or files; what the files are refused for.
    """
    out, shards, cleaning = Path(out), cut_into_shards(paths), cleaning or Cleaning()
    if (out / "report.md").exists():
        raise ValueError(f"{out} holds a cleaned corpus: choose another --out")
    if any(out.resolve() in Path(shard.path).resolve().parents for shard in shards):
        raise ValueError(f"{out} lies in what is read: choose an --out apart from --text")
    for path in filter(None, (cleaning.word_list, cleaning.reference, cleaning.good)):
        open(require_regular(path), "rb").close()
    if cleaning.word_list:
        compile_word_list(Path(cleaning.word_list))
    if not shards:
        raise ValueError(f"no text in {', '.join(map(str, paths))}: give files, or folders with {' '.join(SUFFIXES)}")
    hold_settings(out / "work" / "settings.json", cleaning, shards)
    with open_pool(workers) as pool:
        run = partial(_run_pass, pool, out / "work", shards)
        boilerplate = _find_boilerplate(run("lines", find_lines), cleaning.rules.repeated_lines)
        judged = run("faults", partial(find_faults, boilerplate=boilerplate, cleaning=cleaning))
        reasons = _join_near_duplicates(judged, cleaning.rules.similarity)
        judges = learn_judges(judged, cleaning)
        scored = run("scores", partial(score, boilerplate=boilerplate, **judges), reasons)
    verdicts = _sort_into_buckets(reasons, scored, cleaning.min_quality)
    counts = write_corpus(out, shards, boilerplate, verdicts)
    shutil.rmtree(out / "work")
    return counts


def open_pool(workers):
    """An executor of so many processes, which leave Ctrl-C to this one; a single worker is a thread of this one."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def hold_settings(path, cleaning, shards):
    """ValueError where a run of other settings, or of files that have changed since, has left its work."""
    files = {shard.path: [stat.st_size, stat.st_mtime_ns] for shard in shards for stat in [Path(shard.path).stat()]}
    settings = json.dumps({"cleaning": asdict(cleaning), "files": files}, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{path.parents[1]} holds unfinished work of other settings or files: choose another --out")
    with atomic_write(path, "w") as file:
        file.write(settings)


def _run_pass(pool, work, shards, name, function, *given):
    """What `function` finds in each shard, {name: array}; kept in a file each, and read where that is there."""
    files = [work / f"{name}-{i:06}.npz" for i in range(len(shards))]
    waiting = {file: pool.submit(function, *arguments) for file, *arguments in zip(files, shards, *given, strict=True)
               if not file.exists()}
    try:
        for path in tqdm(files, desc=name, unit="shard"):
            if path in waiting:
                found = waiting.pop(path).result()
                with atomic_write(path) as file:
                    np.savez(file, **found)
    finally:
        for future in waiting.values():
            future.cancel()
    return [dict(np.load(path)) for path in files]


def find_lines(shard):
    """The hashes of the lines of each document, each once a document."""
    documents = [{hash_word(line) for line in map(even_out, text.split("\n")) if line} for _, text in shard.documents()]
    return {"lines": np.array([code for document in documents for code in document], np.uint64)}


def _find_boilerplate(passes, repeated):
    found, counts = np.unique(np.concatenate([part["lines"] for part in passes]), return_counts=True)
    return set(found[counts >= repeated].tolist())


def find_faults(shard, boilerplate, cleaning):
    """For each document the reason and detail it is dropped for ("" where it is not); of the others the signatures,
    and the first of them as a sample, with zero characters between."""
    listed = compile_word_list(Path(cleaning.word_list)) if cleaning.word_list else None
    reasons, signatures, sample, room = [], [], [], SAMPLE_SHARE * (shard.end - shard.begin)
    for _, text in shard.documents():
        text = without_lines(text, boilerplate)
        fault = find_fault(text, cleaning.rules, cleaning.languages, listed)
        reasons.append(fault or ("", ""))
        if fault is None:
            signatures.append(signature(hash_runs(hash_words(text), SHINGLE)))
            if room > 0:
                sample.append(text)
                room -= len(text)
    return {"reasons": np.array(reasons, "U32").reshape(-1, 2), "sample": np.array("\0".join(sample)),
            "signatures": np.array(signatures, np.uint32).reshape(-1, HASHES)}


def _join_near_duplicates(judged, similarity):
    """The (reason, detail) of all documents, an array for each shard: now also of near-duplicates of an earlier one."""
    reasons = np.concatenate([part["reasons"] for part in judged])
    kept = np.flatnonzero(reasons[:, 0] == "")
    earlier = find_near_duplicates(np.concatenate([part.pop("signatures") for part in judged]), similarity)
    copies = earlier >= 0
    reasons[kept[copies], 0] = "near copy"
    reasons[kept[copies], 1] = [f"of document {kept[other] + 1}" for other in earlier[copies]]
    ends = np.cumsum([len(part["reasons"]) for part in judged])
    return np.split(reasons, ends[:-1])


def learn_judges(judged, cleaning):
    """{"models": a PerplexityModel of each language, "classifier": one, or None}.

    A language that the file of reference does not hold is judged by the corpus's own sample."""
    sample = [text for part in judged for text in str(part["sample"]).split("\0") if text]
    reference = list(read_shards([cleaning.reference])) if cleaning.reference else []
    texts = {}
    for source in (reference, sample):
        by_language = {}
        for text in source:
            by_language.setdefault(find_language(text), []).append(text)
        texts = by_language | texts
    models = {language: PerplexityModel(limit(found)) for language, found in texts.items()}
    good = list(limit(read_shards([cleaning.good]))) if cleaning.good else []
    return {"models": models, "classifier": QualityClassifier(good, limit(sample)) if good else None}


def limit(texts, characters=SAMPLE):
    """Yield texts until they have so many characters."""
    for text in texts:
        if characters > 0:
            yield text
            characters -= len(text)


def score(shard, reasons, boilerplate, models, classifier):
    """Language, perplexity and quality of each document that is not dropped yet; "", nan and nan of the others."""
    languages, numbers = [], []
    for (_, text), (reason, _) in zip(shard.documents(), reasons, strict=True):
        if reason:
            languages.append("")
            numbers.append((np.nan, np.nan))
            continue
        text = without_lines(text, boilerplate)
        languages.append(find_language(text))
        numbers.append((models[languages[-1]].perplexity(text), classifier.quality(text) if classifier else np.nan))
    return {"languages": np.array(languages, "U16"), "numbers": np.array(numbers).reshape(-1, 2)}


def _sort_into_buckets(reasons, scored, min_quality):
    """All documents: (reason, detail, language, bucket, perplexity)."""
    reasons = np.concatenate(reasons)
    languages = np.concatenate([part["languages"] for part in scored])
    perplexities, qualities = np.concatenate([part["numbers"] for part in scored]).T
    for place in np.flatnonzero(qualities < min_quality):
        reasons[place] = "quality", f"{qualities[place]:.3f} nats"
    buckets = np.full(len(reasons), -1)
    for language in set(languages) - {""}:
        here = (languages == language) & (reasons[:, 0] == "")
        buckets[here] = split_by_perplexity(perplexities[here])
    return list(zip(*reasons.T, languages, buckets, perplexities, strict=True))


def main(argv=None):
    """Parse, clean, count what was kept and what went; a bad input is one line and exit code 2."""
    return end_well(run_clean, parser().parse_args(argv))


def parser():
    """The flags: files, what to judge by, and the fields of CleaningRules."""
    flags = argparse.ArgumentParser(prog="run.py clean-corpus", description="Keep of raw text what is worth learning "
                                    "from, and say what went.")
    flags.add_argument("--text", required=True, nargs="+", metavar="FILE", help="text (an empty line between "
                       "documents) or JSONL (a \"text\" on each line), or folders of such files")
    flags.add_argument("--out", required=True, metavar="DIR", help="LANGUAGE/head.txt, middle.txt and tail.txt, "
                       "dropped.jsonl and report.md; the same command goes on with what was interrupted")
    flags.add_argument("--languages", nargs="+", default=[], choices=LANGUAGES, metavar="NAME",
                       help=f"keep only these, told by their scripts: {', '.join(LANGUAGES)} (default: all)")
    flags.add_argument("--word-list", metavar="FILE", help="drop documents with one of its words, one on a line")
    flags.add_argument("--reference", metavar="FILE", help="good text for the perplexity (default: --text itself)")
    flags.add_argument("--good", metavar="FILE", help="drop what a classifier finds less like this than like --text")
    add_number(flags, "--min-quality", Range(-100, 100), 0.0, float, "of that classifier, in nats a word")
    add_number(flags, "--workers", Range(1, 1024), help="processes (default: one for each CPU)")
    add_fields(flags, CleaningRules)
    flags.set_defaults(resume=True)
    return flags


@claims("clean-corpus", "text", "word_list", "reference", "good", run=True)
def run_clean(arguments):
    """Clean by the flags, and count."""
    cleaning = Cleaning(from_flags(CleaningRules, arguments), tuple(arguments.languages), arguments.word_list,
                        arguments.reference, arguments.good, arguments.min_quality)
    counts = clean_corpus(arguments.text, arguments.out, cleaning, arguments.workers or os.cpu_count() or 1)
    for name, count in counts.most_common():
        print(f"{count:9,}  {name}")
    tell(f"{arguments.out}: the report is report.md")


if __name__ == "__main__":
    sys.exit(main())
