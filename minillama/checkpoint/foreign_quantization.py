"""Checkpoints that other programs have quantized (GPTQ, AWQ, bitsandbytes, FP8 ...): told as such, not read."""

import json
import re
from pathlib import Path

from minillama.system.terminal import one_line

_, ENTRIES, NAMES, DETAILS = json.loads(Path(__file__).with_suffix(".json").read_text()).values()


def refuse_quantized(path, settings, tensors):
    """ValueError where an entry of `settings`, or the name or dtype of one of {name: tensor}, says so."""
    told = []
    for key, word in ENTRIES.items():
        entry = settings.get(key)
        given = entry if isinstance(entry, dict) else {"quant_method": entry}
        if entry and not given.get("load_in_8bit") is given.get("load_in_4bit") is False:  # bitsandbytes, switched off
            details = ", ".join(f"{name} {given[name]}" for name in DETAILS if given.get(name))
            word = given.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in given else word)
            told.append((f"{word} ({details})" if details else str(word), key))
    told += [(word, name) for word, ending in NAMES.items() for name in tensors if re.search(f"{ending}$", name)]
    told += [(str(tensor.dtype)[6:], name) for name, tensor in tensors.items() if tensor.dtype.itemsize == 1]
    if told:
        word, where = (one_line(text)[:120] for text in told[0])
        raise ValueError(f"{path}: quantized by {word}, as {where} says, which is not read here: take the original in "
                         "16 bits (`quantize SRC DST --nf4` makes it small), or a GGUF of it")
