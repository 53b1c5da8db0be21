"""Hugging Face's tokenizer.json, as far as it describes a LLaMA's BPE.

Two kinds: byte-level BPE with a list of merges (Llama 3, SmolLM), and a SentencePiece vocabulary with byte fallback
(Llama 1 and 2), whose merges are in the order of its scores. Anything else in the file is refused by name.
Source: https://github.com/huggingface/tokenizers.
"""

import json
from dataclasses import replace

from .added_tokens import TokenSettings
from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from .byte_bpe import BYTE_TO_CHARACTER, GPT2_WORDS, LLAMA3_WORDS, SINGLE_DIGITS, ByteBpeTokenizer, spelled
from .sentencepiece import BYTE_PIECES, Piece, Rules, SentencePieceTokenizer, model_bytes
from .token_settings import added_tokens, added_tokens_json, read_token_settings
from .word_counts import SPACE

KNOWN_PATTERNS = (LLAMA3_WORDS, GPT2_WORDS, SINGLE_DIGITS)  # a foreign pattern could be made to run for ever
BEGINS = ("<|begin_of_text|>", "<s>", "<|startoftext|>", "<|im_start|>")  # where no settings beside it name them
ENDS = ("<|end_of_text|>", "</s>", "<|endoftext|>", "<|im_end|>")


def read_tokenizer_json(data, folder=None):
    """The tokenizer in the bytes of a tokenizer.json. `folder`: where the files lie that say more of its tokens
    (`token_settings`). ValueError for a damaged file, or one that describes another kind of tokenizer."""
    try:
        content = json.loads(data)
        model, merges = content["model"], [_pair(merge) for merge in content["model"]["merges"]]
        added = added_tokens(content.get("added_tokens") or [], "tokenizer.json")
        vocab, names = model["vocab"], {token.text for token in added}
        numbers = list(vocab.values())
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, _NoPair) as error:
        raise ValueError(f"not a tokenizer.json of BPE type, or damaged ({type(error).__name__}: {error})") from None
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in numbers):
        raise ValueError("an id in tokenizer.json is not a whole number from 0 up: the file is damaged")
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"tokenizer.json holds a model of type {model['type']!r}: only BPE is read here")
    settings = read_token_settings(folder, added) if folder else TokenSettings(tuple(added))
    if model.get("byte_fallback"):
        tokenizer = _sentencepiece(content, vocab, merges, settings)
        return tokenizer.obey(_filled(settings, content, tokenizer))
    words, prefix_space = _words(content.get("pre_tokenizer"))
    if content.get("normalizer") is not None:
        raise ValueError(f"tokenizer.json has the normalizer {_kind(content['normalizer'])!r}: LLaMA's has none")
    ids = {spelled(token): index for token, index in vocab.items() if token not in names}
    pairs = {(spelled(left), spelled(right)): rank for rank, (left, right) in enumerate(merges)}
    if None in ids or any(None in pair for pair in pairs):
        raise ValueError("tokenizer.json spells a token in other than GPT-2's byte characters: not byte-level BPE")
    lost = next((pair for pair in pairs if pair[0] + pair[1] not in ids), None)
    if lost:
        raise ValueError(f"tokenizer.json joins {lost[0]!r} and {lost[1]!r} to no token of its vocabulary")
    tokenizer = ByteBpeTokenizer(ids, {token.text: token.id for token in added}, words, pairs,
                                 bool(model.get("ignore_merges")), file=data, prefix_space=prefix_space)
    return tokenizer.obey(_filled(replace(settings, prefix=None), content, tokenizer))


def _filled(settings, content, tokenizer):
    """Where the settings beside the file say nothing: begin and end as its post_processor puts them around a text,
    their names by custom."""
    front, back = _around(content.get("post_processor"))
    known = {**dict.fromkeys(content["model"]["vocab"]), **tokenizer.added}
    bos = settings.bos or front or next((name for name in BEGINS if name in known), None)
    eos = settings.eos or back or next((name for name in ENDS if name in known), None)
    if settings.add_bos is None and settings.add_eos is None:  # the one flag alone means that the other is false
        return replace(settings, bos=bos, eos=eos, add_bos=front is not None and front == bos,
                       add_eos=back is not None and back == eos)
    return replace(settings, bos=bos, eos=eos, add_bos=bool(settings.add_bos), add_eos=bool(settings.add_eos))


def _around(part):
    """(special token in front of a text or None, the one behind it or None) of the "post_processor" part."""
    steps = part.get("processors") if _kind(part) == "Sequence" else [part]
    for step in steps if isinstance(steps, list) else []:
        if _kind(step) == "TemplateProcessing":
            names = [(item.get("SpecialToken") or {}).get("id") for item in step.get("single") or ()]
            place = names.index(None) if None in names else 2
            if place > 1 or len(names) - place > 2 or names.count(None) > 1:
                raise ValueError(f"tokenizer.json puts {names} around a text: one token on either side is known here")
            return (names[0] if place else None), (names[-1] if place < len(names) - 1 else None)
        if _kind(step) not in (None, "ByteLevel"):
            raise ValueError(f"tokenizer.json has the post_processor {_kind(step)!r}: not known here")
    return None, None


