"""Hugging Face's tokenizer.json, as far as it describes a LLaMA's BPE.

Two kinds: byte-level BPE with a list of merges (Llama 3, SmolLM), and a SentencePiece vocabulary with byte fallback
(Llama 1 and 2), whose merges are in the order of its scores. Anything else in the file is refused by name.
Source: https://github.com/huggingface/tokenizers.
"""

import json

from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN
from .byte_bpe import BYTE_TO_CHARACTER, GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer, spelled
from .sentencepiece import BYTE_PIECES, Piece, SentencePieceTokenizer, model_bytes

KNOWN_PATTERNS = (LLAMA3_WORDS, GPT2_WORDS, SINGLE_DIGITS)  # a foreign pattern could be made to run for ever
BEGINS = ("<|begin_of_text|>", "<s>", "<|startoftext|>", "<|im_start|>")  # where no settings beside it name them
ENDS = ("<|end_of_text|>", "</s>", "<|endoftext|>", "<|im_end|>")


def read_tokenizer_json(data, settings=None):
    """The tokenizer in the bytes of a tokenizer.json. `settings`: the content of tokenizer_config.json, which names
    the begin and end tokens. ValueError for a damaged file, or one that describes another kind of tokenizer."""
    try:
        content = json.loads(data)
        model, merges = content["model"], [_pair(merge) for merge in content["model"]["merges"]]
        vocab, added = model["vocab"], {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
        numbers = [*vocab.values(), *added.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a tokenizer.json of BPE type, or damaged ({type(error).__name__}: {error})") from None
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in numbers):
        raise ValueError("an id in tokenizer.json is not a whole number from 0 up: the file is damaged")
    if not all(isinstance(name, str) for name in added):
        raise ValueError("an added token of tokenizer.json is not a string: the file is damaged")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"tokenizer.json holds a model of type {model['type']!r}: only BPE is read here")
    if model.get("byte_fallback"):
        return _sentencepiece(content, vocab, merges, added)
    words, prefix_space = _words(content.get("pre_tokenizer"))
    if content.get("normalizer") is not None:
        raise ValueError(f"tokenizer.json has the normalizer {_kind(content['normalizer'])!r}: LLaMA's has none")
    ids = {spelled(token): index for token, index in vocab.items() if token not in added}
    pairs = {(spelled(left), spelled(right)): rank for rank, (left, right) in enumerate(merges)}
    if None in ids or any(None in pair for pair in pairs):
        raise ValueError("tokenizer.json spells a token in other than GPT-2's byte characters: not byte-level BPE")
    lost = next((pair for pair in pairs if pair[0] + pair[1] not in ids), None)
    if lost:
        raise ValueError(f"tokenizer.json joins {lost[0]!r} and {lost[1]!r} to no token of its vocabulary")
    begin, end = _ends(settings or {}, added)
    return ByteBpeTokenizer(ids, added, words, pairs, bool(model.get("ignore_merges")), begin, end, file=data,
                            prefix_space=prefix_space)


def tokenizer_json(tokenizer):
    """The bytes of a tokenizer.json for a `ByteBpeTokenizer`; the inverse of `read_tokenizer_json`."""
    def text(token):
        return "".join(BYTE_TO_CHARACTER[byte] for byte in token)

    by_id = sorted(tokenizer.ids.items(), key=lambda item: item[1])
    split = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
             for pattern in tokenizer.words]
    byte_level = {"type": "ByteLevel", "add_prefix_space": tokenizer.prefix_space, "trim_offsets": True,
                  "use_regex": False}
    added = [{"id": index, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for name, index in tokenizer.special_tokens.items()]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": tokenizer.whole_words,
             "vocab": {text(token): index for token, index in by_id},
             "merges": [f"{text(a)} {text(b)}" for a, b in tokenizer.merges()]}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
               "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, byte_level]},
               "post_processor": None, "decoder": byte_level, "model": model}
    return json.dumps(content, ensure_ascii=False).encode()


def _pair(merge):
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    if not left or not right or not isinstance(left, str) or not isinstance(right, str):
        raise ValueError(f"{merge!r:.60} is no merge of two tokens")
    return left, right


def _kind(part):
    return part.get("type") if isinstance(part, dict) else part


def _words(part):
    """(patterns, whether a space is put in front) of the "pre_tokenizer" part."""
    steps = part.get("pretokenizers") if _kind(part) == "Sequence" else [part]
    words, prefix_space = [], False
    for step in steps if isinstance(steps, list) else [steps]:
        kind, pattern = _kind(step), None
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = (step.get("pattern") or {}).get("Regex")
        elif kind == "Digits" and step.get("individual_digits"):
            pattern = SINGLE_DIGITS
        elif kind == "ByteLevel":
            prefix_space |= bool(step.get("add_prefix_space"))
            pattern = GPT2_WORDS if step.get("use_regex", True) else ""
        if pattern not in ("", *KNOWN_PATTERNS):
            raise ValueError(f"tokenizer.json cuts text by {json.dumps(step)[:120]}: not known here")
        words += [pattern] if pattern else []
    return words, prefix_space


def _ends(settings, added):
    """Names of the begin and end tokens: as tokenizer_config.json says, else the first customary ones there are."""
    names = []
    for key, customary in (("bos_token", BEGINS), ("eos_token", ENDS)):
        given = settings.get(key)
        given = given.get("content") if isinstance(given, dict) else given
        names.append(given if given in added else next((name for name in customary if name in added), None))
    return names


def _sentencepiece(content, vocab, merges, added):
    """Llama 2's: a piece's score is minus the place of the first merge that makes it."""
    text = json.dumps(content.get("normalizer"), ensure_ascii=False)
    if content.get("pre_tokenizer") is not None or '"Prepend"' not in text or "\u2581" not in text:
        raise ValueError("tokenizer.json has byte_fallback but is not in the form of Llama 2's: use its "
                         "tokenizer.model instead")
    scores = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    by_id = {index: piece for piece, index in {**vocab, **added}.items()}
    if sorted(by_id) != list(range(len({**vocab, **added}))):
        raise ValueError("the ids of tokenizer.json do not count from 0 up without a gap")
    unknown, bytes_ = content["model"].get("unk_token"), set(BYTE_PIECES)
    pieces = []
    for index in range(len(by_id)):
        piece = by_id[index]
        kind = UNKNOWN if piece == unknown else CONTROL if piece in added else BYTE if piece in bytes_ else NORMAL
        pieces.append(Piece(piece, scores.get(piece, -float(len(merges))), kind))
    return SentencePieceTokenizer(model_bytes(pieces))
