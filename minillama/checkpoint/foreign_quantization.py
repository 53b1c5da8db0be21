"""Checkpoints that other programs have quantized (GPTQ, AWQ, bitsandbytes, FP8 ...): told as such, not read."""

import re

from minillama.terminal import one_line

ENTRIES = {"quantization": "MLX", "quantization_config": "an unnamed method", "quantization_args": "Meta",
           "compression_config": "compressed-tensors"}  # key of the settings -> who writes it without a quant_method
DETAILS = ("quant_algo", "format", "fmt", "scheme", "bits", "load_in_4bit", "load_in_8bit")
NAMES = {  # who writes it -> what tensors' names end in; the first that fits
    "GPTQ or AWQ": r"\.(qweight|qzeros|g_idx)", "HQQ": r"\.W_q", "MXFP4": r"_blocks", "MLX": r"\.biases",
    "bitsandbytes": r"\.((nested_)?(absmax|quant_map)|quant_state\..+|SCB|weight_format)",
    "compressed-tensors": r"\.weight_packed", "EETQ": r"\.weight_scales", "NVFP4": r"\.weight_scale_2",
    "ExLlama": r"\.(q_weight|q_scale|trellis|suh|svh)", "AQLM or QuIP#": r"\.(codes|codebooks|Qidxs)",
    "FP8 or INT8 with scales": r"(weight|input)_scale(_inv)?", "an unnamed method": r"\.(scales|qscales)"}


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
