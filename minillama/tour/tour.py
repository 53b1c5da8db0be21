"""The tour: text -> tokenizer -> pretraining -> talking, on two cores, offline, with every number held to a band.

Each stage is one function: it does its part of the report, holds what came out against what was expected, and leaves a
picture for the report. Finished training is kept in the output folder under a name made of its settings and of the
package's code, so a second tour, or one that was interrupted, does no work twice, and an edited model is trained anew.
"""

import hashlib
import json
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

import minillama
from minillama.backends import use_kernels
from minillama.checkpoint import load_model
from minillama.config import preset
from minillama.corpus import count_shared, forum, mixture, mixture_entropy_bits, stdlib_docs, text_files
from minillama.generate import generate_text
from minillama.sampling import Sampling
from minillama.system.files import atomic_write
from minillama.system.memory import peak_memory
from minillama.tokenizer import load_tokenizer, train_bpe
from minillama.tour import tour_pages as pages
from minillama.tour.report import ROWS, caption, table, write_report
from minillama.tour.tour_config import TEXT_PIECES, TourConfig, check_inputs, code_digest
from minillama.tour.tour_own import check_lengths, own_stages
from minillama.tour.tour_rlhf import feedback_stages, forum_feedback
from minillama.tour.tour_sft import fine_tuning_stages
from minillama.train.data import write_tokens
from minillama.train.perplexity import bits_per_character, model_nats
from minillama.train.pretrain import pretrain
from minillama.train.resumable import METRICS_FILE
from minillama.train.resume import read_metrics
from minillama.train.training_run import STATE_FILE
from minillama.transformer import Transformer

PIECES = 1024  # vocabulary of the procedural corpus
QUESTIONS = 16  # asked of the trained model


class TourReport:
    """A tour under way: where it writes, what it has shown so far (rows) and drawn (pages)."""

    def __init__(self, out, config):
        self.out, self.config, self.rows, self.pages = Path(out), config, [], []
        self.skipped, self.advice, self.peak_before = [], [], peak_memory()  # (stage, why); sentences; bytes
        self.check_lengths = lambda tokenizer, context: None  # of the user's own records and pairs, where there are any
        self.clock = time.perf_counter()

    def check(self, stage, expected, got, passed, module, lesson=""):
        """One row of the closing table. `lesson` is named only once it is there to be read."""
        now = time.perf_counter()
        lesson = lesson if lesson and (Path(minillama.__file__).parents[1] / lesson).exists() else ""
        self.rows.append({"stage": stage, "expected": expected, "got": got, "pass": bool(passed),
                          "seconds": round(now - self.clock, 2), "module": module, "lesson": lesson})
        self.clock = now
        self.say(f"  {'pass' if passed else 'FAIL'}  expected {expected}; got {got}")

    def measure(self, name, passed, **numbers):
        """The row of that name in the words of report_rows.json, with these numbers."""
        words = ROWS[name]
        self.check(words["stage"], words["expected"].format(**numbers), words["got"].format(**numbers), passed,
                   words["module"], words["lesson"])

    def skip(self, stage, why):
        """A number that cannot be had in this tour."""
        self.skipped.append((stage, why))
        self.say(f"  skip  {stage}: {why}")

    def advise(self, *sentences):
        """What looks wrong, and what to try; nothing where a sentence is empty."""
        for sentence in filter(None, sentences):
            self.advice.append(sentence)
            self.say(f"  advice  {sentence}")

    def say(self, text):
        print(text, flush=True)

    def folder(self, name, **settings):
        """A stage's folder, named after what decides its result: other settings or other code, another folder."""
        text = json.dumps({"version": minillama.__version__, **settings}, sort_keys=True, default=str)
        asked = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        folder = self.out / "stages" / f"{asked}-{code_digest()}"
        if not folder.exists() and any(folder.parent.glob(f"{asked}-*")):
            self.say(f"  the code of minillama has changed since an earlier tour: {name} is trained anew")
        return folder

    def is_done(self, folder, last="params.json"):
        """Whether an earlier tour finished the stage of this folder: the file that is written last is there."""
        found = (folder / last).exists()
        if found:
            self.say(f"  found trained in {folder}")
        return found


def tour(out, text=None, config=None, sft=None, preferences=None):
    """Run all stages; True if every number fell into its band. Writes report.html, report.json and the models.

    text, sft, preferences: the user's own files. Text alone is learned at the end, beside the forum; with one of the
    others the chain itself is theirs (`tour_own`).
    """
    config = config or TourConfig()
    check_inputs(config, text, sft, preferences)
    report = TourReport(out, config)
    began = time.perf_counter()
    report.say(f"minillama {minillama.__version__}: from text to a talking LLaMA, on this machine, offline")
    if sft or preferences:
        report.check_lengths = partial(check_lengths, sft=sft, preferences=preferences)
        base = text_stage(report, text) if text else forum_base(report)
        report.say("5, 6 your own task: fine-tuning and feedback (minillama/tour/tour_own.py)")
        own_stages(report, *base, sft, preferences)
    else:
        forum_chain(report)
        text_stage(report, text)
    write_results(report, time.perf_counter() - began)
    return all(row["pass"] for row in report.rows)


