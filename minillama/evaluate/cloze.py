"""Understanding as a cloze question (arXiv 2001.07676, section 3): a pattern puts a text beside a blank, a verbalizer
names the word for each label, and the model says which word fits. No weight is new, as a head of classes would be.

    p(label | text) = softmax over the labels of log p(word of the label | the pattern with the text)

A model that fills blanks (GLM, arXiv 2103.10360, section 2.3) reads the pattern with a [MASK] in it, and writes the
word and its end there. A causal one reads from left to right: its log p is that of the word and of all behind the
blank, whose sum over the labels is no other than Bayes' rule. Zero-shot as it is; few-shot with worked examples in
front; tuned by `cloze_loss`.
"""

import random
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from minillama.collate import pad_rows
from minillama.evaluate.likelihood import encode_pair, log_likelihoods
from minillama.train.blank_infilling import END, MASKS, START, blank_losses, cut_out
from minillama.train.perplexity import in_eval_mode

MASK = MASKS["spans"]


@dataclass(frozen=True)
class Cloze:
    """pattern: a text with {text} in it, and {blank} where a label's word is to be written, else at its end; words: one
    for each label, with the space that stands before it."""

    pattern: str
    words: tuple

    def __post_init__(self):
        if self.pattern.count("{text}") != 1 or self.pattern.count("{blank}") > 1 or len(self.words) < 2 or len(
                set(self.words)) < len(self.words):
            raise ValueError(f"pattern {self.pattern!r}, words {self.words}: the pattern needs {{text}} once and "
                             "{blank} at most once, and each of two labels or more a word of its own")

    def question(self, text, examples=()):
        """(what stands before the blank, what stands behind it) of the pattern with the text, behind worked examples
        [(text, number of its label), ...]."""
        shown = [self.words[label].join(self.question(one)) + "\n\n" for one, label in examples]
        before, _, behind = self.pattern.partition("{blank}")
        return "".join(shown) + before.replace("{text}", text), behind.replace("{text}", text)

    def pairs(self, tokenizer, texts, examples=()):
        """(ids before the word, ids of the word and what is behind it), for each text and each label."""
        asked = [self.question(text, examples) for text in texts]
        return [encode_pair(tokenizer, before, word + behind) for before, behind in asked for word in self.words]

    def rows(self, tokenizer, texts, examples=()):
        """`BlankRow`s, for each text and each label: the word is cut out of the pattern."""
        ids, found = tokenizer.special_tokens, []
        for before, behind in (self.question(text, examples) for text in texts):
            whole = tokenizer.encode(before + MASK + behind, bos=tokenizer.begins, allowed_special=[MASK])
            place = [i for i, token in enumerate(whole) if token == ids[MASK]][before.count(MASK)]
            for word in (encode_pair(tokenizer, before, word)[1] for word in self.words):
                found.append(cut_out([*whole[:place], *word, *whole[place + 1:]], [(place, len(word))], ids[MASK],
                                     ids[START], ids[END], random.Random(0)))
        return found


def label_scores(model, tokenizer, cloze, texts, examples=(), batch_size=16):
    """log p of each label's word, (texts, labels) float64: the largest is the answer, zero-shot or behind examples."""
    if model.config.objective == "causal":
        sums = log_likelihoods(model, cloze.pairs(tokenizer, texts, examples), batch_size)
        return torch.tensor(sums, dtype=torch.float64).view(len(texts), -1)
    rows = cloze.rows(tokenizer, texts, examples)
    with torch.no_grad(), in_eval_mode(model):
        sums = [log_p_of_blanks(model, rows[i:i + batch_size]) for i in range(0, len(rows), batch_size)]
    return torch.cat(sums).double().view(len(texts), -1)


def log_p_of_blanks(model, rows):
    """log p of what stands in the blanks of each `BlankRow`, their ends included, (rows,), with its gradient."""
    losses_N = blank_losses(model, rows, model.config, model.tok_embeddings.weight.device)
    return -torch.stack([part.sum() for part in losses_N.split([len(row.tokens) - row.split for row in rows])])


def log_p_behind(model, pairs):
    """log p of the second of each pair of ids behind the first, (pairs,), with its gradient."""
    tokens_BT = pad_rows([[*context, *word] for context, word in pairs], device=model.tok_embeddings.weight.device)
    log_p_BTV = model(tokens_BT).log_softmax(-1)  # the padding on the right is not seen
    return torch.stack([log_p_BTV[row, range(len(context) - 1, len(context) + len(word) - 1), word].sum()
                        for row, (context, word) in enumerate(pairs)])


def cloze_loss(model, tokenizer, cloze, texts, labels):
    """-log p(label | text), the mean, with its gradient: what tuning on labelled texts makes small."""
    causal = model.config.objective == "causal"
    sums = (log_p_behind(model, cloze.pairs(tokenizer, texts)) if causal else
            log_p_of_blanks(model, cloze.rows(tokenizer, texts)))
    return F.cross_entropy(sums.view(len(texts), -1), torch.tensor(labels, device=sums.device))
