"""How GGUF's tensor types hold numbers: plain, or in blocks of 32 that share a scale.

    Q8_0   fp16 d, 32 int8 q                           x = d q,        d = max|x| / 127
    Q4_0   fp16 d, 16 bytes: q_i + 16 q_(i+16)         x = d (q - 8)
    Q4_1   fp16 d, fp16 m, 16 bytes as in Q4_0         x = d q + m

Source: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-quants.c.
"""

from typing import Callable, NamedTuple

import torch


class Block(NamedTuple):
    """One tensor type. `decode` takes the bytes (uint8) and gives a flat tensor of `dtype`, `encode` the reverse."""

    name: str
    numbers: int  # in a block
    bytes: int  # of a block
    dtype: torch.dtype
    decode: Callable
    encode: Callable = None  # None: read only


def _half(raw):
    """Two bytes of every block as fp32."""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw):
    """(blocks, 16) bytes -> (blocks, 32) fp32: the low halves are the first 16 numbers."""
    return torch.cat([raw & 15, raw >> 4], dim=1).float()


def _decode_q8_0(raw):
    blocks = raw.view(-1, 34)
    return (_half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()).flatten()


def _decode_q4_0(raw):
    blocks = raw.view(-1, 18)
    return (_half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]) - 8)).flatten()


def _decode_q4_1(raw):
    blocks = raw.view(-1, 20)
    return (_half(blocks[:, :2]) * _nibbles(blocks[:, 4:]) + _half(blocks[:, 2:4])).flatten()


def _encode_q8_0(tensor):
    """The scale is stored in fp16, but numbers are divided by its fp32 value; halves round away from zero."""
    x = tensor.float().reshape(-1, 32)
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * torch.where(d > 0, 1 / d, 0)
    q = (scaled.sign() * (scaled.abs() + 0.5).floor()).to(torch.int8)
    return torch.cat([d.half().view(torch.uint8), q.view(torch.uint8)], dim=1).flatten()


def _plain(name, number, dtype):
    def decode(raw):
        return (raw if raw.data_ptr() % dtype.itemsize == 0 else raw.clone()).view(dtype)

    def encode(tensor):
        return tensor.to(dtype).contiguous().flatten().view(torch.uint8)

    return number, Block(name, 1, dtype.itemsize, dtype, decode, encode)


BLOCKS = dict([
    _plain("F32", 0, torch.float32), _plain("F16", 1, torch.float16), _plain("BF16", 30, torch.bfloat16),
    (2, Block("Q4_0", 32, 18, torch.float32, _decode_q4_0)),
    (3, Block("Q4_1", 32, 20, torch.float32, _decode_q4_1)),
    (8, Block("Q8_0", 32, 34, torch.float32, _decode_q8_0, _encode_q8_0)),
])
F32, Q8_0 = 0, 8
PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
