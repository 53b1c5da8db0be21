"""The profiler counts what can be counted by hand, names what is wrong, and accuses no sound kernel.

Kernels: tests/simt/kernels/patterns.cu (counts) and twins.cu (each mistake beside its sound twin).
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from minillama import kernels

FOLDER = Path(__file__).resolve().parent / "kernels"
SCHEDULES = ("forward", "reverse", "shuffle:5")

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                reason="the profiler is compiled on the spot by g++, on Linux")


@pytest.fixture(scope="module")
def patterns():
    return kernels.CudaSource(FOLDER / "patterns.cu")


@pytest.fixture(scope="module")
def twins():
    return kernels.CudaSource(FOLDER / "twins.cu")


def profile_of(source, name, *arguments):
    with kernels.profile(source) as p:
        getattr(source, name)(*arguments)
    assert not p.findings, p.findings
    return p


def line_of(source, words, number=0):
    found = [n for n, line in enumerate(source.text.splitlines(), 1) if words in line]
    return found[number]


# ---- counts

@pytest.mark.parametrize(("name", "dtype", "sectors", "bytes_"), [
    ("row", torch.float32, 4, 128),       # 32 x 4 bytes in a row
    ("shifted", torch.float32, 5, 128),   # the same, one float further: reaches into a fifth sector
    ("strided", torch.float32, 32, 128),  # 32 bytes apart: a sector for each lane
    ("broadcast", torch.float32, 1, 4),   # all lanes read one float
    ("halves", torch.float16, 2, 64),
    ("doubles", torch.float64, 8, 256),
])
def test_a_request_fetches_the_sectors_its_lanes_touch(patterns, name, dtype, sectors, bytes_):
    read = profile_of(patterns, name, torch.zeros(512, dtype=dtype), torch.zeros(32)).global_load
    assert (read.requests, read.lanes, read.sectors, read.compulsory) == (1, 32, sectors, bytes_)
    assert read.ideal_sectors == -(-bytes_ // 32)


def test_a_row_of_float4_is_one_request_of_16_sectors(patterns):
    p = profile_of(patterns, "vectors", torch.zeros(128), torch.zeros(128))
    for counts in (p.global_load, p.global_store):
        assert (counts.requests, counts.sectors, counts.bytes, counts.compulsory) == (1, 16, 512, 512)


def test_compulsory_bytes_are_counted_once_in_a_launch_and_issued_ones_each_time(patterns):
    p = profile_of(patterns, "again", torch.zeros(32), torch.zeros(128))
    assert (p.global_load.sectors * 32, p.global_load.compulsory) == (4 * 128, 128)
    assert p.global_load.issued_over_compulsory == 4 and p.global_store.issued_over_compulsory == 1
    x = torch.ones(32)
    p = profile_of(patterns, "doubled", x)  # in place: each byte is read once and written once
    assert (p.global_load.compulsory, p.global_store.compulsory) == (128, 128) and (x == 2).all()


def test_the_transpose_of_64_by_64_has_the_counts_of_the_textbook(patterns):
    x = torch.randn(64, 64)
    for version, (sectors, conflicts) in enumerate([(32, 0), (4, 3968), (4, 0)]):
        y = torch.zeros(64, 64)
        p = profile_of(patterns, "transpose", x, y, 64, version)
        assert torch.equal(y, x.T)
        assert (p.global_store.requests, p.global_store.sectors_per_request) == (128, sectors)
        assert p.global_load.sectors_per_request == 4
        assert p.total("shared").conflicts == conflicts
        assert p.barriers == (0 if version == 0 else 4)


@pytest.mark.parametrize(("version", "wavefronts", "conflicts"), [
    (0, 1, 0),    # one word for all lanes
    (1, 1, 0),    # neighbours
    (2, 2, 1),    # every second float: two words in each of 16 banks
    (3, 1, 0),    # 3 has no common divisor with 32
    (4, 8, 7),    # 8 floats apart: 4 banks, 8 words in each
    (5, 32, 31),  # a column of 32 floats
    (6, 2, 0),    # float2: 16 lanes at a time
    (7, 4, 2),    # ... every second one
    (8, 4, 0),    # float4: 8 lanes at a time
    (9, 8, 4),    # ... every second one
])
def test_lanes_that_want_different_words_of_a_bank_take_turns(patterns, version, wavefronts, conflicts):
    p = profile_of(patterns, "banks", torch.zeros(32), version)
    read = p.total("shared", "load", line=line_of(patterns, "const T value"))
    assert (read.requests, read.wavefronts, read.conflicts) == (1, wavefronts, conflicts)


@pytest.mark.parametrize(("width", "conflicts"), [(16, 4), (24, 0), (64, 28)])
def test_ldmatrix_reads_eight_rows_at_a_time(patterns, width, conflicts):
    """Rows of 16 halves: rows r and r + 4 lie in the same banks. Of 24: none do. Of 64: all eight do."""
    p = profile_of(patterns, "ldmatrix", torch.zeros(32), width)
    rows = p.total("shared", "load", line=line_of(patterns, "ldmatrix_x4"))
    assert (rows.requests, rows.bytes, rows.conflicts) == (1, 512, conflicts)
    assert p.mma == 2 and p.events("ldmatrix") == 1


def test_atomics_and_async_copies_are_accesses_too(patterns):
    count = torch.zeros(1, dtype=torch.int32)
    p = profile_of(patterns, "atomics", count)
    assert count.item() == 128
    assert (p.total("global", "atomic").requests, p.total("global", "atomic").sectors) == (4, 4)
    p = profile_of(patterns, "async_copy", torch.zeros(128), torch.zeros(32))
    assert (p.global_load.requests, p.global_load.sectors, p.shared_store.bytes) == (1, 16, 512)


def test_lanes_that_do_not_take_part_are_not_counted(patterns):
    p = profile_of(patterns, "divergent", torch.zeros(32), torch.zeros(96))
    eight = p.total("global", "load", line=line_of(patterns, "8 lanes"))
    upper = p.total("global", "load", line=line_of(patterns, "upper 16"))
    assert (eight.requests, eight.active_lanes, eight.sectors) == (3, 8, 12)
    assert (upper.requests, upper.active_lanes, upper.sectors) == (3, 16, 3)
    assert p.barriers == 3


@pytest.mark.parametrize("order", SCHEDULES[1:])
def test_counts_do_not_depend_on_the_schedule(patterns, order):
    x = torch.randn(64, 64)
    forward = profile_of(patterns, "transpose", x, torch.zeros(64, 64), 64, 1)
    with kernels.schedule(order):
        other = profile_of(patterns, "transpose", x, torch.zeros(64, 64), 64, 1)
    for which in ("global_load", "global_store", "shared_load", "shared_store"):
        assert getattr(forward, which) == getattr(other, which)


# ---- mistakes

TWINS = re.findall(r'extern "C" void (\w+)', (FOLDER / "twins.cu").read_text(encoding="utf-8"))


def marked(source, name):
    """(kind, lines) that the marks of this twin name; without a mark the failing call's own text is looked at."""
    marks = [(n, found[1]) for n, line in enumerate(source.text.splitlines(), 1)
             if (found := re.search(rf"// (\w[\w ]*): {name}$", line))]
    return marks[0][1], {n for n, _ in marks}


