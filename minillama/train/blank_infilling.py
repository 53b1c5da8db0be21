"""Blank infilling (GLM, arXiv 2103.10360, section 2): spans of a text are cut out, and the model writes them back.

A row is part A, the text with one mask token in the place of each span, and part B, the spans in a random order, each
behind a start token. Part A is read in both directions; part B is written from left to right, and sees all of part A.
What a token of B is to predict is its span's next token, and behind the last one an end token.

Each token has two positions: in the text with its masks (a token of B has its mask's), and within its span, 1, 2, ...
from the start token on; 0 in part A. The paper adds a learned vector for each. A LLaMA has none to add to: it turns.
So half of each head's pairs turn by the first position and half by the second, as in ChatGLM (THUDM/ChatGLM-6B,
modeling_chatglm.py): no weight is new, and attention knows both distances.

Which spans are cut out makes one model three: short ones (BERT's task), whole sentences (conditional generation), or
the end of the text, half of it to all (as GPT). A row draws one of the three, and each has a mask token of its own.
"""

import math
import random
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from minillama.collate import IGNORE, pad_rows
from minillama.generate import GREEDY
from minillama.kv_cache import KVCache
from minillama.rope import rope_frequencies, rope_rotations
from minillama.sampling import sample
from minillama.tokenizer.added_tokens import AddedToken, TokenSettings
from minillama.train.data_parallel import shard
from minillama.train.mixture import Mixture, batches_of
from minillama.train.perplexity import in_eval_mode
from minillama.train.pretrain import PretrainRun

SHARE, MEAN_LENGTH, LONGEST = 0.15, 3.0, 40  # of the tokens; of a span's length, before zero is left out; of a span
MASKS = {"spans": "[MASK]", "sentences": "[sMASK]", "document": "[gMASK]"}  # by their names in THUDM/GLM
START, END = "<|startofpiece|>", "<|endofpiece|>"
OBJECTIVES = ("causal", "blank")
MIXTURE = ("spans", "spans", "sentences", "document")  # a row draws one of these
SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")  # the last three: Chinese


@dataclass(frozen=True)
class BlankRow:
    """tokens and targets, lists of equal length (-100: nothing is learned, as in all of part A); positions, a pair for
    each token; split: how many tokens part A has."""

    tokens: list
    targets: list
    positions: list
    split: int


def prepare_tokenizer(objective, tokenizer):
    """The tokenizer; for "blank" with the five tokens of blank infilling behind its vocabulary, if it lacks them. They
    take the white space before them, and no space comes in front of what follows: so both sides of a blank are cut into
    tokens as in the whole text."""
    if objective == "causal":
        return tokenizer
    new = [name for name in (*MASKS.values(), START, END) if name not in tokenizer.special_tokens]
    added = tuple(AddedToken(name, tokenizer.vocab_size + n, lstrip=True) for n, name in enumerate(new))
    return tokenizer.obey(TokenSettings(added, prefix="first" if tokenizer.prefix == "sentencepiece" else None))


def fills_blanks(tokenizer):
    """Whether the tokenizer, and so its model, has the tokens of blank infilling."""
    return START in tokenizer.special_tokens


def require_objective(weights, tokenizer, allowed):
    """ValueError where a model was pretrained by an objective that a command has no use for, such as one that fills
    blanks and is to be read from left to right; or where it fills blanks, and the tokenizer has no token for them."""
    objective = weights.config.objective
    if objective not in allowed:
        raise ValueError(f"{weights.source} was pretrained with --objective {objective}: it fills the [MASK] of a text "
                         "(`generate` lets it) and cannot be read from left to right: give a causal model")
    if objective == "blank" and not fills_blanks(tokenizer):
        raise ValueError(f"{weights.source} fills blanks, and its tokenizer lacks their tokens, such as {START}: give "
                         "the tokenizer that it was trained with")


def draw_length(rng):
    """A span's length: Poisson of mean 3, without zero and cut at 40 (mean 3.157), by Knuth's product of chances."""
    length, product = 0, rng.random()
    while product > math.exp(-MEAN_LENGTH):
        length, product = length + 1, product * rng.random()
    return min(length, LONGEST) or draw_length(rng)


def draw_spans(rng, n):
    """[(start, length), ...] in n tokens, ascending: lengths are drawn until the next would take more than 15 % of
    the tokens, places so that every set of spans that do not touch is equally likely."""
    room, lengths = max(1, int(SHARE * n)), []
    while (length := draw_length(rng)) <= room - sum(lengths):
        lengths.append(length)
    lengths = lengths or [room]  # of a short text, whose first draw is too long
    gaps = sorted(rng.sample(range(n - sum(lengths) + 1), len(lengths)))  # tokens kept in front of each span
    return [(gap + sum(lengths[:i]), length) for i, (gap, length) in enumerate(zip(gaps, lengths, strict=True))]


