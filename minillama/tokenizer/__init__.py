"""Tokenizers: text to ids and back. `load_tokenizer` recognises a file by its content."""

from pathlib import Path

from .bpe_training import train_bpe
from .sentencepiece import SentencePieceTokenizer

__all__ = ["SentencePieceTokenizer", "load_tokenizer", "train_bpe"]


def load_tokenizer(path):
    """Read a tokenizer file, whatever its name; ValueError if its content is of no known form.

    Known: SentencePiece BPE models (LLaMA 1 and 2, Mistral: tokenizer.model).
    """
    data = Path(path).read_bytes()
    # further forms are told apart here, each by its first bytes
    if data[:1] == b"\x0a":  # protobuf, field 1 (a piece), wire type 2
        return SentencePieceTokenizer(data)
    raise ValueError(f"{path} is no tokenizer we know (it begins with {data[:16]!r}): "
                     "SentencePiece .model files are read")
