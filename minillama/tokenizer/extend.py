"""A vocabulary extended by the pieces of another one, as Chinese-LLaMA did (arXiv 2304.08177, section 2.2; its 20,000
Chinese pieces, less those that LLaMA knows, make 32,000 to 49,953), and by special tokens.

Old pieces keep their ids. In a SentencePiece vocabulary new ones have scores above all old ones, so they are joined
first. In Chinese-LLaMA's merge all have the score 0. Of such equals SentencePiece joins the leftmost, which the list of
merges in a tokenizer.json cannot say: transformers cuts one Chinese line in three otherwise. Here each has a score of
its own. A new piece is built step by step out of two neighbours that are pieces themselves. One that cannot be built
so is never used, and its text is cut in two or more: in Chinese-LLaMA's merge that is the lot of 345.

In a byte-level vocabulary (Llama 3's) new merges come behind all old ones: a text is cut as before, and neighbours are
joined further. Each merge needs a token, so a character of three bytes may bring one of its first two bytes along.
"""

from minillama.system.files import require_regular
from minillama.tokenizer import load_tokenizer

from .added_tokens import AddedToken, TokenSettings
from .bpe import join_pairs
from .bpe_encoder import CONTROL, NORMAL, USER_DEFINED
from .byte_bpe import ByteBpeTokenizer
from .piece_trainer import DIGITS
from .sentencepiece import Piece, SentencePieceTokenizer, append_pieces
from .tokenizer_json import tokenizer_json
from .word_counts import SPACE


def pieces_of(path):
    """The pieces in a file: those of a SentencePiece tokenizer of any type, or a byte-level one's tokens that are text.
    ValueError for a damaged file and for WordPiece, whose pieces mean another thing."""
    data = require_regular(path).read_bytes()
    if data[:1] == b"\n":
        try:
            return SentencePieceTokenizer(data).pieces
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tokenizer = load_tokenizer(path)
    if isinstance(tokenizer, ByteBpeTokenizer):
        texts = [token.decode("utf-8", "replace") for token in sorted(tokenizer.ids, key=tokenizer.ids.get)]
        return [Piece(text.replace(" ", SPACE)) for text in texts if text.encode() in tokenizer.ids]
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError(f"{path} holds a {type(tokenizer).__name__}: pieces are taken from SentencePiece and "
                         "byte-level files")
    return tokenizer.pieces


def new_pieces(tokenizer, pieces, split_digits=False):
    """Those of `pieces` (`sentencepiece.Piece`s) to append to a SentencePieceTokenizer, in their order: text
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


def new_merges(tokenizer, pieces, split_digits=False):
    """({bytes: id}, [(left, right), ...]) to put behind those of a ByteBpeTokenizer, so that the text of each of
    `pieces` becomes one token. Text that the tokenizer's pattern cuts apart is left out: it could never be one."""
    ids, ranks = {}, {pair: rank for rank, pair in enumerate(tokenizer.merges())}
    n_old, texts = len(ranks), [text.replace(SPACE, " ") for text, _, kind in pieces if kind in (NORMAL, USER_DEFINED)]
    for text in texts:
        if text.encode() in tokenizer.ids or tokenizer.split(text) != [text] or split_digits and joins_digits(text):
            continue
        while len(parts := join_pairs([bytes([byte]) for byte in text.encode()],
                                      lambda left, right: ranks.get((left, right)))) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
            if (token := parts[0] + parts[1]) not in tokenizer.ids:
                ids.setdefault(token, tokenizer.vocab_size + len(ids))
    return ids, list(ranks)[n_old:]


def extend_tokenizer(tokenizer, pieces=(), split_digits=False, special_tokens=()):
    """A tokenizer with `pieces` behind the old vocabulary, then texts that become special tokens (for a chat, say).

    tokenizer: a SentencePieceTokenizer of type bpe, or a ByteBpeTokenizer. Its settings and added tokens stay.
    TypeError for another kind; ValueError for another type, where nothing is new, and for a token that is known.
    """
    if not isinstance(tokenizer, (SentencePieceTokenizer, ByteBpeTokenizer)):
        raise TypeError(f"a {type(tokenizer).__name__} cannot be extended: only SentencePiece's and byte-level BPE can")
    for place, text in enumerate(special_tokens):
        if not text or text in special_tokens[:place] or tokenizer._vocabulary_id(text) is not None or (
                text in tokenizer.added):
            raise ValueError(f"the special token {text!r} is empty, given twice, or in the vocabulary already: leave "
                             "it out")
    extend = _extend_byte_level if isinstance(tokenizer, ByteBpeTokenizer) else _extend_sentencepiece
    new, first = extend(tokenizer, pieces, split_digits, special_tokens)
    if first == tokenizer.vocab_size and (pieces or not special_tokens):
        raise ValueError(f"none of {len(pieces)} pieces is new to the {tokenizer.vocab_size} that are there")
    specials = [AddedToken(text, first + place) for place, text in enumerate(special_tokens)]
    names = [index if index is None else tokenizer.id_to_piece(index)
             for index in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)]
    return new.obey(TokenSettings((*tokenizer.added.values(), *specials), *names, tokenizer.add_bos, tokenizer.add_eos,
                                  tokenizer.further_ends, tokenizer.chat_template, tokenizer.prefix))


def _extend_byte_level(tokenizer, pieces, split_digits, _):
    """(the tokenizer with new merges, the first id that is free behind them)."""
    ids, pairs = new_merges(tokenizer, pieces, split_digits)
    merges = {pair: rank for rank, pair in enumerate([*tokenizer.merges(), *pairs])}
    new = ByteBpeTokenizer({**tokenizer.ids, **ids}, {}, tokenizer.words, merges, tokenizer.whole_words,
                           file=tokenizer_json, prefix_space=tokenizer.prefix_space, backend=tokenizer.backend)
    return new, tokenizer.vocab_size + len(ids)


def _extend_sentencepiece(tokenizer, pieces, split_digits, special_tokens):
    """(the tokenizer with new rows in its .model, the id of the first special token among them)."""
    if tokenizer.rules.model_type != "bpe":  # a score of 0 would be a probability of 1
        raise ValueError(f"the model is of type {tokenizer.rules.model_type}: only bpe models can be extended")
    beside = tokenizer.pieces[len(tokenizer._vocabulary):]  # added by files beside the .model: now they stand in it
    if any(not piece.text for piece in beside):
        raise ValueError("added tokens leave a gap between their ids, which a .model cannot have: give them others")
    rows = [*beside, *new_pieces(tokenizer, pieces, split_digits)]
    model = append_pieces(tokenizer.model, rows + [Piece(text, 0.0, CONTROL) for text in special_tokens])
    return SentencePieceTokenizer(model, backend=tokenizer._asked), len(tokenizer._vocabulary) + len(rows)
