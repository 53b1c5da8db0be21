"""Packing: sequences joined end to end and cut into rows of one length, so that no place of a batch is padding."""

from dataclasses import dataclass

import torch

from minillama.config_checks import Range, check


@dataclass(frozen=True)
class Chunk:
    """One row of a packed batch: tokens, labels and the number of the document each token comes from, int64 (T,)."""

    tokens: torch.Tensor
    labels: torch.Tensor
    document_ids: torch.Tensor


def pack(sequences, length, eos_id=None):
    """Sequences joined end to end and cut every `length` tokens: a list of `Chunk`, in order, every token once, no
    padding. Only the last chunk may be shorter: train on it alone, or put it before the next call's sequences.

    eos_id: a (learned) EOS is set behind each sequence; None when they bring their own. A document cut in two goes on
    in the next chunk without its beginning. `document_ids` serve the model and the loss when documents must not see one
    another; without them a token may look back into its neighbour, as in pretraining.
    """
    check("length", length, int, Range(2))  # one token predicts the other
    end = [] if eos_id is None else [eos_id]
    tokens, labels, documents = [], [], []
    for number, sequence in enumerate(sequences):
        tokens += sequence.tokens + end
        labels += sequence.labels + end
        documents += [number] * (len(sequence.tokens) + len(end))
    cuts = range(0, len(tokens), length)
    return [Chunk(*(torch.tensor(x[i:i + length]) for x in (tokens, labels, documents))) for i in cuts]
