"""Solution of exercise 11: read the header of a safetensors file that may be hostile, and find what is wrong."""

import json
import math

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}  # per number


def read_header(data):
    """(entries, bytes behind the header). ValueError where the file is too short for what it says."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + length > len(data):
        raise ValueError(f"a header of {length} bytes in a file of {len(data)}: it is cut short, or no safetensors")
    entries = json.loads(data[8:8 + length])
    entries.pop("__metadata__", None)
    return entries, len(data) - 8 - length


def wrong_tensor(entries, data_bytes):
    """The first name whose offsets leave the data or do not match shape and dtype, else None."""
    for name, entry in entries.items():
        begin, end = entry["data_offsets"]
        needed = math.prod(entry["shape"]) * BYTES[entry["dtype"]]
        if not 0 <= begin <= end <= data_bytes or end - begin != needed:
            return name
    return None
