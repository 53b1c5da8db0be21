"""Hugging Face's tokenizer.json, as far as it describes a LLaMA's BPE.

Two kinds: byte-level BPE with a list of merges (Llama 3, SmolLM), and a SentencePiece vocabulary with byte fallback
(Llama 1 and 2), whose merges are in the order of its scores. Anything else in the file is refused by name.
Source: https://github.com/huggingface/tokenizers.
"""

import json
from dataclasses import replace
from pathlib import Path

from minillama.system.settings import KNOWN, check_known, flag

from .added_tokens import TokenSettings
from .bpe_encoder import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from .byte_bpe import GPT2_WORDS, KNOWN_PATTERNS, SINGLE_DIGITS, ByteBpeTokenizer, read_spelling, spell_bytes
from .sentencepiece import BYTE_PIECES, Piece, Rules, SentencePieceTokenizer, model_bytes
from .token_settings import added_tokens, added_tokens_json, read_token_settings

BEGINS = ("<|begin_of_text|>", "<s>", "<|startoftext|>", "<|im_start|>")  # where no settings beside it name them
PARTS = json.loads(Path(__file__).with_name("tokenizer_json_parts.json").read_text())
ENDS = ("<|end_of_text|>", "</s>", "<|endoftext|>", "<|im_end|>")


def read_tokenizer_json(data, folder=None):
    """The tokenizer in the bytes of a tokenizer.json. `folder`: where the files lie that say more of its tokens
    (`token_settings`). ValueError for a damaged file, or one that describes another kind of tokenizer."""
    try:
        content = json.loads(data)
        model, merges = content["model"], [_pair(merge) for merge in content["model"]["merges"]]
        added = added_tokens(content.get("added_tokens", []), "tokenizer.json")
        vocab, names = model["vocab"], {token.text for token in added}
        numbers = list(vocab.values())
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"not a tokenizer.json of BPE type, or damaged ({type(error).__name__}: {error})") from None
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**31 for i in numbers):
        raise ValueError("an id in tokenizer.json is not a whole number from 0 up: the file is damaged")
    _check_settings(content, model, added)
    settings = read_token_settings(folder, added) if folder else TokenSettings(tuple(added))
    if flag(model, "byte_fallback", "tokenizer.json"):
        tokenizer = _sentencepiece(content, vocab, merges, settings)
        return tokenizer.obey(fill_ends(settings, content, tokenizer))
    words, prefix_space = _words(content.get("pre_tokenizer"))
    if content.get("normalizer") is not None:
        raise ValueError(f"tokenizer.json has the normalizer {_kind(content['normalizer'])!r}: LLaMA's has none")
    if [_kind(step) for step in _steps(content.get("decoder"), "decoders")] not in ([], ["ByteLevel"]):
        raise unknown_part(content["decoder"])
    ids = {read_spelling(token): index for token, index in vocab.items() if token not in names}
    pairs = {(read_spelling(left), read_spelling(right)): rank for rank, (left, right) in enumerate(merges)}
    if None in ids or any(None in pair for pair in pairs):
        raise ValueError("tokenizer.json spells a token in other than GPT-2's byte characters: not byte-level BPE")
    lost = next((pair for pair in pairs if pair[0] + pair[1] not in ids), None)
    if lost:
        raise ValueError(f"tokenizer.json joins {lost[0]!r} and {lost[1]!r} to no token of its vocabulary")
    whole_words = flag(model, "ignore_merges", "tokenizer.json")
    tokenizer = ByteBpeTokenizer(ids, {token.text: token.id for token in added}, words, pairs, whole_words, file=data,
                                 prefix_space=prefix_space)
    return tokenizer.obey(fill_ends(replace(settings, prefix=None), content, tokenizer))


