"""What ends a kernel is told with kernel, block, thread and line, and never is a bare signal.

Program: tests/simt/programs/stops.cu, one fault by argument. Each marks its line: `// kind: argument`.
"""

import re
from pathlib import Path

import pytest
from test_cuda_program import compiles

from minillama.simt.cuda_program import build, run

FOLDER = Path(__file__).resolve().parent / "programs"
STOPS = {int(case): (kind, line) for line, text in enumerate(
    (FOLDER / "stops.cu").read_text(encoding="utf-8").splitlines(), 1)
    for kind, case in re.findall(r"// ([a-z ]+): (\d+)$", text)}
LINE_OF_LAUNCH = {14}  # an exception is seen only once the stack that threw it is gone


@compiles
@pytest.mark.parametrize("case", STOPS)
@pytest.mark.parametrize("schedule", ["forward", "reverse"])
def test_a_kernel_that_is_ended_is_named_with_block_thread_and_line(case, schedule, monkeypatch):
    kind, line = STOPS[case]
    monkeypatch.setenv("SIMT_SECONDS", "0.2")
    if case in (11, 12) and schedule == "reverse":
        pytest.skip("the last block runs first, and nobody waits")
    out = []
    result = run(build(FOLDER / "stops.cu"), [str(case)], schedule=schedule, seconds=30, write=out.append)
    assert result.code == 0 and not result.stopped and len(result.findings) == 1, result
    place = r"\d+" if case in LINE_OF_LAUNCH else str(line)
    if kind == "stack overflow":  # somewhere at the beginning of the function
        place = "(" + "|".join(str(line + i) for i in range(4)) + ")"
    text = result.findings[0]
    assert re.match(rf"kernel \w+, block \(\d,0,0\), thread \(\d+,0,0\), \S*stops.cu:{place}: .*{kind}", text), text
    assert b"".join(out).startswith(b"700" if kind == "illegal address" else b"719"), out


@compiles
def test_a_kernel_that_does_nothing_wrong_is_not_ended():
    assert not run(build(FOLDER / "stops.cu")).findings


@compiles
def test_a_block_that_meets_long_and_writes_is_not_called_endless(tmp_path, monkeypatch):
    """Five times the patience of the watchdog in one block: barriers, and one word that changes now and then."""
    monkeypatch.setenv("SIMT_SECONDS", "0.1")
    (tmp_path / "long.cu").write_text("""#include <ctime>
__global__ void counts(long long *x) {
  const clock_t begin = clock();
  for (bool more = true; __syncthreads_or(more);) {
    if (threadIdx.x == 0) ++x[0];
    more = clock() - begin < 500000000;
  }
}
int main() {
  long long *x;
  cudaMallocManaged(&x, 8);
  counts<<<1, 32>>>(x);
  return cudaDeviceSynchronize();
}
""")
    result = run(build(tmp_path / "long.cu"))
    assert result.code == 0 and not result.findings, result
