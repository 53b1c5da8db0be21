"""Supervised fine-tuning (SFT, instruction tuning): the model learns to answer, and only the answers are learned.

The same function serves full tuning, LoRA and QLoRA: what requires a gradient is trained, all else stays as it is.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice

import torch

from minillama.collate import collate
from minillama.config_checks import MOST, check_config, number
from minillama.train import data_parallel
from minillama.train.data import permutation
from minillama.train.packing import Chunk, pack
from minillama.train.perplexity import in_eval_mode
from minillama.train.resume import crc_of_texts, settings_of
from minillama.train.sequence_loss import IGNORE, learned_tokens, model_loss
from minillama.train.training_run import TrainingConfig, TrainingRun


@dataclass(frozen=True)
class SftConfig(TrainingConfig):
    """Everything that decides a run's result, besides the model and the data. The defaults suit full tuning of a
    model of less than a million parameters; LoRA wants some three times the rate, large models far less (Alpaca: 2e-5,
    QLoRA: 2e-4)."""

    steps: int | None = number(None, 1, MOST)  # type: ignore[assignment]  # None: as the data want (`with_steps`)
    batch_size: int = number(16, 1, MOST)  # sequences, or chunks of packed ones
    max_lr: float = number(2e-3, 1e-12, 10)
    warmup_steps: int = number(10, 0, MOST)
    weight_decay: float = number(0.0, 0, 10)  # adapters and short runs need none
    pack_length: int = number(0, 2, MOST, or_zero=True)  # tokens of a packed row; 0: one padded sequence a row
    separate_documents: bool = True  # packed sequences do not see one another (block-diagonal mask)
    gradient_checkpointing: bool = False  # less memory, a third more work
    paged_optimizer: int = number(0, 0, MOST)  # MiB of AdamW's state in memory, the rest in a file; 0: all of it
    eval_every: int = number(50, 0, MOST)
    eval_sequences: int = number(0, 0, MOST)  # of the held-out ones, the first so many; 0: all

    def __post_init__(self):
        super().__post_init__() if self.steps else check_config(self)


def with_steps(config, rows):
    """The config with its steps: where it has none, those of three epochs (Alpaca's number) over so many rows, but from
    150 (a small model learns to stop, and to copy a name, by doing it often) to 500 (minutes on two cores)."""
    each = config.batch_size * config.grad_accumulation
    return config if config.steps else replace(config, steps=min(max(round(3 * rows / each), 150), 500))


def fine_tune(model, sequences, held_out, config, folder=None, resume=False, progress=True, stages=(), facts=None,
              kind=None):
    """Train what requires a gradient in `model`, in place, on lists of `Sequence` -> the history.

    stages: (n1, n2, ...): a curriculum. The first n1 sequences are trained on first, then the next n2, each stage for
    its share of the steps (`stage_ends`); the learning rate runs through once, over all. (): all are mixed.

    The history is as in `pretrain`; losses are mean nats per learned token. With a `folder` it is written there with
    checkpoints of the trained parameters, and resume=True goes on from the last; facts and kind are as in `pretrain`,
    and a run in stages keeps its steps. The model ends in eval mode.

    Raises ValueError for sequences that do not fit the model or teach nothing, and what `pretrain` raises.
    """
    _check_fit(model, sequences, held_out, config)
    config = with_steps(config, len(sequences))
    if stages and (min(stages) < 1 or sum(stages) != len(sequences)):
        raise ValueError(f"stages {tuple(stages)} must be positive and add up to the {len(sequences)} sequences")
    before, model.gradient_checkpointing = model.gradient_checkpointing, config.gradient_checkpointing
    try:
        return (kind or FineTuning)(model, sequences, held_out, config, folder, stages, facts).train(resume, progress)
    finally:
        model.gradient_checkpointing = before
        model.eval()


class FineTuning(TrainingRun):
    """A run of fine-tuning: rows drawn from the sequences, evaluated on others."""

    name = "fine-tune"

    def __init__(self, model, sequences, held_out, config, folder, stages=(), facts=None):
        data = {"sequences": fingerprint(sequences), "held_out": fingerprint(held_out),
                "stages": f"{list(stages)} over {config.steps} steps" if len(stages) > 1 else None}
        signature = {**(facts or {}), **settings_of(config), **settings_of(model.config), **data}
        super().__init__(model, config, folder, signature)
        self.held_out = held_out[:config.eval_sequences or None]
        rows, self.ends = iter(sequences), stage_ends(stages or [len(sequences)], config.steps)
        self.stages = [SequenceBatches(list(islice(rows, n)), config.batch_size * config.grad_accumulation, config.seed,
                                       config.pack_length) for n in stages or [len(sequences)]]

    def batches(self, step):
        """The step's rows, out of the stage that it falls into."""
        stage = bisect_right(self.ends, step)
        return self.stages[stage](step - (self.ends[stage - 1] if stage else 0))

    def losses(self, step):
        """The step's loss in parts: the sum over each batch's learned tokens, divided by the number in all batches.
        A mean of means would give tokens of short batches more weight."""
        chunks, size = self.batches(step), self.config.batch_size
        batches = [collate(chunks[i:i + size], self.device) for i in range(0, len(chunks), size)]
        separate = self.config.pack_length > 0 and self.config.separate_documents
        count = sum(learned_tokens(labels, documents if separate else None) for _, labels, documents in batches)
        self.step_tokens = sum(tokens.numel() for tokens, _, _ in batches)
        if count == 0:
            raise ValueError(f"step {step + 1} holds no learned token: use a larger batch_size or pack_length")
        for tokens_BT, labels_BT, documents_BT in data_parallel.shard(batches, self.learner):
            documents_BT = documents_BT if separate else None
            yield model_loss(self.learner, tokens_BT, labels_BT, "sum", documents_BT) / (count / self.processes)

    def held_out_loss(self):
        return answer_loss(self.model, self.held_out, self.config.batch_size)


class SequenceBatches:
    """`batches(step)` -> a list of `Chunk`, a pure function of (seed, step), so a resumed run has no iterator to
    restore. Every epoch has its own permutation of the rows, in which each occurs once.

    pack_length > 0: the sequences, in a permuted order, are packed into rows of so many tokens once, before the
    first epoch; a sequence cut by a row's end goes on in the next (`packing.pack`).
    """

    def __init__(self, sequences, batch_size, seed, pack_length=0):
        self.batch_size = batch_size
        if pack_length:
            order = permutation(len(sequences), seed, 2**32)  # no epoch has this number
            chunks = pack([sequences[i] for i in order], pack_length)
            self.rows = [chunk for chunk in chunks if len(chunk.tokens) > 1]  # of a last, lone token nothing is learned
        else:
            self.rows = sequences
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(len(self.rows), seed, epoch))

    def __call__(self, step):
        n = len(self.rows)
        drawn = range(step * self.batch_size, (step + 1) * self.batch_size)  # of the endless epochs
        rows = [self.rows[self._order(i // n)[i % n]] for i in drawn]
        return [row if isinstance(row, Chunk) else
                Chunk(*map(torch.tensor, (row.tokens, row.labels, [0] * len(row.tokens)))) for row in rows]


def stage_ends(counts, steps):
    """The step before which each stage ends: shares of the steps like its share of the sequences, at least one each,
    so that every sequence is seen about equally often.

    >>> stage_ends([30, 10, 1], 8)
    [6, 7, 8]
    """
    if steps < len(counts):
        raise ValueError(f"{steps} steps for {len(counts)} stages: each needs at least one")
    ends, seen = [], list(accumulate(counts))
    for stage, count in enumerate(seen):
        end = round(steps * count / seen[-1])
        first = ends[-1] + 1 if ends else 1
        ends.append(min(max(end, first), steps - (len(counts) - 1 - stage)))
    return ends


@torch.no_grad()
def answer_loss(model, sequences, batch_size=16):
    """Mean nats per learned token over all sequences, each token counted once; the model is in eval mode meanwhile."""
    device, total, count = model.tok_embeddings.weight.device, 0, 0
    with in_eval_mode(model):
        for first in range(0, len(sequences), batch_size):
            tokens_BT, labels_BT = collate(sequences[first:first + batch_size], device)
            total += model_loss(model, tokens_BT, labels_BT, "sum").double().item()
            count += learned_tokens(labels_BT)
    return total / count


def fingerprint(sequences):
    """CRC-32 of all tokens and labels in order: tells a resumed run that this is the same data."""
    return crc_of_texts([[sequence.tokens, sequence.labels] for sequence in sequences])


def _check_fit(model, sequences, held_out, config):
    longest = model.config.max_seq_len
    for name, part in (("sequences", sequences), ("held_out", held_out)):
        if not part:
            raise ValueError(f"{name} is empty: give at least one Sequence")
        for i, sequence in enumerate(part):
            if sequence.labels[1:].count(IGNORE) == len(sequence.labels[1:]):
                raise ValueError(f"{name}[{i}] has no trainable token: no token behind its first has a label")
            if min(sequence.tokens) < 0 or max(sequence.tokens) >= model.config.vocab_size:
                wrong = [token for token in sequence.tokens if not 0 <= token < model.config.vocab_size]
                raise ValueError(f"{name}[{i}] holds the id {wrong[0]}, the model knows 0 to "
                                 f"{model.config.vocab_size - 1}: encode with the model's own tokenizer")
            if len(sequence.tokens) > longest and not (name == "sequences" and config.pack_length):
                raise ValueError(f"{name}[{i}] has {len(sequence.tokens)} tokens, the model attends over {longest}: "
                                 "cut it (encode_records does)")
    if config.pack_length > longest:
        raise ValueError(f"pack_length {config.pack_length} is more than the {longest} tokens the model attends over")