def tokenizer_json(tokenizer):
    """The bytes of a tokenizer.json for a `ByteBpeTokenizer`; the inverse of `read_tokenizer_json`."""
    def text(token):
        return "".join(BYTE_TO_CHARACTER[byte] for byte in token)

    by_id = sorted(tokenizer.ids.items(), key=lambda item: item[1])
    split = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
             for pattern in tokenizer.words]
    byte_level = {"type": "ByteLevel", "add_prefix_space": tokenizer.prefix_space, "trim_offsets": True,
                  "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": tokenizer.whole_words,
             "vocab": {text(token): index for token, index in by_id},
             "merges": [f"{text(a)} {text(b)}" for a, b in tokenizer.merges()]}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens_json(tokenizer),
               "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*split, byte_level]},
               "post_processor": _post_processor(tokenizer), "decoder": byte_level, "model": model}
    return json.dumps(content, ensure_ascii=False).encode()


def sentencepiece_json(tokenizer):
    """The bytes of a tokenizer.json for a `SentencePieceTokenizer`, None where it has rules or kinds of pieces that
    this form cannot say. A merge for each way to cut a piece in two pieces, the best score first."""
    kinds = {piece.kind for piece in tokenizer.pieces}
    if tokenizer.rules._replace(add_dummy_prefix=True) != Rules(remove_extra_whitespaces=False) or UNUSED in kinds:
        return None
    vocab = {piece.text: index for index, piece in enumerate(tokenizer.pieces)}
    joinable = {text: tokenizer.pieces[index].score for text, index in vocab.items()
                if tokenizer.pieces[index].kind == NORMAL}
    cuts = [(text[:cut], text[cut:]) for text in joinable for cut in range(1, len(text))
            if text[:cut] in joinable and text[cut:] in joinable]
    cuts.sort(key=lambda pair: (joinable[pair[0] + pair[1]], len(pair[0]), len(pair[1])), reverse=True)
    spaces = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": tokenizer.prefix, "split": False}
    cuts_spaces = tokenizer.prefix in ("first", "always")
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.prefix != "never" else []
    model = {"type": "BPE", "dropout": None, "unk_token": tokenizer.id_to_piece(tokenizer.unk_id),
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
             "ignore_merges": False, "vocab": vocab, "merges": [f"{left} {right}" for left, right in cuts]}
    normalizer = None if cuts_spaces else {"type": "Sequence", "normalizers": spaces[tokenizer.prefix == "never":]}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens_json(tokenizer),
               "normalizer": normalizer, "pre_tokenizer": metaspace if cuts_spaces else None,
               "post_processor": _post_processor(tokenizer), "model": model,
               "decoder": {"type": "Sequence", "decoders": decoders + strip}}
    return json.dumps(content, ensure_ascii=False).encode()


def _post_processor(tokenizer):
    """What puts begin and end around a text; None where neither comes."""
    front, back = [tokenizer.bos_id] * tokenizer.begins, [tokenizer.eos_id] * tokenizer.add_eos
    names = {index: tokenizer.id_to_piece(index) for index in front + back}

    def text(letter, kind):
        begin, end = ([{"SpecialToken": {"id": names[index], "type_id": kind}} for index in ids]
                      for ids in (front, back))
        return [*begin, {"Sequence": {"id": letter, "type_id": kind}}, *end]

    special = {name: {"id": name, "ids": [index], "tokens": [name]} for index, name in names.items()}
    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1),
            "special_tokens": special} if names else None


class _NoPair(ValueError):
    pass


def _pair(merge):
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise _NoPair(f"{merge!r:.60} is no merge of two tokens")
    return tuple(parts)


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


def _prefix(content):
    """Where SentencePiece's space comes in front, by the "normalizer" and "pre_tokenizer" parts (`TokenSettings`)."""
    part, cut = content.get("normalizer"), content.get("pre_tokenizer")
    steps = part.get("normalizers") if _kind(part) == "Sequence" else [part] if part is not None else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    if cut is None and steps in ([prepends, spaces], [spaces]):
        return "sentencepiece" if len(steps) == 2 else "never"
    if not steps and _kind(cut) == "Metaspace" and cut.get("replacement") == SPACE and cut.get("split") is False:
        if cut.get("prepend_scheme") in ("always", "first", "never"):
            return cut["prepend_scheme"]
    raise ValueError("tokenizer.json has byte_fallback, but its normalizer and pre_tokenizer, "
                     f"{json.dumps([part, cut])[:120]}, are not in the form of Llama 2's: use its tokenizer.model")


def _sentencepiece(content, vocab, merges, settings):
    """Llama 2's: a piece's score is minus the place of the first merge that makes it."""
    prefix, added = _prefix(content), {token.text: token for token in settings.added}
    scores = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    by_id = {index: piece for piece, index in {**vocab, **{name: token.id for name, token in added.items()}}.items()}
    if sorted(by_id) != list(range(len({**vocab, **added}))):
        raise ValueError("the ids of tokenizer.json do not count from 0 up without a gap")
    unknown, bytes_ = content["model"].get("unk_token"), set(BYTE_PIECES)
    pieces = []
    for index in range(len(by_id)):
        piece = by_id[index]
        own = CONTROL if piece in added and added[piece].special else USER_DEFINED if piece in added else NORMAL
        kind = UNKNOWN if piece == unknown else BYTE if piece in bytes_ else own
        pieces.append(Piece(piece, scores.get(piece, -float(len(merges))), kind))
    tokenizer = SentencePieceTokenizer(model_bytes(pieces, prefix=prefix != "never"))
    tokenizer.prefix = prefix
    return tokenizer
