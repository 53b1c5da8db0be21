"""CUDA programs get the answers that a GPU gives: one program, answers.cu, checks itself line by line."""

from pathlib import Path

import pytest
from test_cuda_program import compiles

from minillama.simt.cuda_program import build, run

FOLDER = Path(__file__).resolve().parent / "programs"


@compiles
@pytest.mark.parametrize("schedule", ["forward", "reverse"])
def test_each_answer_is_the_one_that_cuda_documents(schedule):
    out = []
    result = run(build(FOLDER / "answers.cu"), schedule=schedule, write=out.append)
    lines = [line for line in b"".join(out).decode().splitlines() if not line.startswith("[emulator: cudaEvent")]
    assert result.code == 0 and not result.findings, result
    assert len(lines) >= 3 and not [line for line in lines if not line.endswith(" ok")], lines


def printed(case):
    out = []
    result = run(build(FOLDER / "prints.cu"), [case], write=out.append)
    assert result.code == 0 and not result.findings, result
    return b"".join(out).decode()


@compiles
def test_printf_of_kernels_is_seen_when_the_host_asks_and_counts_its_arguments():
    assert printed("0") == (
        "the host goes on\nand on\n"
        "-3| 2.50|x|word|%|7   |+8|ff|   9\nnothing\n" + "123456789" * 3 + "12345 %d%s%%\n0 1 "
        "four\n9 0 -1 32 4\n")


@compiles
def test_printf_of_kernels_loses_the_oldest_output_where_its_buffer_is_full_and_says_so():
    out = printed("1")
    assert out.endswith("6 7 8 9 ") and " 5 " not in out and "the oldest output is lost" in out


@compiles
def test_output_that_a_gpu_would_not_show_is_shown_with_a_word():
    out = printed("2")
    assert "0 1 2 " in out and "end with cudaDeviceSynchronize()" in out
