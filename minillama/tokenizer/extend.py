"""A vocabulary extended by the pieces of another one, as Chinese-LLaMA did (arXiv 2304.08177, section 2.2; its 20,000
Chinese pieces, less those that LLaMA knows, make 32,000 to 49,953).

Old pieces keep their ids. New ones stand behind them with scores above all of LLaMA's own, so they are joined first.
In Chinese-LLaMA's merge all have the score 0. Of such equals SentencePiece joins the leftmost, which the list of merges
in a tokenizer.json cannot say: transformers cuts one Chinese line in three otherwise. Here each has a score of its own.
The encoder builds a piece step by step out of two neighbours that are pieces themselves. A new piece that cannot be
built so is never used, and its text is cut in two or more: in Chinese-LLaMA's merge that is the lot of 345.
"""

from .bpe_encoder import NORMAL, USER_DEFINED
from .piece_trainer import DIGITS
from .sentencepiece import Piece, SentencePieceTokenizer, append_pieces


def new_pieces(tokenizer, pieces, split_digits=False):
    """Those of `pieces` (of `sentencepiece.read_pieces`) to append to a SentencePieceTokenizer, in their order: text
    that is no piece yet, scored n, n - 1, ..., 1. Control, byte and unknown pieces are never among them.

    split_digits: leave out also what holds a digit beside any other character. Such pieces undo LLaMA's rule that
    each digit is a token: with them, 2023 is cut into 20 and 23. (Chinese-LLaMA took them.)
    """
    known = {piece.text for piece in tokenizer.pieces}
    new = dict.fromkeys(text for text, _, kind in pieces if kind in (NORMAL, USER_DEFINED) and text not in known
                        and not (split_digits and joins_digits(text)))
    return [Piece(text, float(len(new) - place)) for place, text in enumerate(new)]


def joins_digits(text):
    """Whether a digit stands beside another character."""
    return len(text) > 1 and not DIGITS.isdisjoint(text)


def extend_tokenizer(tokenizer, pieces, split_digits=False):
    """A SentencePieceTokenizer with `new_pieces` behind the old vocabulary; TypeError for another kind, ValueError
    where nothing is new."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise TypeError(f"a {type(tokenizer).__name__} cannot be extended: only SentencePiece .model files can")
    if tokenizer.rules.model_type != "bpe":  # a score of 0 would be a probability of 1
        raise ValueError(f"the model is of type {tokenizer.rules.model_type}: only bpe models can be extended")
    new = new_pieces(tokenizer, pieces, split_digits)
    if not new:
        raise ValueError(f"none of {len(pieces)} pieces is new to the {tokenizer.vocab_size} that are there")
    return SentencePieceTokenizer(append_pieces(tokenizer.model, new))
