"""What the files beside a vocabulary say of its tokens: Hugging Face's tokenizer_config.json, special_tokens_map.json,
added_tokens.json, tokenizer.json, generation_config.json, config.json and chat_template.jinja.

Of several files that name the same thing, the one that transformers believes counts. A damaged file is refused.
Source: https://github.com/huggingface/transformers, tokenization_utils_base.py.
"""

from pathlib import Path

from ..files import require_regular
from ..snapshot import read_settings
from .added_tokens import AddedToken, TokenSettings

MAX_BYTES = 1 << 27  # of a file beside the vocabulary: Llama 3.2's tokenizer.json has 17 MB
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
FLAGS = ("lstrip", "rstrip", "single_word")


def read_token_settings(folder, inside=None):
    """The `TokenSettings` of a folder; `inside`: the added tokens of its tokenizer.json, where that has been read.
    ValueError for a damaged file, and for one whose statements no tokenizer could obey."""
    folder = Path(folder)
    config, names, added, generation, model = (
        read_settings(path, MAX_BYTES) if (path := folder / f"{name}.json").exists() else {} for name in (
            "tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config"))
    tokens, whole = list(inside or ()), folder / "tokenizer.json"
    if inside is None and whole.exists():
        tokens += added_tokens(read_settings(whole, MAX_BYTES).get("added_tokens") or [], whole)
    tokens += [AddedToken(name, _id(index, folder / "added_tokens.json"), _is_special(name, {**names, **config}))
               for name, index in added.items()]
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is no object of objects: damaged")
    tokens += added_tokens([{"id": int(index) if index.isdecimal() else index, **entry}
                            for index, entry in decoder.items()], folder / "tokenizer_config.json")
    bos, eos, pad = (_name(config, names, f"{which}_token", folder) for which in ("bos", "eos", "pad"))
    add_bos, add_eos = (_flag(config, f"add_{which}_token", folder) for which in ("bos", "eos"))
    return TokenSettings(
        tuple({token.text: token for token in tokens}.values()), bos, eos, pad, add_bos, add_eos,
        _ends(generation, folder / "generation_config.json") or _ends(model, folder / "config.json"),
        _chat_template(folder, config), _prefix(config, folder))


def _is_special(name, settings):
    """added_tokens.json does not say it: a token is special where the settings name it among theirs, and where it looks
    so, lest a user could type it."""
    named = [*settings.values(), *(settings.get("additional_special_tokens") or ())]
    return name.startswith("<|") or any(name == (one.get("content") if isinstance(one, dict) else one) for one in named)


def added_tokens(entries, path):
    """`AddedToken`s of a list as tokenizer.json holds it."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: added_tokens is not a list of objects: the file is damaged")
    found = []
    for entry in entries:
        if not isinstance(entry.get("content"), str) or not entry["content"]:
            raise ValueError(f"{path}: an added token's content is {entry.get('content')!r}, no text: damaged")
        found.append(AddedToken(entry["content"], _id(entry.get("id"), path), bool(entry.get("special", True)),
                                *(bool(entry.get(flag)) for flag in FLAGS)))
    return found


def added_tokens_json(tokenizer):
    """The inverse of `added_tokens`: the list in the order of ids."""
    return [{"id": token.id, "content": token.text, "single_word": token.single_word, "lstrip": token.lstrip,
             "rstrip": token.rstrip, "normalized": False, "special": token.special}
            for token in sorted(tokenizer.added.values(), key=lambda token: token.id)]


def _id(value, path):
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{path}: an added token has the id {value!r}: expected a whole number from 0 up")
    return value


def _flag(settings, name, folder):
    value = settings.get(name)
    if value not in (None, True, False) or isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {name} is {value!r}: expected true or false")
    return value


def _prefix(config, folder):
    """As transformers' LlamaTokenizer puts SentencePiece's space in front; None where it is not named."""
    legacy, wanted = _flag(config, "legacy", folder), _flag(config, "add_prefix_space", folder)
    if config.get("tokenizer_class") not in LLAMA_CLASSES:
        return None
    return "never" if wanted is False else "always" if legacy else "first"


def _name(config, names, which, folder):
    given = config[which] if which in config else names.get(which)
    given = given.get("content") if isinstance(given, dict) else given
    if given is not None and not isinstance(given, str):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: {which} is {given!r}: expected a token's text")
    return given or None


def _ends(settings, path):
    ids = settings.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(index) is int and -1 <= index < 2**31 for index in ids):
        raise ValueError(f"{path}: eos_token_id is {settings['eos_token_id']!r}: expected an id, or a list of ids")
    return frozenset(index for index in ids if index >= 0)


def read_chat_template(folder):
    """The text of chat_template.jinja in a model's or an adapter's folder, None without one."""
    path = Path(folder) / "chat_template.jinja"
    if not path.exists():
        return None
    with open(require_regular(path), "rb") as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")


def _chat_template(folder, config):
    """The default one of several: its own file's, else tokenizer_config.json's, else chat_template.json's."""
    if (own := read_chat_template(folder)) is not None:
        return own
    given, other = config.get("chat_template"), folder / "chat_template.json"
    if given is None and other.exists():
        given = read_settings(other, MAX_BYTES).get("chat_template")
    if isinstance(given, list):
        given = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}.get("default")
    if given is not None and not isinstance(given, str):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: chat_template is no text: the file is damaged")
    return given
