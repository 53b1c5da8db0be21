"""Models cut into several GGUF files, NAME-00001-of-00003.gguf and so on, as llama.cpp's gguf-split and hubs cut them.

The first part holds all settings; each says `split.no` (from 0), `split.count`, and `split.tensors.count` of the whole.
Source: https://github.com/ggml-org/llama.cpp, tools/gguf-split and src/llama-model-loader.cpp.
"""

import re
from pathlib import Path

from minillama.checkpoint.gguf import read_gguf

MAX_PARTS = 1000


def read_gguf_parts(path):
    """({key: value}, {name: Stored}) as `read_gguf`, of the whole model, whichever of its parts `path` is.

    ValueError where a part is missing, or does not belong to the others.
    """
    settings, tensors = read_gguf(path)
    if settings.get("split.count", 1) in (0, 1):
        return settings, tensors
    paths = _part_paths(Path(path), _count(settings, "split.count", path, MAX_PARTS))
    whole, found = {}, {}
    for place, part in enumerate(paths):
        settings, tensors = read_gguf(part)
        said = tuple(_count(settings, key, part, MAX_PARTS) for key in ("split.no", "split.count"))
        if said != (place, len(paths)):
            raise ValueError(f"{part}: says inside that it is part {said[0] + 1} of {said[1]}: another file's name")
        whole = whole or settings
        strange = [key for key, value in settings.items() if key != "split.no" and whole.get(key) != value]
        if strange or found.keys() & tensors.keys():
            what = strange[0] if strange else f"tensor {next(iter(found.keys() & tensors.keys()))}"
            raise ValueError(f"{part}: {what[:80]} is not as in {paths[0].name}: part of another model")
        found |= tensors
    wanted = whole.get("split.tensors.count", len(found))
    if len(found) != wanted:
        raise ValueError(f"{path}: {len(found)} tensors in {len(paths)} parts, split.tensors.count is {wanted!r:.40}")
    return whole, found


def _count(settings, key, path, limit):
    value = settings.get(key)
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{path}: {key} is {value!r}: expected a whole number from 0 to {limit}")
    return value


def _part_paths(path, count):
    """The paths of all parts, beside the one given; ValueError where one is missing."""
    name = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if not name or int(name[2]) != count:
        raise ValueError(f"{path}: a part of a model split into {count} files: name them as they were, NAME-00001-of-"
                         f"{count:05}.gguf and so on, or join them, `llama-gguf-split --merge FIRST.gguf WHOLE.gguf`")
    paths = [path.with_name(f"{name[1]}-{place:05}-of-{count:05}.gguf") for place in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise ValueError(f"{path}: split into {count} files; missing beside it: {', '.join(missing[:3])}"
                         f"{' ...' * (len(missing) > 3)}; fetch them too")
    return paths