def _check_settings(content, model, added):
    """ValueError for a setting of the file that would be ignored, and for what its parts contradict each other in."""
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"tokenizer.json holds a model of type {model['type']!r:.80}: only BPE is read here")
    check_known(content, "tokenizer.json", "tokenizer.json")
    check_known(model, "tokenizer.json: model", "model of tokenizer.json")
    if not isinstance(model.get("unk_token"), (str, type(None))):
        raise ValueError(f"tokenizer.json: unk_token is {model['unk_token']!r:.80}: expected a token's text, or null")
    for token in added:
        if model["vocab"].get(token.text, token.id) != token.id:
            raise ValueError(f"the added token {token.text!r} has the id {token.id}, and "
                             f"{model['vocab'][token.text]} in the vocabulary: tokenizer.json contradicts itself")


def fill_ends(settings, content, tokenizer):
    """Where the settings beside the file say nothing: begin and end as its post_processor puts them around a text,
    their names by custom."""
    front, back = _around(content.get("post_processor"), tokenizer)
    known = {**dict.fromkeys(content["model"]["vocab"]), **tokenizer.added}
    bos, eos = (given or end or (next((name for name in usual if name in known), None) if given is None else given)
                for given, end, usual in ((settings.bos, front, BEGINS), (settings.eos, back, ENDS)))
    if settings.add_bos is None and settings.add_eos is None:  # the one flag alone means that the other is false
        if front not in (None, bos) or back not in (None, eos):
            raise ValueError(f"the post_processor of tokenizer.json puts {front!r} and {back!r} around a text, but "
                             f"tokenizer_config.json names {bos!r} and {eos!r}: correct the wrong one")
        return replace(settings, bos=bos, eos=eos, add_bos=front is not None, add_eos=back is not None)
    return replace(settings, bos=bos, eos=eos, add_bos=bool(settings.add_bos), add_eos=bool(settings.add_eos))


def _around(part, tokenizer):
    """(special token in front of a text or None, the one behind it or None) of the "post_processor" part."""
    found = [step for step in _steps(part, "processors") if _kind(step) != "ByteLevel"]
    if not found:
        return None, None
    try:
        names = [item["SpecialToken"]["id"] if item.keys() == {"SpecialToken"} else
                 {"A": None}.get(item["Sequence"]["id"], "") for item in found[0]["single"]]
        ids = {name: found[0]["special_tokens"][name]["ids"] for name in names if name is not None}
        if len(found) == 1 and names.count(None) == 1 and all(
                given == [tokenizer.id_named(name)] for name, given in ids.items()):
            front, back = names[:names.index(None)], names[names.index(None) + 1:]
            if len(front) < 2 and len(back) < 2:
                return (front or [None])[0], (back or [None])[0]
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    raise unknown_part(part, "puts more around a text than one known token on either side, or other ids")


def tokenizer_json(tokenizer):
    """The bytes of a tokenizer.json for a `ByteBpeTokenizer`; the inverse of `read_tokenizer_json`."""
    vocab, last = {spell_bytes(token): index for token, index in tokenizer.ids.items()}, max(tokenizer.ids.values())
    # added tokens with ids in between stand there too: the tokenizers library numbers the others behind the vocabulary
    vocab |= {token.text: token.id for token in tokenizer.added.values() if token.id < last}
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    merges = [f"{spell_bytes(a)} {spell_bytes(b)}" for a, b in tokenizer.merges()]
    split = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
             for pattern in tokenizer.words]
    byte_level = {"type": "ByteLevel", "add_prefix_space": tokenizer.prefix_space, "trim_offsets": True,
                  "use_regex": False}
    return file_bytes(tokenizer, {"ignore_merges": tokenizer.whole_words, "vocab": vocab, "merges": merges},
                    pre_tokenizer={"type": "Sequence", "pretokenizers": [*split, byte_level]}, decoder=byte_level)


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
    model = {"unk_token": tokenizer.id_to_piece(tokenizer.unk_id), "fuse_unk": True, "byte_fallback": True,
             "vocab": vocab, "merges": [f"{left} {right}" for left, right in cuts]}
    form = next(form for form in PARTS["spaces"] if form["prefix"] == tokenizer.prefix)
    return file_bytes(tokenizer, model, **{name: part for name, part in form.items() if name != "prefix"})


