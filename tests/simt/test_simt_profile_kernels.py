"""The profiler on minillama's own kernels: none is accused, and each barrier that is left out is noticed.

And the profiler itself, changed in one line: its tests notice.
"""

import shutil
import sys
import time

import pytest
import torch
from test_simt_profile import BESIDE, FOLDER, SCHEDULES, TWINS, run_twin
from test_simt_profile import test_an_index_that_misses_shared_memory_by_up_to_a_mebibyte_is_out_of_bounds as misses
from test_simt_profile import test_the_transpose_of_64_by_64_has_the_counts_of_the_textbook as transpose_is_counted

from minillama import kernels
from minillama.quant.nf4 import quantize_nf4

pytestmark = [pytest.mark.long,
              pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"),
                                 reason="the profiler is compiled on the spot by g++, on Linux")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", SCHEDULES)
def test_no_kernel_of_ours_is_accused(order, dtype):
    kernels.require("simt")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 40, dtype=dtype, requires_grad=True)
               for heads, tokens in ((4, 19), (2, 67), (2, 67)))
    rotations = torch.polar(torch.ones(19, 20), torch.randn(19, 20))
    with kernels.schedule(order), kernels.profile() as p:
        for causal in (False, True):
            kernels.flash_attention(q, k, v, causal=causal).float().sum().backward()
        for double in (False, True):
            for M, N, K in ((3, 70, 65), (1, 5, 96), (3, 67, 96), (9, 72, 192)):  # elements, vectors, tensor cores
                weight = quantize_nf4(torch.randn(N, K), double_quantization=double)
                x = torch.randn(M, K, dtype=dtype, requires_grad=True)
                kernels.nf4_matmul(x, weight, "simt").float().sum().backward()
        for interleaved in (False, True):
            turned = kernels.fused_rope(q.transpose(1, 2).contiguous(), rotations, interleaved, backend="simt")
            turned.float().sum().backward()
            for width in (6, 48):  # element by element, and in vectors
                heads = [torch.randn(2, 3, n, width, dtype=dtype) for n in (3, 1)]
                kernels.fused_rope_qk(*heads, rotations[:, :width // 3], offset=7, interleaved=interleaved,
                                      in_place=True, backend="simt")
    assert p.findings == []
    of_16_bits = dtype == torch.bfloat16  # NF4 on tensor cores: two more; the gradients of attention: one fewer
    assert len(p.kernels) == 13 + of_16_bits and p.barriers > 0  # RoPE's: two layouts of version 4, and rope_scalar


@pytest.mark.parametrize(("d", "causal"), [(128, False), (64, True), (80, False), (32, True)])
def test_attention_on_tensor_cores_moves_what_its_header_says_and_no_bank_waits(d, causal):
    """All products on tensor cores; q, O, LSE, maxima and sums of rows once; k and v by the tiles of 64 queries."""
    T, H, D = 192, 2, d if d != 80 else 96
    q, k, v = (torch.randn(1, heads, T, d).bfloat16() for heads in (H, 1, 1))
    with kernels.profile() as p:
        kernels.flash_attention(q, k, v, causal=causal)
    keys = 64 if D <= 64 else 32
    tiles = [-(-min(T, first + 64) // keys) if causal else T // keys for first in range(0, T, 64)]  # of keys, in a row
    seen = sum(tiles) * keys * H  # keys that blocks copy
    assert 32 * p.global_load.sectors == 2 * d * (T * H + 2 * seen)
    assert p.global_store.compulsory == p.global_store.bytes == 2 * d * T * H + 12 * T * H
    assert p.global_load.sector_efficiency == 1
    copied_out = 0 if D == d else 11 * (T // 16 * H)  # behind the loop, where lanes beyond column 80 have no work
    assert p.shared_load.conflicts == copied_out and p.shared_store.conflicts == 0 and p.findings == []
    assert p.events("mma_") == sum(tiles) * H * 4 * 2 * (keys // 8) * (D // 16)  # 4 warps; of q k^T, and of P v


@pytest.mark.parametrize("M", [1, 8, 9])
def test_nf4_products_ask_for_each_code_once_for_8_rows_and_for_x_once_for_16_of_the_weight(M):
    """Bytes of all sectors, exactly, in requests of 512 and 128 bytes of codes; and no bank of shared memory waits."""
    N, K, asked = 64, 2048, -(-M // 8)
    weight = quantize_nf4(torch.randn(N, K), double_quantization=False)
    x, dy = torch.randn(M, K), torch.randn(M, N)  # fp32: in bf16 8 rows go to tensor cores
    with kernels.profile() as forward:
        kernels.nf4_matmul(x, weight, "simt")
    with kernels.profile() as backward:
        kernels.nf4_matmul_backward(dy, weight, "simt")
    assert 32 * forward.global_load.sectors == asked * weight.stored_bytes() + N // 16 * 4 * M * K
    blocks = K // 256  # of columns; 4 absmax values of a row lie in one sector
    assert 32 * backward.global_load.sectors == asked * (N * K // 2 + blocks * N * 32) + blocks * 4 * M * N
    for p in (forward, backward):
        assert p.shared_load.conflicts == p.shared_store.conflicts == 0 and p.findings == []
    assert forward.global_store.compulsory == 4 * M * N and backward.global_store.compulsory == 4 * M * K


@pytest.mark.parametrize(("M", "N", "K"), [(8, 64, 512), (16, 40, 1088), (32, 64, 320), (64, 128, 192),
                                             (130, 130, 128)])
def test_nf4_products_on_tensor_cores_move_what_their_header_says_and_no_bank_waits(M, N, K):
    """Codes once for the rows of a tile and x once for the columns of a block, a sector or less an absmax, and every
    product of 16 columns by mma.sync: 4 of them for 64 columns, for each 16 rows and 8 columns of the result."""
    rows = 16 if M <= 16 else 32 if M <= 64 else 64
    wide, tiles = 128 if M > 64 else 32, -(-M // rows)  # columns of a block, tiles of rows
    weight = quantize_nf4(torch.randn(N, K), double_quantization=False)
    with kernels.profile() as p:
        kernels.nf4_matmul(torch.randn(M, K).bfloat16(), weight, "simt")
    blocks, warps = -(-N // wide), -(-N // wide) * wide // 32  # the last block's warps multiply zeros
    a_row = K // 64  # absmax values of a row of W; a lane reads one, and 8 lie in a sector
    scales = sum(len({(n * a_row + k) // 8 for n in range(first, min(first + 32, N))})
                 for first in range(0, N, 32) for k in range(a_row))
    assert 32 * p.global_load.sectors == tiles * (N * K // 2 + 32 * scales) + blocks * 2 * M * K
    assert p.global_store.compulsory == p.global_store.bytes == 2 * M * N
    assert p.events("mma_") == tiles * warps * K // 64 * 4 * 4 * rows // 16
    behind = tiles * blocks * 4 * rows // 16 * 4 * 2 * 2  # the loop: g++ stores two sums one by one, nvcc at once
    assert p.shared_load.conflicts == 0 and p.shared_store.conflicts == behind and p.findings == []


@pytest.mark.parametrize("M", [8, 16, 17, 32, 33, 64])
def test_few_rows_of_x_are_at_least_108_blocks_for_4096_columns(M):
    """64 columns deep here: the number of blocks is that of 4096. Each sums up by one barrier after the last step."""
    with kernels.profile() as p:
        kernels.nf4_matmul(torch.randn(M, 64).half(), quantize_nf4(torch.randn(4096, 64)), "simt")
    barriers = 1 + 1 + 2  # of the tables, a step, and the sums
    assert p.events("barrier", "nf4_matmul_v3") == barriers * 128 * (2 if M > 32 else 1)


@pytest.mark.parametrize(("N", "K"), [(64, 2048), (16, 4096), (9, 1088)])
def test_one_row_of_x_is_read_once_for_8_rows_of_the_weight_and_each_code_once(N, K):
    """In requests of 512 bytes of codes; neither the table of pairs nor the row makes a bank of shared memory wait."""
    weight, x = quantize_nf4(torch.randn(N, K), double_quantization=False), torch.randn(1, K).bfloat16()
    with kernels.profile() as p:
        kernels.nf4_matmul(x, weight, "simt")
    blocks, pieces = -(-N // 8), range(0, K, 1024)  # of a row, which a warp takes at a time
    scales = sum(len({(n * K + k) // 64 // 8 for k in range(first, min(first + 1024, K), 32)})
                 for n in [*range(N), *[N - 1] * (8 * blocks - N)] for first in pieces)  # the last row stands in
    assert 32 * p.global_load.sectors == 8 * blocks * K // 2 + 32 * scales + blocks * 2 * K
    assert p.global_load.compulsory == N * K // 2 + 4 * len(weight.absmax) + 2 * K
    assert p.global_store.compulsory == p.global_store.bytes == 2 * N
    before = blocks * 256  # the loop: g++ stores a pair one by one, nvcc at once
    assert p.shared_load.conflicts == 0 and p.shared_store.conflicts == before and p.findings == []


@pytest.mark.parametrize(("M", "N", "K"), [(8, 528, 64), (16, 48, 128), (32, 272, 96), (64, 144, 64), (65, 16, 6848)])
def test_nf4_gradients_on_tensor_cores_move_what_their_header_says_and_no_bank_waits(M, N, K):
    """Codes of 32 columns, a sector of each row, or of 128 once for the rows of a tile, dy once for a block's columns,
    a sector or less an absmax; every product of 16 rows of W by mma.sync, for 16 rows and 8 columns of the result."""
    rows = 16 if M <= 16 else 32 if M <= 32 else 64
    tiles = -(-M // rows)
    many = tiles * -(-K // 128) >= 108  # of 64 by 128
    wide, down = (128, 64) if many else (32, 64 * 64 // rows)
    weight = quantize_nf4(torch.randn(N, K), double_quantization=False)
    with kernels.profile() as p:
        kernels.nf4_matmul_backward(torch.randn(M, N).bfloat16(), weight, "simt")
    blocks, turns, together = -(-K // wide), -(-N // down), 1024 // wide  # rows whose absmax values a warp asks for
    scales = sum(len({(n * K + k) // 64 // 8 for n in range(first, min(first + together, N))
                      for k in range(start, min(start + wide, K), 32)})
                 for start in range(0, K, wide) for first in range(0, N, together))
    codes = N * K // 2 if many else blocks * N * 32
    assert 32 * p.global_load.sectors == tiles * (codes + 32 * scales) + blocks * 2 * M * N
    assert p.global_load.compulsory == N * K // 2 + 4 * len(weight.absmax) + 2 * M * N
    assert p.global_store.compulsory == p.global_store.bytes == 2 * M * K and p.global_store.sector_efficiency == 1
    assert p.events("mma_") == tiles * blocks * wide // 8 * turns * down // 16 * rows // 16
    behind = 0 if many else tiles * blocks * 4 * rows // 8 * 8 * 3  # the loop: g++ stores sums one by one
    assert p.shared_load.conflicts == 0 and p.shared_store.conflicts == behind and p.findings == []


PLANTED = f"""
#define main planted_main
#include "{FOLDER / 'planted.cpp'}"
extern "C" void run(int file, int line, int which) {{
  static const char* const names[] = {{"flash_attention.cuh", "flash_attention_backward.cuh", "nf4_matmul.cuh",
                                      "nf4_vectors.cuh", "flash_tensor_cores.cuh",
                                      "flash_backward_tensor_cores.cuh", "flash_decoding.cuh",
                                      "flash_fragments.cuh", "nf4_tensor_cores.cuh",
                                      "nf4_backward_tensor_cores.cuh", "nf4_one_row.cuh",
                                      "flash_decoding_append.cuh", "flash_decoding_part.cuh",
                                      "flash_gradient_tiles.cuh", "flash_wide.cuh", "flash_wide_backward.cuh"}};
  left_out = std::string(names[file]) + ":" + std::to_string(line);
  which == 0 ? run_attention() : which == 1 ? (run_nf4(), run_nf4_one_row(), run_nf4_tensor_cores())
      : which == 2 ? run_tensor_cores<24>()
      : which == 3 ? run_gradients<24>() : which == 4 ? run_decoding() : which == 5 ? run_tensor_cores<136>()
      : run_gradients<136>();
}}
"""


def test_every_barrier_of_ours_that_is_left_out_is_a_race_named_near_its_line():
    """The detector needs one run under the friendliest schedule, and no look at the results."""
    from test_kernels_barriers import barriers

    files = ("flash_attention.cuh", "flash_attention_backward.cuh", "nf4_matmul.cuh", "nf4_vectors.cuh",
             "flash_tensor_cores.cuh", "flash_backward_tensor_cores.cuh", "flash_decoding.cuh", "flash_fragments.cuh",
             "nf4_tensor_cores.cuh", "nf4_backward_tensor_cores.cuh", "nf4_one_row.cuh",
             "flash_decoding_append.cuh", "flash_decoding_part.cuh", "flash_gradient_tiles.cuh",
             "flash_wide.cuh", "flash_wide_backward.cuh")
    # of attention, NF4, attention on tensor cores, its gradients, decoding, wide heads, their gradients
    runs = (0, 0, 1, 1, 2, 3, 4, 3, 1, 1, 1, 4, 4, 3, 5, 6)
    source, left_out = kernels.CudaSource(PLANTED, name="left_out.cu"), [(runs.index(run), 0, run) for run in range(7)]
    left_out += [(files.index(name), int(line), runs[files.index(name)])
                 for name, line in (barrier.split(":") for barrier in barriers())]
    assert len(left_out) >= 12
    for file, line, which in left_out:
        with kernels.profile(source) as p:
            source.run(file, line, which)
        assert bool(p.findings) == (line > 0), (files[file], line)
        copies = {"asynchronous copy"} if which in (2, 3, 5, 6) or "tensor" in files[file] else set()
        assert {finding.kind for finding in p.findings} <= {"race", *copies}
        places = {place for finding in p.findings for place in (finding.place, finding.other)}
        ours = (*files, "nf4_backward_tiles.cuh", "tensor.h")
        strange = {place for place in places if not any(name in place for name in ours)}
        assert not strange, (files[file], line, strange)


READ_AGAIN = """
#include "simt/simt.h"
__global__ void look_up(const int* codes, float* sums) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  const int2 two = reinterpret_cast<const int2*>(codes)[threadIdx.x];
  sums[threadIdx.x] = table[two.x] + table[two.y];
}
extern "C" void run(const int* codes, float* sums) { LAUNCH((look_up), 1, 32, 0, nullptr)(codes, sums); }
"""


@pytest.mark.long
def test_a_number_that_a_lane_reads_twice_in_a_row_counts_twice():
    """As NF4's table is read where two codes in a row are the same."""
    source = kernels.CudaSource(READ_AGAIN, name="read_again.cu")
    for codes in (torch.zeros(64, dtype=torch.int32), torch.arange(64, dtype=torch.int32) % 16):
        with kernels.profile(source) as p:
            source.run(codes, torch.zeros(32))
        assert p.shared_load.lanes == 64


@pytest.mark.parametrize(("file", "old", "new", "twin"), [
    ("shadow.cpp", "mark.epoch != epoch || ", "", None),  # barriers order nothing
    ("shadow.cpp", "mark.thread / kWarp != warp) return true", "mark.thread / kWarp != warp) return false",
     "overwritten_before_read"),
    ("shadow.cpp", "  if (same) return;\n", "  return;\n", "two_values_stored"),
    ("shadow.cpp", "    all_met[w] = now;\n", "", None),  # a meeting of a full warp orders nothing
    ("requests.cpp", "  all.sectors += uint64_t(sectors.count);", "  all.sectors += 4;", "transpose"),
    ("accesses.cpp", " && converts_behind(pc)) return", ") return", "read_again"),  # a number read twice counts once
    ("spaces.cpp", "is_emulators(name) ? kEmulators : 1", "1", None),  # threadIdx is shared memory
    ("spaces.cpp", "found.room[i + 1] != kEmulators", "false", None),  # no array has room for more than a byte
])
def test_a_fault_in_the_profiler_itself_shows(tmp_path, monkeypatch, file, old, new, twin):
    """One line of it is changed; a sound kernel is then accused, a mistake missed or a number wrong."""
    from minillama.simt import emulator_build

    csrc = emulator_build.source_folder()
    for part in (csrc / "simt", csrc / "simt" / "profile"):
        (tmp_path / part.relative_to(csrc)).mkdir()
        for path in [path for path in part.iterdir() if path.is_file()]:
            shutil.copy(path, tmp_path / path.relative_to(csrc))
    target = tmp_path / "simt" / "profile" / file
    text = target.read_text(encoding="utf-8")
    assert text.count(old) == 1
    target.write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(emulator_build, "build_folder", lambda: tmp_path / "build")
    monkeypatch.setattr(emulator_build, "source_folder", lambda: tmp_path)
    if twin == "transpose":
        with pytest.raises(AssertionError):
            transpose_is_counted(kernels.CudaSource(FOLDER / "patterns.cu"))
        return
    if twin == "read_again":
        with pytest.raises(AssertionError):
            test_a_number_that_a_lane_reads_twice_in_a_row_counts_twice()
        return
    if twin == "beside":
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            misses(kernels.CudaSource(BESIDE, name="beside.cu"), 0, -4)
        return
    twins = kernels.CudaSource(FOLDER / "twins.cu")
    if twin:
        assert run_twin(twins, twin, sound=0) == ([], None)
    else:
        accused = [name for name in TWINS if run_twin(twins, name, sound=1)[0]]
        assert accused


def test_flash_attention_with_everything_on_takes_at_most_4_seconds():
    """B=1 H=4 N=256 d=64, not causal, 72 million accesses: CPU time, the best of three on a busy machine."""
    kernels.require("simt")
    q, k, v = (torch.randn(1, 4, 256, 64) for _ in range(3))
    seconds = []
    for _ in range(3):
        with kernels.profile() as p:
            start = time.process_time()
            kernels.flash_attention(q, k, v, causal=False)
            seconds.append(time.process_time() - start)
    assert p.findings == [] and p.shared_load.lanes == 4 * 256 * 256 * (2 * 64 + 2 * 64)
    assert min(seconds) < 4, seconds
