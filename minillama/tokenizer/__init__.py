"""Tokenizers: text to ids and back. `load_tokenizer` recognises a file by its content. Read `bpe` first."""

from pathlib import Path

from minillama.system.files import require_regular

from .byte_bpe import ByteBpeTokenizer
from .compiled import default_backend
from .llama2c_vocab import looks_like_llama2c_vocab, read_llama2c_vocab
from .sentencepiece import SentencePieceTokenizer
from .sentencepiece_training import train_bpe
from .tiktoken import looks_like_tiktoken, read_tiktoken
from .token_settings import read_token_settings
from .tokenizer_json import read_tokenizer_json
from .wordpiece import looks_like_wordpiece, read_wordpiece

FLOOR = 1  # imports from its own floor or a lower one
__all__ = ["ByteBpeTokenizer", "SentencePieceTokenizer", "default_backend", "load_tokenizer", "train_bpe"]


def load_tokenizer(path):
    """Read a tokenizer file, whatever its name; ValueError if its content is damaged or of no known form.

    Known: models of SentencePiece and Llama 3, tokenizer.json of BPE, BERT's vocab.txt and json, llama2.c's .bin.
    """
    path = Path(path)
    data = require_regular(path).read_bytes()
    try:
        if looks_like_llama2c_vocab(data):
            return read_llama2c_vocab(data)
        if data[:1] == b"\x0a":  # protobuf, field 1 (a piece), wire type 2
            return SentencePieceTokenizer(data).obey(read_token_settings(path.parent))
        if looks_like_tiktoken(data):
            return read_tiktoken(data).obey(read_token_settings(path.parent))
        if looks_like_wordpiece(data):
            return read_wordpiece(data, path.parent)
        if data.lstrip()[:1] == b"{":
            return read_tokenizer_json(data, path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path} is no tokenizer we know (it begins with {data[:16]!r}): SentencePiece .model, Llama 3's "
                     "tokenizer.model, tokenizer.json, vocab.txt and llama2.c's tokenizer.bin are read")