def lines_in(finding):
    places = {finding.place, finding.other} - {""}
    return {int(place.rsplit(":", 1)[1]) for place in places if "twins.cu" in place}


def run_twin(twins, name, sound):
    y, stopped = torch.zeros(256), None
    with kernels.profile(twins) as p:
        try:
            getattr(twins, name)(torch.arange(256.0), y, sound)
        except RuntimeError as error:
            stopped = str(error)
    return p.findings, stopped


@pytest.mark.parametrize("name", TWINS)
def test_each_mistake_is_named_with_its_lines_under_every_schedule_and_its_sound_twin_is_not_accused(twins, name):
    kind, lines = marked(twins, name)
    for order in SCHEDULES:
        with kernels.schedule(order):
            assert run_twin(twins, name, sound=1) == ([], None)
            findings, stopped = run_twin(twins, name, sound=0)
        assert findings and {finding.kind for finding in findings} == {kind}, (order, findings)
        assert all(lines_in(finding) and lines_in(finding) <= lines for finding in findings), (order, findings)
        assert set().union(*map(lines_in, findings)) == lines or kind == "barrier", (order, findings)
        for finding in findings:
            assert re.match(r"kernel \w+, block \(0,0,0\), thread \(\d+,0,0\), twins.cu:\d+: ", finding.text)
        assert bool(stopped) == (kind not in ("race", "uninitialised", "asynchronous copy"))


def test_there_are_at_least_twelve_kinds_of_mistakes():
    assert len(TWINS) >= 20