def draw_sentences(rng, ids, end_ids):
    """Whole sentences of up to 15 % of the tokens, drawn in random order; spans where none is that short.

    end_ids: tokens that end a sentence. What stands behind the last of them is no whole sentence.
    """
    ends = [place + 1 for place, token in enumerate(ids) if token in end_ids]
    sentences = [(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    left, drawn = int(SHARE * len(ids)), []
    for start, length in rng.sample(sentences, len(sentences)):
        if length <= left:
            drawn.append((start, length))
            left -= length
    return sorted(drawn)


def draw_document(rng, n):
    """One span: the end of the text, half of it to all."""
    length = rng.randint((n + 1) // 2, n)
    return [(n - length, length)]


def cut_out(ids, spans, mask_id, start_id, end_id, rng):
    """The `BlankRow` of a text whose spans [(start, length), ...], ascending, are cut out."""
    part_a, blanks, place = [], [], 0
    for start, length in spans:
        part_a += [*ids[place:start], mask_id]
        blanks.append((len(part_a) - 1, list(ids[start:start + length])))
        place = start + length
    part_a += ids[place:]
    tokens, targets = list(part_a), [IGNORE] * len(part_a)
    positions = [(place, 0) for place in range(len(part_a))]
    for mask_place, span in rng.sample(blanks, len(blanks)):
        tokens += [start_id, *span]
        targets += [*span, end_id]
        positions += [(mask_place, within) for within in range(1, len(span) + 2)]
    return BlankRow(tokens, targets, positions, len(part_a))


def prefix_mask(split_B, T):
    """What each token may see, (B, T, T) bool: the first split_B of its row, and what stands before it.

    >>> prefix_mask(torch.tensor([2]), 3).int().tolist()
    [[[1, 1, 0], [1, 1, 0], [1, 1, 1]]]
    """
    places = torch.arange(T, device=split_B.device)
    return (places[None, None, :] < split_B[:, None, None]) | (places[None, :] <= places[:, None])


def rotations_2d(positions, config):
    """RoPE by two positions (..., 2) -> (..., d/2) complex64: the first half of a head's pairs turn by the first, the
    second half by the second, each with the frequencies of a head half as wide. ValueError where d is odd in fours."""
    frequencies = rope_frequencies(config.head_dim // 2, config.rope_theta, config.rope_scaling)
    return torch.cat([rope_rotations(positions[..., i], frequencies) for i in (0, 1)], -1)


def blank_losses(model, rows, config, device="cpu"):
    """-log p of every target of some `BlankRow`s, (N,) fp32. model: the Transformer of that config, or its wrapper."""
    tokens_BT, targets_BT = (pad_rows([getattr(row, name) for row in rows], fill, device=device)
                             for name, fill in (("tokens", 0), ("targets", IGNORE)))
    T, split_B = tokens_BT.shape[1], torch.tensor([row.split for row in rows], device=device)
    positions_BT2 = torch.stack([F.pad(torch.tensor(row.positions), (0, 0, 0, T - len(row.positions))) for row in rows])
    layout = rotations_2d(positions_BT2.to(device), config), prefix_mask(split_B, T)  # nothing sees the padding behind
    learned_BT = targets_BT != IGNORE
    logits_NV = model(tokens_BT, logits_at_BT=learned_BT, layout=layout)
    return F.cross_entropy(logits_NV, targets_BT[learned_BT], reduction="none")


class Corruption:
    """`corruption(ids, seed)`: the `BlankRow` of a text, the same for the same seed. What is cut out is drawn from
    `mixture`: "spans", "sentences", "document"."""

    def __init__(self, tokenizer, mixture=MIXTURE):
        self.ids, self.mixture = tokenizer.special_tokens, mixture
        self.sentence_ends = {i for i in range(tokenizer.vocab_size)
                              if tokenizer.decode([i], show_special=True).endswith(SENTENCE_ENDS)}

    def __call__(self, ids, seed):
        rng = random.Random(str(seed))
        kind, spans = self.mixture[rng.randrange(len(self.mixture))], []
        if kind == "document":
            spans = draw_document(rng, len(ids))
        elif kind == "sentences":
            spans = draw_sentences(rng, ids, self.sentence_ends)
        if not spans:  # no sentence is short enough
            kind, spans = "spans", draw_spans(rng, len(ids))
        return cut_out(ids, spans, self.ids[MASKS[kind]], self.ids[START], self.ids[END], rng)


def choose_run(kind, objective, tokenizer, shape, config):
    """The class of run for `pretrain`: `kind`, or a `BlankRun` by "blank"; ValueError where they do not fit."""
    if (objective == "blank") != fills_blanks(tokenizer):
        has = "has" if fills_blanks(tokenizer) else "lacks"
        raise ValueError(f"objective {objective}: the model's tokenizer {has} the tokens of blank infilling, such as "
                         f"{START}. Go on with the model's own objective, or begin with random weights")
    if objective == "blank" and (config.seq_len < 20 or shape.head_dim % 4):
        raise ValueError(f"seq_len {config.seq_len}, head_dim {shape.head_dim}: blank infilling needs at least 20 "
                         "tokens, and a multiple of 4 for its two positions")
    if objective == "blank" and kind is not PretrainRun:
        raise ValueError(f"objective blank does not go with a {kind.__name__}: leave --shard out")
    return partial(BlankRun, tokenizer=tokenizer) if objective == "blank" else kind


class BlankRun(PretrainRun):
    """A run of pretraining by blank infilling; rows, with both their parts, have up to seq_len tokens."""

    name = "blanks"

    def __init__(self, model, train_tokens, held_out_tokens, config, out_dir, facts=None, *, tokenizer):
        super().__init__(model, train_tokens, held_out_tokens, config, out_dir, facts)
        self.window = config.seq_len * 10 // 13  # 15 % in spans of one token: each adds a mask and a start
        self.batches = batches_of(train_tokens, self.batches.batch_size, self.window, config.seed)
        self.corrupt = Corruption(tokenizer)

    def losses(self, step):
        texts = self.batches(step)[0].tolist()
        rows = [self.corrupt(ids, (self.config.seed, step, n)) for n, ids in enumerate(texts)]
        learned = sum(target != IGNORE for row in rows for target in row.targets)
        size = self.config.batch_size
        for batch in shard([rows[i:i + size] for i in range(0, len(rows), size)], self.learner):
            yield blank_losses(self.learner, batch, self.model.config, self.device).sum() / learned * self.processes

    @torch.no_grad()
    def held_out_loss(self):
        """Mean nats per target of the held-out text, with the same blanks in every call."""
        tokens, size = self.held_out_tokens, self.config.batch_size
        lengths = [len(source) for source in (tokens.tokens if isinstance(tokens, Mixture) else [tokens])]
        width = min(self.window, min(lengths) - 1)
        windows, n = batches_of(tokens, 1, width, 0), sum((length - 1) // width for length in lengths)
        n = min(self.config.eval_windows or n, n)
        rows = [self.corrupt(windows(i)[0][0].tolist(), ("held out", i)) for i in range(n)]
        with in_eval_mode(self.model):
            losses = [blank_losses(self.model, rows[i:i + size], self.model.config, self.device)
                      for i in range(0, n, size)]
        return torch.cat(losses).mean().item()


@torch.inference_mode()
def fill_blanks(model, tokenizer, ids, max_new_tokens=64, sampling=GREEDY, seed=0):
    """What the model writes into each blank of a text, a list of ids for each mask token in `ids`, in their order.

    A blank is full at the end token, at one of the tokenizer's own (of the text), or after max_new_tokens. Each sees
    the whole text and the blanks before it. ValueError where all this is too long for the model.
    """
    names, config, weight = tokenizer.special_tokens, model.config, model.tok_embeddings.weight
    blanks = [place for place, token in enumerate(ids) if token in mask_ids(tokenizer)]
    cache = KVCache(config, 1, len(ids) + len(blanks) * (max_new_tokens + 1), weight.dtype, weight.device)
    stops, generator = {names[END], *tokenizer.end_ids}, torch.Generator(weight.device).manual_seed(seed)

    def read(tokens, positions):
        rotations = rotations_2d(torch.tensor(positions, device=weight.device), config)
        return model.hidden_states(torch.tensor([tokens], device=weight.device), cache, layout=(rotations, None))[:, -1]

    read(ids, [(place, 0) for place in range(len(ids))])
    filled = []
    for place in blanks:
        written, token = [], names[START]
        while len(written) < max_new_tokens:
            hidden_1D = read([token], [(place, len(written) + 1)])
            token = sample(model.logits(hidden_1D), sampling, generator).item()
            if token in stops:
                break
            written.append(token)
        filled.append(written)
    return filled


def mask_ids(tokenizer):
    """The ids of the three mask tokens."""
    return {tokenizer.special_tokens[name] for name in MASKS.values()}


def fill_text(model, tokenizer, text, max_new_tokens=64, sampling=GREEDY, seed=0):
    """The text with its blanks ([MASK], [sMASK], [gMASK]) filled; without one it is continued, as behind a [gMASK]."""
    ids = tokenizer.encode(text, bos=tokenizer.begins, allowed_special=list(MASKS.values()))
    if not mask_ids(tokenizer) & set(ids):
        ids.append(tokenizer.special_tokens[MASKS["document"]])
    filled = iter(fill_blanks(model, tokenizer, ids, max_new_tokens, sampling, seed))
    return tokenizer.decode([token for one in ids
                             for token in (next(filled) if one in mask_ids(tokenizer) else [one])])