def forum_base(report):
    """Corpus, tokenizer, pretraining and a first talk -> (model, tokenizer)."""
    train, held_out = corpus_stage(report)
    tokenizer = tokenizer_stage(report, train, held_out)
    model = pretrain_stage(report, tokenizer, train, held_out)
    talk_stage(report, model, tokenizer)
    return model, tokenizer


def forum_chain(report):
    """From nothing to a model that has learned from votes, on the forum whose truth is known
    -> (tuned model, tokenizer, feedback, reward model, PPO's `Practice`)."""
    model, tokenizer = forum_base(report)
    report.say("5 fine-tuning: the same model learns to answer, in full, by LoRA and by QLoRA (minillama/train/sft.py)")
    tuned = fine_tuning_stages(report, model, tokenizer)
    report.say("6 feedback: votes become a reward model, and PPO practises what it likes (minillama/rlhf)")
    feedback = forum_feedback(report.config.seed)
    judged = feedback_stages(report, tuned, tokenizer, feedback)
    return tuned, tokenizer, feedback, *judged


def corpus_stage(report):
    """Stories and forum posts from a seeded grammar that knows its own entropy."""
    report.say("1 corpus: stories and forum answers from a seed (minillama/corpus)")
    train = mixture(report.config.seed, report.config.documents)
    held_out = mixture(report.config.seed, 400, "held-out")
    entropy, n = mixture_entropy_bits(), len(train)
    mean = sum(document.bits for document in train) / n
    error = math.sqrt(sum((document.bits - mean) ** 2 for document in train) / n / n)
    report.measure("corpus", abs(mean - entropy) < 4 * error, entropy=entropy, within=4 * error, n=n, mean=mean)
    report.pages.append(pages.corpus_page(train, entropy, count_shared(train, held_out), len(held_out)))
    return train, held_out


def tokenizer_stage(report, train, held_out):
    """A thousand pieces by byte-pair encoding, digits kept apart."""
    report.say(f"2 tokenizer: byte-pair encoding, {PIECES} pieces (minillama/tokenizer)")
    path = report.out / "tokenizer.model"
    texts = [document.text for document in train]
    train_bpe(texts, PIECES, progress=report.config.progress).save(path)
    tokenizer = load_tokenizer(path)
    ids = [tokenizer.encode(document.text) for document in held_out]
    same = sum(tokenizer.decode(i) == document.text for i, document in zip(ids, held_out, strict=True))
    characters = sum(len(document.text) for document in held_out)
    report.measure("tokenizer", same == len(held_out), n=len(held_out), same=same,
                   rate=characters / sum(map(len, ids)))
    report.pages.append(pages.tokenizer_page(tokenizer, held_out[0].text))
    return tokenizer


def train_or_load(report, name, shape, tokenizer, tokenizer_path, split, pretrain_config):
    """A model trained on split = (train documents, held-out documents), or the one that an earlier tour finished.

    Returns (model, held-out tokens, history of the training).
    """
    data = hashlib.sha256("\0".join(split[0] + split[1]).encode()).hexdigest()
    folder = report.folder(name, shape=asdict(shape), train=asdict(pretrain_config), data=data,
                           pieces=tokenizer.vocab_size, kernels=report.config.kernels)
    train, held_out = (write_tokens(folder / f"{part}.bin", documents, tokenizer, progress=False)
                       for part, documents in zip(("train", "held_out"), split, strict=True))
    if report.is_done(folder):
        model = load_model(folder)[0].eval()
        return model, held_out, read_metrics(folder / METRICS_FILE, pretrain_config.steps, evaluated=True)
    torch.manual_seed(pretrain_config.seed)
    model = use_kernels(Transformer(shape), report.config.kernels)
    history = pretrain(model, train, held_out, pretrain_config, folder, resume=(folder / STATE_FILE).exists(),
                       progress=report.config.progress, tokenizer_path=tokenizer_path)
    return model.eval(), held_out, history