def test_strictly_only_syncwarp_orders_memory(twins):
    """A shuffle between a write and a read by another lane: CUDA does not promise that it orders them."""
    source = kernels.CudaSource("""
__global__ void by_shuffle(float* y) {
  __shared__ float tile[32];
  tile[threadIdx.x] = y[threadIdx.x];
  const float one = __shfl_xor_sync(~0u, 1.0f, 1);
  y[threadIdx.x] = one * tile[threadIdx.x ^ 1];
}
extern "C" void run(float* y) { LAUNCH((by_shuffle), 1, 32, 0, nullptr)(y); }
""", name="by_shuffle.cu")
    assert not profile_of(source, "run", torch.zeros(32)).findings
    source.profiled = True
    source.library().simt_strict(1)
    with kernels.profile(source) as p:
        source.run(torch.zeros(32))
    assert {finding.kind for finding in p.findings} == {"race"}


LINES = """
__global__ void lines(float* y, int both) {
  __shared__ float tile[96];
  tile[threadIdx.x] = 1;
#define PART(i) y[threadIdx.x] += tile[63 - threadIdx.x + i];
  PART(0) PART(0)
  y[threadIdx.x] += tile[threadIdx.x];
  if (both) y[threadIdx.x] += tile[threadIdx.x + 32];
}
__global__ void others(float* y, int both) {
  __shared__ float tile[64];
  if (both > 1) tile[threadIdx.x] = 1;
  y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" void run(float* y, int both) {
  LAUNCH((lines), 1, 64, 0, nullptr)(y, both);
  LAUNCH((others), 1, 64, 0, nullptr)(y, both);
}
"""


def test_findings_of_one_kernel_kind_and_line_are_one_and_a_race_says_it_better_than_an_early_read():
    """Under forward the first warp reads on line 6 what the second has not written yet."""
    source = kernels.CudaSource(LINES, name="lines.cu")
    with kernels.profile(source) as p:
        source.run(torch.zeros(64), 1)
    found = [(finding.kind, *(place.rpartition(":")[2] for place in (finding.place, finding.other)),
              finding.text.split(",")[0]) for finding in p.findings]
    assert len(found) == len(set(found)), found
    assert {("race", "4", "6", "kernel lines"), ("uninitialised", "13", "", "kernel others")} <= set(found), found
    assert not any(kind == "uninitialised" and kernel == "kernel lines" for kind, *_, kernel in found), found
    times = {one[1:3]: finding.times for one, finding in zip(found, p.findings, strict=True)}
    assert times["6", "4"] == 2 * 32, "two instructions of 32 lanes"


# ---- whose memory an address is

BESIDE = """
__global__ void beside(float* x, int64_t* where, int64_t bytes, int dynamic, int write) {
  __shared__ float tile[64];
  DYNAMIC_SHARED(float, given);
  tile[threadIdx.x] = given[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x) return;
  where[0] = int64_t(tile), where[1] = int64_t(given);
  const int64_t i = (where[dynamic] + bytes - int64_t(x)) / 4;
  if (write) x[i] = 2;
  else x[0] = x[i];
}
extern "C" void run(float* x, int64_t* where, int64_t bytes, int dynamic, int write) {
  LAUNCH((beside), 1, 64, 256, nullptr)(x, where, bytes, dynamic, write);
}
"""
GUARD = 1 << 20


@pytest.fixture(scope="module")
def beside():
    return kernels.CudaSource(BESIDE, name="beside.cu")


@pytest.mark.parametrize("dynamic", [0, 1])
@pytest.mark.parametrize("bytes_", [4 - GUARD, -4096, -4, 256, 256 + 4096, GUARD + 252])
def test_an_index_that_misses_shared_memory_by_up_to_a_mebibyte_is_out_of_bounds(beside, dynamic, bytes_):
    for write in (0, 1):
        with kernels.profile(beside) as p, pytest.raises(RuntimeError, match="writes 4" if write else "reads 4"):
            beside.run(torch.zeros(32), torch.zeros(2, dtype=torch.int64), bytes_, dynamic, write)
        assert [finding.kind for finding in p.findings] == ["out of bounds"], p.findings
        near = "dynamic shared memory" if dynamic else "tile"
        far = f"{-bytes_} bytes before" if bytes_ < 0 else f"{bytes_ - 256} bytes past the end of"
        assert p.findings[0].text.endswith(f"{far} {near} (256 bytes)")


def test_shared_memory_lies_a_mebibyte_from_every_tensor(beside):
    """So that an index which leaves a tensor is not taken for a race, nor for sound, where it happens to land."""
    tensors = [torch.zeros(size) for size in (1, 32, 1000, 5000, 20000) for _ in range(100)]
    where = torch.zeros(2, dtype=torch.int64)
    profile_of(beside, "run", torch.zeros(32), where, 0, 0, 0)
    for begin in where.tolist():
        assert min(max(x.data_ptr() - begin - 256, begin - x.data_ptr() - x.nbytes) for x in tensors) >= GUARD
