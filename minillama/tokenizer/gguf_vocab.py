"""The tokenizers that GGUF files carry among their settings: SentencePiece-like ("llama") and byte-level BPE ("gpt2").

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the ways of cutting words (`tokenizer.ggml.pre`)
are in llama.cpp's src/llama-vocab.cpp.
"""

from .added_tokens import AddedToken, TokenSettings
from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from .byte_bpe import GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer, read_spelling, spell_bytes
from .character_map import require_plain_bpe
from .sentencepiece import Piece, SentencePieceTokenizer, model_bytes
from .tokenizer_json import tokenizer_json

WORDS = {"llama-bpe": [LLAMA3_WORDS], "smollm": [SINGLE_DIGITS, GPT2_WORDS], "gpt-2": [GPT2_WORDS],
         # llama.cpp's own rule for a file that names none: no model was trained on it
         "default": [r"[\p{P}$+<=>^~|]+", GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"]}
SAME = dict.fromkeys(("llama3", "llama-v3", "falcon3", "midm-2.0", "pixtral"), "llama-bpe")
ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>")  # as llama.cpp


def read_gguf_vocab(settings, path="the file"):
    """The tokenizer in the settings of a GGUF file, None if it carries none. ValueError if damaged or not known."""
    model = settings.get("tokenizer.ggml.model", "no_vocab")
    if model == "no_vocab" and "tokenizer.ggml.tokens" not in settings:
        return None
    try:
        tokens = _list(settings, "tokens", str)
        kinds = _list(settings, "token_type", int, len(tokens), [NORMAL] * len(tokens))
        read = {"llama": _sentencepiece, "gpt2": _byte_bpe}.get(str(model))
        if read is None or not {*kinds} <= {*range(NORMAL, BYTE + 1)}:
            raise ValueError(f"tokenizer.ggml.model is {model!r:.80}: known are 'llama' and 'gpt2', with token_type "
                             f"{NORMAL} to {BYTE}")
        return read(settings, tokens, kinds, path).obey(_settings(settings, tokens, kinds, model))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _settings(settings, tokens, kinds, model):
    """What the header says of the tokens; where it is silent, what llama.cpp takes."""
    def of(name, kind):
        value = settings.get(f"tokenizer.ggml.{name}")
        if value is not None and type(value) is not kind:
            raise ValueError(f"tokenizer.ggml.{name} is {value!r:.80}: expected {kind.__name__}")
        return value

    ids = {"bos": 1, "eos": 2} if model == "llama" else {}
    for which in ("bos", "eos", "eot", "eom", "padding", "unknown"):
        if (index := of(f"{which}_token_id", int)) is not None:
            ids[which] = index
        if ids.get(which) in (-1, 2**32 - 1) and which not in ("bos", "eos"):  # llama.cpp's word for none
            del ids[which]
        elif which in ids and not 0 <= ids[which] < len(tokens):
            raise ValueError(f"tokenizer.ggml.{which}_token_id is {ids[which]}, and there are {len(tokens)} tokens")
    if model == "llama" and kinds[ids.get("unknown", 0)] != UNKNOWN:
        raise ValueError(f"tokenizer.ggml.unknown_token_id is {ids.get('unknown', 0)}, whose token_type is another's")
    names = {which: tokens[index] for which, index in ids.items()}
    added = tuple(AddedToken(tokens[index], index, kind == CONTROL) for index, kind in enumerate(kinds)
                  if kind in (CONTROL, USER_DEFINED))
    pre = settings.get("tokenizer.ggml.pre")
    begins = model == "llama" or SAME.get(pre, pre) == "llama-bpe"
    ends = {ids.get("eot"), ids.get("eom"), *(token.id for token in added if token.text in ENDS)} - {None}
    add_bos, template = of("add_bos_token", bool), settings.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise ValueError("tokenizer.chat_template is no text: the file is damaged")
    if of("add_space_prefix", bool) and model == "gpt2":
        raise ValueError("tokenizer.ggml.add_space_prefix is True: a byte-level vocabulary's is False here")
    return TokenSettings(added, names.get("bos"), names.get("eos"), names.get("padding"),
                         begins if add_bos is None else add_bos, of("add_eos_token", bool), frozenset(ends),
                         settings.get("tokenizer.chat_template"))


def _list(settings, name, kind, length=None, default=None):
    values = settings.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(values, list) or (length is not None and len(values) != length) or any(
            type(value) is not kind for value in values):
        raise ValueError(f"tokenizer.ggml.{name} is no list of {kind.__name__}{f', {length} of them' * bool(length)}: "
                         "damaged")
    return values


def _sentencepiece(settings, tokens, kinds, path):
    scores = _list(settings, "scores", float, len(tokens))
    pieces = [Piece(*row) for row in zip(tokens, scores, kinds, strict=True)]
    prefix = settings.get("tokenizer.ggml.add_space_prefix") is not False
    return SentencePieceTokenizer(model_bytes(pieces, byte_fallback=BYTE in kinds, prefix=prefix))


def _byte_bpe(settings, tokens, kinds, path):
    pre = settings.get("tokenizer.ggml.pre", "default")
    pre = SAME.get(str(pre), pre)
    if str(pre) not in WORDS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}: known are {', '.join([*WORDS, *SAME])}")
    added = {tokens[i]: i for i, kind in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}
    ids = {read_spelling(token): i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
           if kind not in (CONTROL, USER_DEFINED, UNUSED)}
    merges = {}
    for rank, merge in enumerate(_list(settings, "merges", str)):
        left, _, right = merge.partition(" ")
        merges[read_spelling(left), read_spelling(right)] = rank
    lost = next((pair for pair in merges if None in pair or pair[0] + pair[1] not in ids), None)
    if len(set(tokens)) < len(tokens):
        raise ValueError("tokenizer.ggml.tokens holds a token twice: damaged")
    if None in ids or lost is not None:
        raise ValueError("a token or merge is not in GPT-2's byte characters, or joins to no token: damaged")
    whole_words = pre == "llama-bpe"
    tokenizer = ByteBpeTokenizer(ids, added, WORDS[pre], merges, whole_words, file=tokenizer_json)
    tokenizer.n_rows = len(tokens)
    if pre == "default":
        tokenizer.notes = (f"{path} does not say how its model's text is cut into words (tokenizer.ggml.pre): it is "
                           "cut by llama.cpp's own rule, and the model may read it worse: get a newer file",)
    return tokenizer


def gguf_vocab(tokenizer, n_rows=0):
    """The settings that carry this tokenizer, padded to the model's rows; the inverse of `read_gguf_vocab`."""
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    if tokenizer.vocab_size > n_rows > 0:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model {n_rows} rows for them: "
                         "llama.cpp refuses such a file")
    others = sorted(tokenizer.further_ends - {tokenizer.eos_id})
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id,
           **dict(zip(("eot", "eom"), others, strict=False))}  # of more ends llama.cpp finds those with the usual names
    settings = {f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None}
    settings |= {"tokenizer.ggml.add_bos_token": tokenizer.begins, "tokenizer.ggml.add_eos_token": tokenizer.add_eos}
    if tokenizer.chat_template:
        settings["tokenizer.chat_template"] = tokenizer.chat_template
    pre = next((name for name, words in WORDS.items() if words == getattr(tokenizer, "words", None)), None)
    if pre is None and not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError("llama.cpp has no name for the way this tokenizer cuts words: leave the tokenizer out")
    rows = [*map(_row(tokenizer), range(tokenizer.vocab_size))]
    rows += [Piece("", 0.0, UNUSED)] * (n_rows - len(rows))
    rows = [row if row.text else Piece(f"[PAD{index}]", row.score, UNUSED) for index, row in enumerate(rows)]
    texts, scores, kinds = (list(column) for column in zip(*rows, strict=True))
    settings |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    if isinstance(tokenizer, SentencePieceTokenizer):
        require_plain_bpe(tokenizer.rules, "a GGUF file")
        return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.scores": scores,
                "tokenizer.ggml.add_space_prefix": tokenizer.prefix != "never", **settings}
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, **settings,
            "tokenizer.ggml.merges": [f"{spell_bytes(a)} {spell_bytes(b)}" for a, b in tokenizer.merges()]}


def _row(tokenizer):
    """The function from an id to its `Piece` in a GGUF file."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.piece

    def row(index):
        token, added = tokenizer.token_bytes(index), tokenizer._by_id.get(index)
        if added:
            return Piece(added.text, 0.0, CONTROL if added.special else USER_DEFINED)
        return Piece(spell_bytes(token))

    return row
