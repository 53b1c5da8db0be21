"""Tensors in memory that behaves like a GPU's at its worst: an unreadable page behind it, or addresses beyond 2^32.

    at_the_end(x)         the same numbers, the last of which ends where memory ends: what is read beyond is a fault,
                          which the emulator reports as an error
    sparse(shape, ...)    a tensor with a stride of 2^32 elements: an index kept in 32 bits meets another element
"""

import ctypes
import mmap
import sys

import pytest
import torch

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(sys.platform != "linux", reason="maps memory as Linux does")


def at_the_end(x, aligned=True):
    """A contiguous copy of x in front of an unreadable page; aligned: at a multiple of 16 bytes, with up to 15 bytes of
    NaN between its end and the page."""
    x = x.detach().contiguous()
    bytes_of = x.numel() * x.element_size()
    room = -(-bytes_of // PAGE) * PAGE
    memory = mmap.mmap(-1, room + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + room), PAGE, 0) == 0
    torch.frombuffer(memory, dtype=torch.uint8, count=room).fill_(255)  # NaN in all floating dtypes
    offset = (room - bytes_of) // 16 * 16 if aligned else room - bytes_of
    found = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=offset)
    return found.copy_(x.flatten()).view(x.shape)


def sparse(x, dim, stride=2**32):
    """x in memory where that dimension has so large a stride: gigabytes of addresses, of which few pages exist."""
    strides = list(x.contiguous().stride())
    strides[dim] = stride
    last = sum((size - 1) * step for size, step in zip(x.shape, strides, strict=True))
    try:
        memory = mmap.mmap(-1, (last + 1) * x.element_size(),
                           flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
    except OSError:
        pytest.skip("so many addresses cannot be had here")
    found = torch.frombuffer(memory, dtype=x.dtype).as_strided(x.shape, strides)
    return found.copy_(x.detach())
