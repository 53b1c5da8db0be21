"""What the files beside a vocabulary say of its tokens: Hugging Face's tokenizer_config.json, special_tokens_map.json,
added_tokens.json, tokenizer.json, generation_config.json, config.json and chat_template.jinja.

Of several files that name the same thing, the one that transformers believes counts. A damaged file is refused.
Source: https://github.com/huggingface/transformers, tokenization_utils_base.py.
"""

from pathlib import Path

from minillama.system.files import require_regular
from minillama.system.settings import check_known, flag, read_settings

from .added_tokens import AddedToken, TokenSettings

MAX_BYTES = 1 << 27  # of a file beside the vocabulary: Llama 3.2's tokenizer.json has 17 MB
MAX_TEMPLATE, MAX_ID = 1 << 20, 1 << 24  # bytes of a chat template; ids of added tokens: rows are made up to them
LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
FILES = ("tokenizer_config", "special_tokens_map", "generation_config", "added_tokens", "config")
CLEAN_UP = ("{} asks for clean_up_tokenization_spaces: decoded text is exact all the same, for of a BPE tokenizer "
            "transformers 5 ignores it too (transformers 4 took spaces before punctuation away)")


def read_token_settings(folder, inside=None, form="tokenizer_config.json"):
    """The `TokenSettings` of a folder. inside: the added tokens of its tokenizer.json, where that has been read. form:
    what known_settings.json calls the settings of tokenizer_config.json. ValueError for a damaged file, and for one
    whose statements no tokenizer could obey."""
    folder = Path(folder)
    paths = [folder / f"{name}.json" for name in FILES]
    contents = config, names, generation, added, model = [
        read_settings(path, MAX_BYTES) if path.exists() else {} for path in paths]
    for path, content in zip(paths[:3], contents, strict=False):
        check_known(content, path, form if path is paths[0] else path.name)
    tokens, whole = list(inside or ()), folder / "tokenizer.json"
    if inside is None and whole.exists():
        tokens += added_tokens(read_settings(whole, MAX_BYTES).get("added_tokens", []), whole)
    named, older = _named(config, paths[0]), _named(names, paths[1])
    named = older | named if "added_tokens_decoder" in config else named | older  # before it, the map was believed
    specials = {token.text: token for token in named.values() if token}
    # added_tokens.json does not say it: special is what the settings name so, and what looks so, lest a user types it
    tokens += [AddedToken(name, _id(index, paths[3]), name in specials or name.startswith("<|"))
               for name, index in added.items()]
    decoder = {} if config.get("added_tokens_decoder") is None else config["added_tokens_decoder"]
    if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
        raise ValueError(f"{paths[0]}: added_tokens_decoder is no object of objects: damaged")
    tokens += added_tokens([{"special": False, **entry, "id": int(index) if index.isdecimal() else index}
                            for index, entry in decoder.items()], paths[0])
    add_bos, add_eos, clean_up = (flag(config, name, paths[0], None) for name in (
        "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"))
    return TokenSettings(
        tuple({token.text: token for token in tokens}.values()),
        *((named[which].text if named[which] else "") if (which := f"{name}_token") in named else None
          for name in ("bos", "eos", "pad")), add_bos, add_eos,
        _ends(generation, paths[2]) or _ends(model, paths[4]), _chat_template(folder, config),
        *_prefix(config, paths[0]), tuple(specials.values()), (CLEAN_UP.format(paths[0]),) * bool(clean_up))


