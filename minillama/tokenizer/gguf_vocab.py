"""The tokenizers that GGUF files carry among their settings: SentencePiece-like ("llama") and byte-level BPE ("gpt2").

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the ways of cutting words (`tokenizer.ggml.pre`)
are in llama.cpp's src/llama-vocab.cpp.
"""

from .bpe_encoder import BYTE, CONTROL, NORMAL, USER_DEFINED
from .byte_bpe import BYTE_TO_CHARACTER, GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer, spelled
from .sentencepiece import Piece, SentencePieceTokenizer, model_bytes
from .tokenizer_json import tokenizer_json

WORDS = {"llama-bpe": [LLAMA3_WORDS], "smollm": [SINGLE_DIGITS, GPT2_WORDS], "gpt-2": [GPT2_WORDS]}
SAME = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}


def read_gguf_vocab(settings, path="the file"):
    """The tokenizer in the settings of a GGUF file, None if it carries none. ValueError if damaged or not known."""
    model = settings.get("tokenizer.ggml.model")
    if model in (None, "no_vocab"):
        return None
    tokens = _list(settings, "tokens", str, path)
    kinds = _list(settings, "token_type", int, path, len(tokens), [NORMAL] * len(tokens))
    try:
        if model == "llama":
            return _sentencepiece(settings, tokens, kinds, path)
        if model == "gpt2":
            return _byte_bpe(settings, tokens, kinds, path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: tokenizer.ggml.model is {model!r}: known are 'llama' and 'gpt2'")


def _list(settings, name, kind, path, length=None, default=None):
    values = settings.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(values, list) or (length is not None and len(values) != length) or any(
            type(value) is not kind for value in values):
        raise ValueError(f"{path}: tokenizer.ggml.{name} is not a list of {length or ''} {kind.__name__}: damaged")
    return values


def _sentencepiece(settings, tokens, kinds, path):
    if settings.get("tokenizer.ggml.add_space_prefix", True) is not True:
        raise ValueError("tokenizer.ggml.add_space_prefix is false: a SentencePiece vocabulary without the space in "
                         "front is not read here")
    scores = _list(settings, "scores", float, path, len(tokens))
    pieces = [Piece(*row) for row in zip(tokens, scores, kinds, strict=True)]
    return SentencePieceTokenizer(model_bytes(pieces, byte_fallback=BYTE in kinds))


def _byte_bpe(settings, tokens, kinds, path):
    pre = settings.get("tokenizer.ggml.pre", "default")
    pre = SAME.get(pre, pre) if isinstance(pre, str) else pre
    if pre not in WORDS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}: known are {', '.join([*WORDS, *SAME])}")
    special = {index for index, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
    specials = {tokens[index]: index for index in sorted(special)}
    ids = {spelled(token): index for index, token in enumerate(tokens) if index not in special}
    merges = {}
    for rank, merge in enumerate(_list(settings, "merges", str, path)):
        left, _, right = merge.partition(" ")
        merges[spelled(left), spelled(right)] = rank
    lost = next((pair for pair in merges if None in pair or pair[0] + pair[1] not in ids), None)
    if None in ids or lost is not None:
        raise ValueError("a token or merge is not in GPT-2's byte characters, or joins to no token: damaged")
    begin, end, pad = (_name(settings, name, tokens) for name in ("bos", "eos", "padding"))
    whole_words = pre == "llama-bpe"
    return ByteBpeTokenizer(ids, specials, WORDS[pre], merges, whole_words, begin, end, pad, file=tokenizer_json)


def _name(settings, which, tokens):
    index = settings.get(f"tokenizer.ggml.{which}_token_id")
    return tokens[index] if type(index) is int and 0 <= index < len(tokens) else None


def gguf_vocab(tokenizer):
    """The settings that carry this tokenizer; the inverse of `read_gguf_vocab`."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    settings = {f"tokenizer.ggml.{name}_token_id": index for name, index in (
        ("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("unknown", tokenizer.unk_id),
        ("padding", tokenizer.pad_id)) if index is not None}
    if isinstance(tokenizer, SentencePieceTokenizer):
        texts, scores, kinds = (list(column) for column in zip(*tokenizer.pieces, strict=True))
        return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": texts,
                "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": kinds,
                "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": True, **settings}
    pre = next((name for name, words in WORDS.items() if words == tokenizer.words), None)
    if pre is None:
        raise ValueError("llama.cpp has no name for the way this tokenizer cuts words: leave the tokenizer out")
    tokens, kinds = [], []
    for index in range(tokenizer.vocab_size):
        token = tokenizer.token_bytes(index)
        tokens.append(tokenizer.id_to_piece(index) if token is None else _text(token))
        kinds.append(CONTROL if token is None else NORMAL)
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds, **settings,
            "tokenizer.ggml.merges": [f"{_text(a)} {_text(b)}" for a, b in tokenizer.merges()]}


def _text(token):
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)
