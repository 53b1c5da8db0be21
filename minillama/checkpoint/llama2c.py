"""The `.bin` files of karpathy/llama2.c: a short header, then every number in a fixed order, little-endian.

    version 0   7 int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: own output
                head), max_seq_len; then fp32. Before the output head lie two RoPE tables, not needed here.
    version 1   "ak42" and the version, the 7 int32, a byte (1: tied head), zeros up to byte 256; then fp32.
    version 2   as 1, with the group size after the byte; norms fp32, each matrix int8, then one fp32 scale
                for every group of its numbers, value = int8 * scale.

The format knows RoPE theta 10000, norm eps 1e-5 and head_dim = dim / n_heads only: run.c has them fixed.
Source: export.py and run.c of karpathy/llama2.c.
"""

import math
import os
import struct
from pathlib import Path

import torch

from minillama.checkpoint.weights import Stored, Weights, as_stored, expected_shapes
from minillama.config import ModelConfig
from minillama.system.files import atomic_write
from minillama.system.snapshot import open_snapshot

MAGIC = 0x616B3432  # "ak42"
HEADER_BYTES = 256  # of versions 1 and 2
GROUP = 64  # numbers that share a scale in version 2, halved until it divides every row
MATRICES = ("attention.wq", "attention.wk", "attention.wv", "attention.wo",
            "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def looks_like_llama2c(path):
    """Whether the file is as long as its header says, to the byte: version 0 has no other mark."""
    try:
        with open_snapshot(path) as (file, _):
            _read_header(file, path)
    except (ValueError, struct.error):
        return False
    return True


def read_llama2c(path):
    """The `Weights` of a `.bin` file, memory-mapped. ValueError unless its size is what the header says."""
    with open_snapshot(path) as (file, again):
        config, version, start, group = _read_header(file, path)
        size = os.fstat(file.fileno()).st_size
        content = torch.from_file(again, shared=False, size=size, dtype=torch.uint8)
    tensors, shapes = {}, expected_shapes(config)
    for name, begin, end in _spans(config, version, start, group):
        if name in shapes:
            tensors[name] = _stored(content[begin:end], shapes[name], version, group)
    return Weights(config, tensors, Path(path))


def check_llama2c(config):
    """ValueError where the form cannot say this config."""
    for name, fixed in (("rope_theta", 10000.0), ("norm_eps", 1e-5), ("rope_scaling", None),
                        ("head_dim", config.dim // config.n_heads)):
        if getattr(config, name) != fixed:
            raise ValueError(f"{name} is {getattr(config, name)} and llama2.c's form has it fixed at "
                             f"{fixed}: choose another form")


def write_llama2c(path, weights, version=0):
    """Write a `.bin` of version 0 or 1 (fp32), or 2 (int8). ValueError where the form cannot say the config."""
    config = weights.config
    if version not in (0, 1, 2):
        raise ValueError(f"llama2.c version {version!r} does not exist: use 0, 1 or 2")
    check_llama2c(config)
    group = math.gcd(GROUP, config.dim, config.hidden_dim)
    with atomic_write(path) as file:
        file.write(_header(config, version, group))
        for name in _order(config, version):
            file.write(_table_bytes(config) if name.startswith("rope.")
                       else _bytes(weights.tensors[name].read().float(), version, group))


def _read_header(file, path):
    """(config, version, where the numbers begin, group size); the file's size has been checked against them."""
    size, head = os.fstat(file.fileno()).st_size, file.read(HEADER_BYTES)
    version, group = 0, 0
    if len(head) >= 8 and struct.unpack("<I", head[:4]) == (MAGIC,):
        version, = struct.unpack("<i", head[4:8])
        if version not in (1, 2) or len(head) < HEADER_BYTES:
            raise ValueError(f"{path}: llama2.c version {version}, {size} bytes: known are 1 and 2, above 256 bytes")
    if len(head) < 28:
        raise ValueError(f"{path}: {size} bytes are too few for a llama2.c header of 28")
    begin, start = (8, HEADER_BYTES) if version else (0, 28)
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", head[begin:begin + 28])
    tied = vocab > 0 if version == 0 else head[36] == 1
    if version == 2:
        group, = struct.unpack("<i", head[37:41])
        if group < 1 or dim % group:  # every matrix has dim as a side
            raise ValueError(f"{path}: group size {group} does not divide dim {dim}")
    try:
        config = ModelConfig(dim, layers, heads, abs(vocab), kv_heads, hidden_dim=hidden, max_seq_len=length,
                             tie_embeddings=tied)
    except ValueError as error:
        raise ValueError(f"{path}: not a llama2.c file, or damaged: {error}") from None
    wanted = start + _n_bytes(config, version, group)
    if wanted != size:
        raise ValueError(f"{path}: {size} bytes, but its header (dim {dim}, {layers} layers, vocabulary "
                         f"{abs(vocab)}) asks for {wanted}: cut short, or not a llama2.c file")
    return config, version, start, group


def _n_bytes(config, version, group):
    """Bytes after the header, by formula: the counts are not to be trusted with a loop yet."""
    norms = (2 * config.n_layers + 1) * config.dim
    matrices = config.n_parameters() - norms
    if version == 2:
        return 4 * norms + matrices + 4 * (matrices // group)
    tables = config.max_seq_len * config.head_dim if version == 0 else 0
    return 4 * (norms + matrices + tables)


def _order(config, version):
    """Meta's names in the file's order; "rope.tables" stands for the two tables of version 0."""
    def every(*parts):
        return [f"layers.{layer}.{part}.weight" for part in parts for layer in range(config.n_layers)]

    head = [] if config.tie_embeddings else ["output.weight"]
    if version == 0:
        return ["tok_embeddings.weight", *every("attention_norm", *MATRICES[:4], "ffn_norm", *MATRICES[4:]),
                "norm.weight", "rope.tables", *head]
    norms = [*every("attention_norm", "ffn_norm"), "norm.weight"]
    return [*norms, "tok_embeddings.weight", *every(*MATRICES), *head]


def _spans(config, version, start, group):
    """(name, first byte, byte behind the last) of each entry."""
    shapes = expected_shapes(config)
    for name in _order(config, version):
        shape = shapes.get(name, (config.max_seq_len, config.head_dim))
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        quantized = version == 2 and len(shape) == 2
        end = start + (count + 4 * (count // group) if quantized else 4 * count)
        yield name, start, end
        start = end


def _stored(raw, shape, version, group):
    if version != 2 or len(shape) == 1:
        return as_stored(raw.view(torch.float32).view(shape))
    count = shape[0] * shape[1]
    codes, scales = raw[:count].view(torch.int8), raw[count:]

    def dequantize():
        aligned = scales.clone().view(torch.float32)  # int8 numbers before it may leave it at an odd address
        return (codes.view(-1, group).float() * aligned[:, None]).view(shape)

    return Stored(shape, torch.float32, dequantize)


def _header(config, version, group):
    vocab = config.vocab_size if version or config.tie_embeddings else -config.vocab_size
    numbers = struct.pack("<7i", config.dim, config.hidden_dim, config.n_layers, config.n_heads,
                          config.n_kv_heads, vocab, config.max_seq_len)
    if version == 0:
        return numbers
    tail = struct.pack("<B", config.tie_embeddings) + (struct.pack("<i", group) if version == 2 else b"")
    return (struct.pack("<Ii", MAGIC, version) + numbers + tail).ljust(HEADER_BYTES, b"\0")


def _bytes(tensor, version, group):
    """The numbers of one tensor as the file holds them. int8: scale = largest of the group / 127."""
    if version != 2 or tensor.dim() == 1:
        return tensor.contiguous().numpy().tobytes()
    groups = tensor.reshape(-1, group)
    scales = groups.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scales > 0, groups / scales, 0).round().to(torch.int8)
    return codes.numpy().tobytes() + scales.numpy().tobytes()


def _table_bytes(config):
    """cos and sin of every position and pair, each (max_seq_len, d/2), for programs that still read them."""
    from minillama.rope import rope_frequencies, rope_rotations

    turns = rope_rotations(torch.arange(config.max_seq_len), rope_frequencies(config.head_dim))
    return turns.real.numpy().tobytes() + turns.imag.numpy().tobytes()
