"""CUDA programs get the answers that a GPU gives: one program, answers.cu, checks itself line by line."""

from pathlib import Path

import pytest
from test_cuda_program import compiles

from minillama.cuda_program import build, run

FOLDER = Path(__file__).resolve().parent / "simt" / "programs"


@compiles
@pytest.mark.parametrize("schedule", ["forward", "reverse"])
def test_each_answer_is_the_one_that_cuda_documents(schedule):
    out = []
    result = run(build(FOLDER / "answers.cu"), schedule=schedule, write=out.append)
    lines = b"".join(out).decode().splitlines()
    assert result.code == 0 and not result.findings, result
    assert len(lines) >= 3 and not [line for line in lines if not line.endswith(" ok")], lines