def added_tokens(entries, path):
    """`AddedToken`s of a list as tokenizer.json holds it."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: added_tokens is not a list of objects: the file is damaged")
    return [_token(entry, _id(entry.get("id"), path), path) for entry in entries]


def _token(entry, index, path):
    """The `AddedToken` of an object with its text and flags."""
    flags = {name: value for name, value in entry.items() if name not in ("id", "content", "__type")}
    for name, value in flags.items():
        if name not in ("special", *FLAGS) or not isinstance(value, bool):
            raise ValueError(f"{path}: an added token has {name!r:.80} {value!r:.80}: expected special, "
                             f"{', '.join(FLAGS)}, each true or false")
    if not isinstance(entry.get("content"), str) or not entry["content"]:
        raise ValueError(f"{path}: an added token's content is {entry.get('content')!r:.80}, no text: damaged")
    return AddedToken(entry["content"], index, flags.get("special", True), *(flags.get(name, False) for name in FLAGS))


def added_tokens_json(tokenizer):
    """The inverse of `added_tokens`: the list in the order of ids. None is normalized where that puts a space before
    a token itself."""
    plain = tokenizer.prefix == "sentencepiece"
    return [{"id": token.id, "content": token.text, "single_word": token.single_word, "lstrip": token.lstrip,
             "rstrip": token.rstrip, "normalized": token.normalized and not plain, "special": token.special}
            for token in sorted(tokenizer.added.values(), key=lambda token: token.id)]


def _id(value, path):
    if type(value) is not int or not 0 <= value < MAX_ID:
        raise ValueError(f"{path}: an added token has the id {value!r:.80}: expected a whole number below {MAX_ID}")
    return value


def _prefix(config, path):
    """(where transformers' LlamaTokenizer puts SentencePiece's space in front, what another class demands of it)."""
    legacy, wanted = (flag(config, name, path, None) for name in ("legacy", "add_prefix_space"))
    if not isinstance(config.get("tokenizer_class"), (str, type(None))):
        raise ValueError(f"{path}: tokenizer_class is {config['tokenizer_class']!r:.80}: expected a name")
    if config.get("tokenizer_class") not in LLAMA_CLASSES:
        return None, wanted
    return "never" if wanted is False else "always" if legacy else "first", None


def _named(settings, path):
    """{key: the special token that it names, its id yet unknown (-1), or None}. Code Llama's fill_token is no token,
    but where the programs that fill in cut a text."""
    given = {key: value for key, value in settings.items()
             if key.endswith("_token") and not key.startswith(("add_", "fill_"))}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = [] if settings.get(key) is None else settings[key]
        if not isinstance(more, (list, dict)):
            raise ValueError(f"{path}: {key} is {more!r:.80}: expected a list of tokens, or an object")
        given |= {(key, n): value for n, value in enumerate(more if isinstance(more, list) else more.values())}
    for key, value in given.items():
        if value is not None and not isinstance(value, (str, dict)):
            raise ValueError(f"{path}: {key} is {value!r:.80}: expected a token's text")
        value = {"content": value} if isinstance(value, str) else value
        given[key] = _token({**value, "special": True}, -1, path) if value and value.get("content") != "" else None
    return given


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
        content = file.read(MAX_TEMPLATE + 1)
    if len(content) > MAX_TEMPLATE:
        raise ValueError(f"{path} is larger than {MAX_TEMPLATE} bytes, which no chat template is: fetch it again")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): fetch it again") from None


def _chat_template(folder, config):
    """The default one of several: its own file's, else tokenizer_config.json's, else chat_template.json's."""
    if (own := read_chat_template(folder)) is not None:
        return own
    path, other = folder / "tokenizer_config.json", folder / "chat_template.json"
    if config.get("chat_template") is None and other.exists():
        path, config = other, read_settings(other, MAX_BYTES)
        check_known(config, path, other.name)
    given = config.get("chat_template")
    if isinstance(given, list) and all(isinstance(entry, dict) and entry.keys() == {"name", "template"}
                                       for entry in given):
        named = {str(entry["name"]): entry["template"] for entry in given}
        if "default" not in named:
            raise ValueError(f"{path}: chat_template holds {', '.join(named)[:80] or 'none'}, and no 'default': name "
                             "one so")
        given = named["default"]
    if given is not None and not isinstance(given, str):
        raise ValueError(f"{path}: chat_template is no text: the file is damaged")
    return given
