"""safetensors files by hand: tensors without pickle, checked before a byte of them is trusted.

    8 bytes   header length N, unsigned little-endian
    N bytes   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
              "__metadata__": {"any": "strings"}}, padded with spaces to a multiple of 8
    the rest  the tensors' bytes, row-major and little-endian; offsets count from here

Source: https://github.com/huggingface/safetensors#format. As there, the tensors must tile the data area
without holes or overlaps, so nothing can hide in a file.
"""

import json
import math
import mmap
import os

import torch

from minillama.system.files import atomic_write
from minillama.system.snapshot import open_snapshot

MAX_HEADER_BYTES = 100_000_000
OWN_MAP = 2**20  # bytes from which a tensor is mapped alone: a system allows some ten thousand maps, not millions
# In the reference writer's order: it sorts tensors by dtype, the last of this table first, then by name.
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "C64": torch.complex64, "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}
_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


def read_safetensors(path):
    """{name: tensor} of the file, memory-mapped: a tensor's bytes are read from disk when it is first used.

    The map is private (copy on write): changing a tensor never changes the file.
    ValueError if the header is malformed or the tensors do not tile the data exactly; a tensor is made
    only after the whole header has been checked, so a lying shape allocates nothing.
    """
    with open_snapshot(path) as (file, again):
        header, start, size = _read_header(file, path)
        _check_tiling(header, size - start, path)
        file_bytes = torch.from_file(again, shared=False, size=size, dtype=torch.uint8)
        return {name: _tensor(file, file_bytes, start, entry, name, path) for name, entry in header.items()}


def write_safetensors(path, tensors, metadata=None):
    """Write {name: tensor} and optional {str: str} metadata; the file appears whole or not at all.

    Any device, strides and sharing are accepted; each tensor is written out in full. The bytes equal those
    of the reference writer. TypeError for a dtype the format lacks or metadata that is not strings.
    """
    write_safetensors_stream(path, tensors, tensors.items(), metadata)


def write_safetensors_stream(path, planned, made, metadata=None):
    """The same file from tensors that come one after another in any order, so that only one is in memory at a time.

    planned: {name: tensor that has the right shape and dtype}, for instance on the meta device. made: (name, tensor)
    for each of these once; ValueError, and no file, where one is not as planned or does not come.
    """
    text, spans = _header_for(planned, metadata)
    awaited = dict(spans)
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in made:
            plan = planned[name] if awaited.pop(name, None) else None
            if plan is None or (tensor.dtype, tensor.shape) != (plan.dtype, plan.shape):
                raise ValueError(f"{name} {tensor.dtype} {list(tensor.shape)} is not as planned, or came twice")
            file.seek(8 + len(text) + spans[name][0])
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if awaited:
            raise ValueError(f"{len(awaited)} planned tensors did not come, such as {next(iter(awaited))}")


def _header_for(tensors, metadata):
    """(the header's bytes, {name: [begin, end]}) of a file of these tensors."""
    for name, tensor in tensors.items():
        if name == "__metadata__" or not isinstance(name, str):
            raise ValueError(f"tensor name {name!r} is not allowed: use a string other than '__metadata__'")
        if tensor.dtype not in _TAGS:
            raise TypeError(f"{name}: {tensor.dtype} has no safetensors form; convert it to one of "
                            f"{list(_RANKS)}")
    header, offset = {}, 0
    if metadata:
        if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
            raise TypeError(f"metadata must map strings to strings, not {metadata!r}; "
                            "convert the values with str()")
        header["__metadata__"] = dict(metadata)
    spans = {}
    for name in sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name)):
        tensor = tensors[name]
        spans[name] = [offset, offset + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": _TAGS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": spans[name]}
        offset = spans[name][1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % 8), spans  # so that every tensor starts aligned to its own item size


def _read_header(file, path):
    """(entries, where the data starts, file size in bytes), with the JSON's form checked."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{path}: header of {length} bytes in a file of {size} (at most "
                         f"{MAX_HEADER_BYTES}): not a safetensors file, or cut short; fetch it again")
    text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the safetensors header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the safetensors header is a {type(header).__name__}, not a JSON object")
    strings = header.pop("__metadata__", {})
    if not isinstance(strings, dict) or not all(isinstance(value, str) for value in strings.values()):
        raise ValueError(f"{path}: __metadata__ must map strings to strings")
    return header, 8 + length, size


def _unique_keys(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _check_tiling(header, data_bytes, path):
    """Every entry well-formed, and all of them together covering [0, data_bytes) exactly once."""
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{path}: {name} must have exactly dtype, shape and data_offsets, "
                             f"not {entry!r:.200}")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} has dtype {entry['dtype']!r:.50}; known are {list(DTYPES)}: "
                             "a quantized checkpoint, or damaged")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _counts(shape) or len(shape) > 64 or math.prod(filter(None, shape)) >= 2**60:
            raise ValueError(f"{path}: {name} has shape {shape!r:.200}; allowed are up to 64 sizes >= 0")
        if not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"{path}: {name} has data_offsets {offsets!r:.200}, not [begin, end]")
        wanted = math.prod(shape) * DTYPES[entry["dtype"]].itemsize
        if offsets[1] - offsets[0] != wanted:
            raise ValueError(f"{path}: {name} {entry['dtype']}{shape} needs {wanted} bytes, "
                             f"data_offsets {offsets} give {offsets[1] - offsets[0]}")
    position = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        begin, end = header[name]["data_offsets"]
        if begin != position:
            wrong = "an overlap" if begin < position else "a hole"
            raise ValueError(f"{path}: {name} begins at byte {begin}, those before end at {position}: "
                             f"{wrong}; the file is damaged")
        position = end
    if position != data_bytes:
        raise ValueError(f"{path}: the tensors end at byte {position} of {data_bytes}; the file is damaged")


def _counts(values):
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _tensor(file, file_bytes, start, entry, name, path):
    """A large tensor has a map of its own, whose pages leave memory with it; small ones share the file's."""
    begin, end = (start + offset for offset in entry["data_offsets"])
    raw, dtype = file_bytes[begin:end], DTYPES[entry["dtype"]]
    if end - begin >= OWN_MAP and begin % dtype.itemsize == 0:
        slack = begin % mmap.ALLOCATIONGRANULARITY
        block = mmap.mmap(file.fileno(), slack + end - begin, access=mmap.ACCESS_COPY, offset=begin - slack)
        raw = torch.frombuffer(block, dtype=torch.uint8, count=end - begin, offset=slack)
    if dtype == torch.bool and bool((raw > 1).any()):
        raise ValueError(f"{path}: {name} is BOOL but holds a byte that is neither 0 nor 1")
    if raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()  # a foreign writer did not pad its header: the view needs aligned bytes
    return raw.view(dtype).reshape(entry["shape"])
