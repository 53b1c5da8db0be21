"""Understanding as a cloze question (arXiv 2001.07676, section 3): a pattern puts a text before a blank, a verbalizer
names the word for each label, and the model says which word fits. No weight is new, as a head of classes would be.

    p(label | text) = softmax over the labels of log p(word of the label | the pattern with the text)

Zero-shot as it is; few-shot with worked examples in front; tuned by `cloze_loss`.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from minillama.collate import pad_rows
from minillama.evaluate.likelihood import encode_pair, log_likelihoods


@dataclass(frozen=True)
class Cloze:
    """pattern: a text with {text} in it, at whose end a label's word is to be written; words: one for each label."""

    pattern: str
    words: tuple

    def __post_init__(self):
        if self.pattern.count("{text}") != 1 or len(self.words) < 2 or len(set(self.words)) < len(self.words):
            raise ValueError(f"pattern {self.pattern!r}, words {self.words}: the pattern needs {{text}} once, and each "
                             "of two labels or more a word of its own")

    def question(self, text, examples=()):
        """The pattern with the text, behind worked examples [(text, number of its label), ...]."""
        shown = [self.question(one) + self.words[label] + "\n\n" for one, label in examples]
        return "".join(shown) + self.pattern.replace("{text}", text)

    def pairs(self, tokenizer, texts, examples=()):
        """(ids of the question, ids of the word), for each text and each label."""
        return [encode_pair(tokenizer, self.question(text, examples), word) for text in texts for word in self.words]


def label_scores(model, tokenizer, cloze, texts, examples=(), batch_size=16):
    """log p of each label's word, (texts, labels) float64: the largest is the answer, zero-shot or behind examples."""
    sums = log_likelihoods(model, cloze.pairs(tokenizer, texts, examples), batch_size)
    return torch.tensor(sums, dtype=torch.float64).view(len(texts), -1)


def cloze_loss(model, tokenizer, cloze, texts, labels):
    """-log p(label | text), the mean, with its gradient: what tuning on labelled texts makes small."""
    pairs = cloze.pairs(tokenizer, texts)
    tokens_BT = pad_rows([[*context, *word] for context, word in pairs], device=model.tok_embeddings.weight.device)
    log_p_BTV = model(tokens_BT).log_softmax(-1)  # the padding on the right is not seen
    sums = [log_p_BTV[row, range(len(context) - 1, len(context) + len(word) - 1), word].sum()
            for row, (context, word) in enumerate(pairs)]
    return F.cross_entropy(torch.stack(sums).view(len(texts), -1), torch.tensor(labels, device=tokens_BT.device))