def file_bytes(tokenizer, model, form="model", **parts):
    """The bytes of the file with this model; what is not named is as usual."""
    content = {**PARTS["content"], **parts, "added_tokens": added_tokens_json(tokenizer),
               "post_processor": _post_processor(tokenizer), "model": {**PARTS[form], **model}}
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


def _pair(merge):
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TypeError(f"{merge!r:.60} is no merge of two tokens")
    return tuple(parts)


def _kind(part):
    return part.get("type") if isinstance(part, dict) else part


def unknown_part(part, what="has"):
    """The error for a part of a tokenizer.json that is not known here."""
    return ValueError(f"tokenizer.json {what}: {json.dumps(part)[:120]}: not known here")


def _steps(part, inside):
    """The steps of a part of the file, of known settings and their types."""
    steps = [] if part is None else part.get(inside) if _kind(part) == "Sequence" else [part]
    for step in steps if isinstance(steps, list) else [steps]:
        shape = KNOWN["steps of tokenizer.json"].get(str(_kind(step))) if isinstance(step, dict) else None
        if shape is None or any(type(value).__name__ != shape.get(name) for name, value in step.items()):
            raise unknown_part(step, "cuts text by" if inside == "pretokenizers" else "has")
    if _kind(part) == "Sequence" and part.keys() != {"type", inside}:
        raise unknown_part(part)
    return steps


def _words(part):
    """(patterns, whether a space is put in front) of the "pre_tokenizer" part."""
    steps, words = _steps(part, "pretokenizers"), []
    for step in steps:
        kind, pattern = step["type"], None
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step["pattern"].get("Regex") if step.get("pattern", {}).keys() == {"Regex"} else None
        elif kind == "Digits" and step.get("individual_digits"):
            pattern = SINGLE_DIGITS
        elif kind == "ByteLevel":
            pattern = GPT2_WORDS if step.get("use_regex", True) else ""
        if pattern not in ("", *KNOWN_PATTERNS):  # a foreign one could be made to run for ever
            raise unknown_part(step, "cuts text by")
        words += [pattern] if pattern else []
    prefix_space = bool(steps) and steps[-1].get("add_prefix_space", False)
    if [step["type"] for step in steps].count("ByteLevel") != 1 or steps[-1]["type"] != "ByteLevel" or (
            prefix_space and len(steps) > 1):  # it would put a space before each word that an earlier step cut
        raise unknown_part(part, "cuts text by")
    return words, prefix_space


def _prefix(content):
    """Where SentencePiece's space comes in front, by the parts of the file that say so (`TokenSettings`)."""
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer")}
    form = next((form for form in PARTS["spaces"] if form == {**form, **parts}), None)
    if form is None:
        raise ValueError("tokenizer.json has byte_fallback, but its normalizer and pre_tokenizer, "
                         f"{json.dumps([*parts.values()])[:120]}, are not in the form of Llama 2's: use its "
                         "tokenizer.model")
    if content.get("decoder") not in (None, form["decoder"], form["pre_tokenizer"]):
        raise unknown_part(content["decoder"])
    if form["prefix"] == "sentencepiece" and any(entry.get("normalized") and not entry.get("special", True)
                                                 for entry in content.get("added_tokens") or []):
        raise ValueError("tokenizer.json has an added word that is normalized: a space would be put before it too, "
                         "which is not done here: use its tokenizer.model")
    return form["prefix"]


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
        found = piece in added and not (added[piece].special or added[piece].single_word)  # wherever it stands
        own = USER_DEFINED if found else CONTROL if piece in added else NORMAL
        kind = UNKNOWN if piece == unknown and own != USER_DEFINED else BYTE if piece in bytes_ else own
        pieces.append(Piece(piece, scores.get(piece, -float(len(merges))), kind))
    tokenizer = SentencePieceTokenizer(model_bytes(pieces, prefix=prefix != "never"))
    tokenizer.prefix = prefix
    return tokenizer
