"""How GGUF's tensor types hold numbers: plain, in blocks of 32 that share a scale, or in the "K" types' blocks of 256,
whose 8 or 16 parts have scales of 4 to 8 bits each (s, and of the least number, n), times one scale of the block.

    Q8_0   fp16 d, 32 int8 q                                        x = d q,  d = max|x| / 127
    Q4_0   fp16 d, 16 bytes: q_i + 16 q_(i+16)                      x = d (q - 8)
    Q4_1   fp16 d, fp16 m, 16 bytes as in Q4_0                      x = d q + m
    Q5_0   fp16 d, 32 fifth bits, 16 bytes as in Q4_0               x = d (q - 16)
    Q5_1   fp16 d, fp16 m, 32 fifth bits, 16 bytes as in Q4_0       x = d q + m
    Q2_K   16 bytes s + 16 n, 64 bytes q, fp16 d, fp16 e            x = (d s) q - e n
    Q3_K   32 bytes of third bits, 64 bytes q, 12 of s, fp16 d      x = (d (s - 32)) (q - 4)
    Q4_K   fp16 d, fp16 e, 12 bytes of s and n, 128 bytes q         x = (d s) q - e n
    Q5_K   fp16 d, fp16 e, 12 of s and n, 32 of fifth bits, 128 q   x = (d s) q - e n
    Q6_K   128 bytes of four bits, 64 of the upper two, 16 int8 s, fp16 d    x = (d s) (q - 32)

Products are rounded to fp32 in the order of the brackets, as ggml does it.
Source: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h (the blocks) and ggml-quants.c (the numbers).
"""

from functools import partial
from typing import Callable, NamedTuple

import torch


class Block(NamedTuple):
    """One tensor type. `decode` takes the bytes (uint8) and gives a flat tensor of `dtype`, `encode` the reverse."""

    name: str
    numbers: int  # in a block
    bytes: int  # of a block
    dtype: torch.dtype
    decode: Callable
    encode: Callable | None = None  # None: read only


def _half(raw):
    """Two bytes of every block as fp32."""
    return raw.contiguous().view(torch.float16).float()


def _fields(raw, width, run):
    """(blocks, n) bytes, each of several numbers of `width` bits -> (blocks, 8 n / width) uint8. The lowest bits of
    `run` bytes are the first `run` numbers, their next bits the next `run`."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    return ((raw.reshape(len(raw), -1, 1, run) >> shifts) & (2**width - 1)).flatten(1)


def _decode_q8_0(raw):
    d, q = raw.view(-1, 34).split([2, 32], 1)
    return (_half(d) * q.contiguous().view(torch.int8).float()).flatten()


def _decode_32(raw, has_least, has_fifth):
    """Q4_0, Q4_1 (has_least), Q5_0 (has_fifth) and Q5_1."""
    widths = [2, 2 * has_least, 4 * has_fifth, 16]
    d, m, fifth, q = raw.view(-1, sum(widths)).split(widths, 1)
    q = _fields(q, 4, 16)
    if has_fifth:
        q = q | (_fields(fifth, 1, 1) << 4)
    if has_least:
        return (_half(d) * q.float() + _half(m)).flatten()
    return (_half(d) * (q.float() - (16 if has_fifth else 8))).flatten()


def _scale(q, scales, least=None):
    """(blocks, 256) q in as many parts as there are scales (blocks, parts): scale times q, less `least`."""
    parts = scales[..., None] * q.float().view(*scales.shape, -1)
    return (parts if least is None else parts - least[..., None]).flatten()


def _decode_q2_k(raw):
    scales, q, d, e = raw.view(-1, 84).split([16, 64, 2, 2], 1)
    return _scale(_fields(q, 2, 32), _half(d) * (scales & 15).float(), _half(e) * (scales >> 4).float())


def _decode_q3_k(raw):
    third, q, low, high, d = raw.view(-1, 110).split([32, 64, 8, 4, 2], 1)
    scales = (_fields(low, 4, 8) | (_fields(high, 2, 4) << 4)).float() - 32
    return _scale((_fields(q, 2, 32) | (_fields(third, 1, 32) << 2)).float() - 4, _half(d) * scales)


def _six_bits(raw):
    """Twelve bytes of every block -> (8 scales, 8 leasts). The first four of each lie in the low bits of bytes 0 to 3
    and 4 to 7, whose two upper bits belong to the last four, which lie in the halves of bytes 8 to 11."""
    first, second, halves = raw.split(4, 1)
    scales = torch.cat([first & 63, (halves & 15) | (first >> 6 << 4)], 1)
    return scales.float(), torch.cat([second & 63, (halves >> 4) | (second >> 6 << 4)], 1).float()


def _decode_q45_k(raw, has_fifth):
    """Q4_K and, with fifth bits, Q5_K."""
    widths = [2, 2, 12, 32 * has_fifth, 128]
    d, e, packed, fifth, q = raw.view(-1, sum(widths)).split(widths, 1)
    q = _fields(q, 4, 32)
    if has_fifth:
        q = q | (_fields(fifth, 1, 32) << 4)
    scales, least = _six_bits(packed)
    return _scale(q, _half(d) * scales, _half(e) * least)


def _decode_q6_k(raw):
    low, high, scales, d = raw.view(-1, 210).split([128, 64, 16, 2], 1)
    q = (_fields(low, 4, 64) | (_fields(high, 2, 32) << 4)).float() - 32
    return _scale(q, _half(d) * scales.contiguous().view(torch.int8).float())


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
    (2, Block("Q4_0", 32, 18, torch.float32, partial(_decode_32, has_least=False, has_fifth=False))),
    (3, Block("Q4_1", 32, 20, torch.float32, partial(_decode_32, has_least=True, has_fifth=False))),
    (6, Block("Q5_0", 32, 22, torch.float32, partial(_decode_32, has_least=False, has_fifth=True))),
    (7, Block("Q5_1", 32, 24, torch.float32, partial(_decode_32, has_least=True, has_fifth=True))),
    (8, Block("Q8_0", 32, 34, torch.float32, _decode_q8_0, _encode_q8_0)),
    (10, Block("Q2_K", 256, 84, torch.float32, _decode_q2_k)),
    (11, Block("Q3_K", 256, 110, torch.float32, _decode_q3_k)),
    (12, Block("Q4_K", 256, 144, torch.float32, partial(_decode_q45_k, has_fifth=False))),
    (13, Block("Q5_K", 256, 176, torch.float32, partial(_decode_q45_k, has_fifth=True))),
    (14, Block("Q6_K", 256, 210, torch.float32, _decode_q6_k)),
])
# What ggml's other numbers mean (ggml/include/ggml.h), also those that it has given up; they are not read here.
UNREAD = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
          20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
          29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4",
          37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}
F32, Q8_0 = 0, 8
PLAIN = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
