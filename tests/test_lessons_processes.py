"""Laws of the processes of lesson 38: what they compute, the bytes they count, and that one which fails is named."""

import struct

import pytest
import torch

from lessons import processes
from lessons.processes import run

pytestmark = pytest.mark.long  # a fresh Python loads PyTorch

LESSON = """
import os
import socket

import torch

FACTOR = 3


def scaled(x):
    return FACTOR * x


def around(link, x):
    link.send(scaled(x), (link.rank + 1) % link.size)
    return link.receive(x, (link.rank - 1) % link.size)


def swap(link, x):
    link.send(x, 1 - link.rank)
    other = link.receive(x, 1 - link.rank)
    return other, link._peers[1 - link.rank].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)


def divide(link, x):
    return 12 // x


def end(link, x):
    if link.rank == 1:
        os._exit(3)
    return link.receive(torch.ones(2), 1)
"""


@pytest.fixture(scope="module")
def lesson():
    """Functions that no process can import: those of a lesson's or a notebook's cells."""
    names = {"__name__": "__main__"}
    exec(LESSON, names)
    return names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_a_function_takes_along_what_it_uses_and_each_byte_is_counted(lesson, dtype):
    xs = [torch.arange(5 * (P + 1)).view(5, P + 1)[:, 1:].to(dtype) for P in (3, 3, 3)]  # not contiguous
    xs = [x + i for i, x in enumerate(xs)]
    values, sent = run(lesson["around"], xs)
    for rank, value in enumerate(values):
        assert torch.equal(value, 3 * xs[rank - 1]) and value.dtype == dtype
    assert sent == [15 * xs[0].element_size()] * 3


def test_two_that_send_much_at_once_do_not_wait_for_each_other_and_the_system_counts_the_same_bytes(lesson):
    xs = torch.randn(2, 3_000_000)
    values, sent = run(lesson["swap"], xs)
    assert torch.equal(values[0][0], xs[1]) and torch.equal(values[1][0], xs[0])
    received = [struct.unpack_from("Q", info, 128)[0] for _, info in values]  # tcpi_bytes_received of Linux's tcp_info
    assert sent == [12_000_000, 12_000_000] == [received[0] - 1, received[1]]  # process 1 has said its number before


def test_a_process_alone_has_nobody_to_send_to(lesson):
    assert run(lesson["divide"], [4]) == ([3], [0])


def test_a_process_that_fails_is_named_with_its_line_and_the_next_run_works(lesson):
    with pytest.raises(RuntimeError, match=r"process 1 of 3: [\s\S]*ZeroDivisionError"):
        run(lesson["divide"], [1, 0, 2])
    assert run(lesson["divide"], [1, 2])[0] == [12, 6]


def test_a_process_that_ends_ends_those_that_wait_for_it(lesson):
    with pytest.raises(RuntimeError, match=r"process 0 of 2: [\s\S]*process 1 has ended"):
        run(lesson["end"], [0, 0])


def test_after_an_interrupt_no_run_gets_the_answer_of_the_one_before(lesson, monkeypatch):
    def interrupted(pipe):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processes, "_read", interrupted)
        run(lesson["divide"], [1, 2])
    assert run(lesson["divide"], [3]) == ([4], [0])