def pretrain_stage(report, tokenizer, train, held_out):
    """A LLaMA of 0.4 million parameters learns the corpus down to its entropy."""
    shape = preset("tiny", vocab_size=tokenizer.vocab_size)
    report.check_lengths(tokenizer, shape.max_seq_len)
    report.say(f"3 pretraining: {shape.n_parameters():,} parameters learn to predict the next token "
               "(minillama/train/pretrain.py)")
    split = [document.text for document in train], [document.text for document in held_out]
    settings = report.config.pretraining(report.config.steps, 8e-3)
    path = report.out / "tokenizer.model"
    model, tokens, history = train_or_load(report, "pretrain", shape, tokenizer, path, split, settings)
    nats, _ = model_nats(model, tokens, seq_len=settings.seq_len, stride=settings.seq_len // 2)
    bits, entropy = nats / math.log(2) / len(held_out), sum(document.bits for document in held_out) / len(held_out)
    report.measure("pretrain", bits < 1.10 * entropy, entropy=entropy, bits=bits, above=bits / entropy - 1)
    report.pages += [pages.pretrain_page(history, tokens, held_out, entropy),
                   pages.attention_page(model, tokenizer, held_out[0].text)]
    return model


def talk_stage(report, model, tokenizer):
    """Questions that the model never saw in this wording, answered by sampling."""
    report.say("4 talking: the model answers questions (minillama/generate.py)")
    answers = []
    for i, thread in enumerate(forum.threads(report.config.seed + 1, QUESTIONS)):
        pieces = generate_text(model, tokenizer, thread.question, 64, Sampling(temperature=0.7), seed=i)
        answers.append((thread.question, "".join(pieces)))
    good = sum(is_answer(question, answer) for question, answer in answers)
    for question, answer in answers[:3]:
        report.say(f"    {question}{answer}")
    least = QUESTIONS * 3 // 4
    report.measure("talk", good >= least, least=least, n=QUESTIONS, good=good)
    report.pages.append(pages.talk_page(answers))


def is_answer(question, answer):
    """Whether the forum itself could have written `answer` to a question with this verb."""
    asked = forum.GRAMMAR.parse(question, "{question}").chosen
    return forum.derivation(answer.strip(), "{answer}", {"verb": asked["verb"]}) is not None


def text_stage(report, paths):
    """The same on real text: Python's own documentation, or the reader's files -> (model, tokenizer)."""
    name = "your text" if paths else "Python's documentation"
    report.say(f"7 real text: the same on {name} (minillama/corpus)")
    split = (text_files.split(text_files.read_documents(paths), say=report.say) if paths
             else stdlib_docs.train_and_held_out())
    path = report.out / "text_tokenizer.model"
    train_bpe(split[0], TEXT_PIECES, hard_vocab_limit=False, max_line_bytes=1 << 23, split_unspaced=True,
              progress=report.config.progress).save(path)
    tokenizer = load_tokenizer(path)
    shape = report.config.text_shape(tokenizer.vocab_size)
    report.check_lengths(tokenizer, shape.max_seq_len)
    steps, rate = (900, 0.32 / shape.dim) if paths else (600, 5e-3)  # to be tuned: at 5e-3 it is late to copy words
    settings = report.config.pretraining(report.config.text_steps or steps, report.config.text_max_lr or rate)
    model, tokens, history = train_or_load(report, "text", shape, tokenizer, path, split, settings)
    ours, levels = bits_per_character(model, tokens, settings.seq_len, settings.seq_len // 2), pages.text_levels(split)
    level = pages.context(3) if paths is None else pages.context(2)
    report.measure("real text", ours < levels[level], level=level, needed=levels[level], ours=ours,
                   characters=tokens.characters)
    samples = pages.continuations(model, tokenizer, split[1])
    report.say("\n".join(f"    {given}{made}".replace("\n", "\n    ") for given, made in samples[:1]))
    report.pages.append(pages.text_page(name, history, tokens, levels, ours, samples))
    return model, tokenizer


def write_results(report, seconds):
    """report.html, report.json and the closing table."""
    if (peak := peak_memory()) is None:
        report.skip("memory", "this system does not tell the peak of a process")
    else:  # a process that was larger before it set out has nothing to show
        report.measure("memory", peak < 1.5e9 or peak == report.peak_before, peak=peak / 1e9)
    passed = sum(row["pass"] for row in report.rows)
    summary = f"{passed} of {len(report.rows)} numbers in their bands, {seconds:.0f} seconds, no download."
    with atomic_write(report.out / "report.json", "w") as file:
        json.dump({"version": minillama.__version__, "config": asdict(report.config), "seconds": round(seconds, 1),
                   "rows": report.rows, "skipped": report.skipped, "advice": report.advice}, file, indent=1)
    write_report(report.out / "report.html", "From text to a talking LLaMA", summary,
                 [*report.pages, table(report.rows), *(caption(f"Advice: {sentence}.") for sentence in report.advice),
                  *(caption(f"Left out: {stage}: {why}.") for stage, why in report.skipped)])
    width = max(len(row["stage"]) for row in report.rows)
    report.say("")
    for row in report.rows:
        report.say(f"{'pass' if row['pass'] else 'FAIL'}  {row['stage']:{width}}  expected {row['expected']}; "
                   f"got {row['got']}  ({row['seconds']:.1f} s)")
    report.say(f"\n{summary}\nReport with pictures: {report.out / 'report.html'}")
