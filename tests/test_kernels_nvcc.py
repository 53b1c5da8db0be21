"""The same kernel files compile for real GPUs, without one: no spills, no stack, no doubles. Skips without nvcc."""

import json
import subprocess

import pytest
from mutants import Mutant
from test_simt import ROOT

import kernel_occupancy
from cuda_build import ARCHITECTURES, nvcc
from kernel_occupancy import figures, loop_length, opcodes, readable, resident_warps, version

CSRC = ROOT / "csrc"
RECORD = json.loads((ROOT / "docs" / "kernels.json").read_text())


def need_nvcc():
    if not nvcc():
        pytest.skip("nvcc is not installed here: `pip install minillama[cuda]` brings it, no GPU is needed")


def like_the_record(found, recorded):
    """No stack, no spills; the same as recorded by the same compiler, and near it by another."""
    assert set(found) == set(recorded)
    for kernel, numbers in found.items():
        assert numbers["stack"] == numbers["spills"] == 0, f"{kernel}: {numbers}"
        if version() == RECORD["nvcc"]:
            assert numbers == recorded[kernel], f"{kernel} changed: python kernel_occupancy.py records it anew"
        assert numbers["registers"] <= recorded[kernel]["registers"] + 16, f"{kernel}: {numbers}"


def test_the_smallest_kernel_compiles_for_sm_80_as_recorded(tmp_path):
    need_nvcc()
    source = tmp_path / "rope.cu"
    source.write_text('#include "cuda/rope_vectors.cuh"\n')
    found = figures("80", source)
    assert len(found) == 4 * 2 * 3 + 3  # four versions in two layouts and 3 dtypes, and rope_scalar
    like_the_record(found, {kernel: RECORD["figures"]["80"][kernel] for kernel in found})


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES.split())
def test_every_kernel_compiles_as_recorded_without_spills_and_stack(architecture):
    need_nvcc()
    found = figures(architecture)
    # 3 dtypes: three flash kernels in 3 head widths, in fp32 in a fourth; four versions of RoPE in two layouts; NF4's
    # version 2, both ways, for 1 and for 8 rows (of 1 row in 16 bits, the product by its own kernel); both versions of
    # decoding in 3 head widths for 4 and for 8 rows, in a fourth for 4, and what combines the parts of the first;
    # four other kernels. 2 dtypes: flash attention on tensor cores, and its kernel of gradients, in 4 head widths, the
    # three of wide heads in 2, with and without a mask, and NF4's version 3 for 16, 32 and 64 rows, one of them in two
    # ways. And pack_mask_v1
    of_three = 3 * 3 + 4 * 2 + 2 * 2 + 2 * (3 * 2 + 1) + 1 + 4
    assert len(found) == 3 * of_three + 3 + 2 * (2 * (2 * 4 + 3 * 2) + 4 + 4) + 1
    like_the_record(found, RECORD["figures"][architecture])


@pytest.mark.long
def test_the_instructions_are_those_recorded_and_no_kernel_has_a_double():
    need_nvcc()
    found = opcodes()
    assert all(counts["doubles"] == 0 for counts in found.values())
    if version() == RECORD["nvcc"]:
        assert found == RECORD["opcodes"]


def test_a_double_in_a_kernel_would_be_seen(tmp_path):
    need_nvcc()
    source = tmp_path / "double.cu"
    source.write_text("template <class T> __global__ void rope_v1(T* x) { x[0] = T(double(x[0]) * 1.1); }\n"
                      "template __global__ void rope_v1<float>(float*);\n")
    assert opcodes(source)["rope_v1 fp32"]["doubles"] > 0


def test_the_record_has_no_stack_no_spills_and_no_doubles():
    assert set(RECORD["figures"]) == set(ARCHITECTURES.split())
    for kernels in RECORD["figures"].values():
        assert set(kernels) == set(RECORD["opcodes"])
        assert all(numbers["stack"] == numbers["spills"] == 0 < numbers["warps"] for numbers in kernels.values())
    assert all(counts["doubles"] == 0 for counts in RECORD["opcodes"].values())


def test_the_fast_rope_reads_and_writes_16_bytes_at_a_time():
    """All its loads but that of a token's position, and all its stores."""
    fast = {kernel: counts for kernel, counts in RECORD["opcodes"].items() if kernel.startswith("rope_v4")}
    assert len(fast) == 6
    for counts in fast.values():
        assert counts["of 16 bytes"] == counts["global loads"] - 1 > 1
        assert counts["16-byte stores"] == counts["global stores"] > 0 == counts["shared loads"]


@pytest.mark.parametrize(("d", "keys"), [(32, 64), (64, 64), (96, 32), (128, 32)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_flash_attention_on_tensor_cores_is_made_of_their_instructions_and_leaves_room_for_8_warps(dtype, d, keys):
    """A tile's products: keys / 8 results of d / 16 steps, d / 8 of keys / 16; ldmatrix loads the operands of two."""
    counts = RECORD["opcodes"][f"flash_attention_v2 {dtype} {d}"]
    steps = keys // 8 * d // 16
    assert counts["tensor-core products"] == 2 * steps
    assert counts["ldmatrix"] == steps + d // 16  # and those of the queries, once
    assert counts["async copies"] > 0 == counts["global loads"] and counts["16-byte stores"] == 1
    for figures_of in RECORD["figures"].values():
        assert figures_of[f"flash_attention_v2 {dtype} {d}"]["warps"] >= 8


@pytest.mark.parametrize(("d", "queries"), [(32, 32), (64, 32), (96, 32), (128, 16)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("masked", ["", " masked"])
def test_gradients_are_five_products_on_tensor_cores_and_leave_room_for_8_warps(masked, dtype, d, queries):
    """Four products of 16 keys and the tile's queries, and an eighth of the fifth, of 128 keys; an ldmatrix for two,
    but for what no other shares: keys and values, and what the fifth takes."""
    kernel = f"flash_gradients_v2 {dtype} {d}{masked}"
    counts, steps = RECORD["opcodes"][kernel], queries // 8 * d // 16
    assert counts["tensor-core products"] == 5 * steps
    assert counts["ldmatrix"] == 2 * steps + 2 * d // 16 + 8 + 4 * queries * d // 1024
    assert counts["global stores"] == queries * d // 1024 + 1 + 2  # of 16 bytes: sums, dq, dk and dv
    for figures_of in RECORD["figures"].values():
        assert figures_of[kernel]["warps"] >= 8


@pytest.mark.parametrize("d", [192, 256])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_wide_heads_are_made_of_the_instructions_of_tensor_cores_and_leave_room_for_8_warps(dtype, d):
    """Of 32 keys 8 products for each 16 columns, 4 of q k^T and 4 of P v, of 2 ldmatrix each, and 1 for the queries; of
    the gradients 16 keys or queries and a half of the columns: 2 products of a kind, and an ldmatrix for them."""
    counts = {name: RECORD["opcodes"][f"{name} {dtype} {d}"] for name in ("flash_wide_v2", "flash_wide_dq_v2",
                                                                      "flash_wide_dkv_v2")}
    steps = d // 16
    assert [x["tensor-core products"] for x in counts.values()] == [8 * steps, 3 * steps, 4 * steps]
    # of dq: q and dO once; of dkv: v once, k for each tile
    assert [x["ldmatrix"] for x in counts.values()] == [5 * steps, 3 * steps // 2 + steps, 2 * steps + steps]
    for name, x in counts.items():
        assert x["async copies"] > 0 and x["16-byte stores"] >= 1
        for figures_of in RECORD["figures"].values():
            assert figures_of[f"{name} {dtype} {d}"]["warps"] >= 8


def test_the_loop_that_multiplies_is_the_shortest_with_half_of_the_products():
    ptx = """
        mov.u32 %r1, 0;
      $L__BB0_1:
        ld.shared.f32 %f1, [%r1];
      $L__BB0_2:
        fma.rn.f32 %f2, %f1, %f1, %f2;
        .loc 1 2 3
        @%p1 bra $L__BB0_2;
        add.s32 %r1, %r1, 4;
        @%p2 bra $L__BB0_1;
        bra.uni $L__BB0_9;
      $L__BB0_9:
        ret;
    """.splitlines()
    assert loop_length(ptx) == 2  # the product and the branch back
    assert loop_length([line for line in ptx if "bra $L__BB0_2" not in line]) == 4
    assert loop_length([line for line in ptx if "fma" not in line]) == 0


@pytest.mark.parametrize(("rows", "parts"), [(16, 4), (32, 2), (32, 4), (64, 1)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_nf4_on_tensor_cores_is_made_of_their_instructions_and_leaves_room_for_8_warps(dtype, rows, parts):
    """A warp's 64 columns: 4 products for each 16 rows of x and 8 of W, and 16 bytes of x serve two of them."""
    kernel = f"nf4_matmul_v3 {dtype} {rows} {parts}"
    counts = RECORD["opcodes"][kernel]
    assert counts["tensor-core products"] == 4 * 4 * rows // 16
    # 12 or 20 KiB a step, 16 bytes each, by 128 threads; twice or once in front of the loop. With 64 rows two loops
    assert counts["async copies"] == (2 * 10 if rows * parts == 128 else 3 * 6 if rows < 64 else 3 * 2)
    assert counts["loop"] - counts["tensor-core products"] < 9 * 64  # of PTX, for 64 weights a lane
    for figures_of in RECORD["figures"].values():
        assert figures_of[kernel]["warps"] >= 8


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_one_row_of_x_looks_two_codes_up_at_once_and_leaves_room_for_8_warps(dtype):
    """For 4 rows of 32 weights 64 look-ups, and 4 of 16 bytes of x; those of absmax and of a sum come on top."""
    counts = RECORD["opcodes"][f"nf4_matvec_v1 {dtype}"]
    assert 64 + 4 < counts["shared loads"] < 64 + 4 + 24 and counts["fma"] >= 128
    assert counts["loop"] < 5.5 * 128  # of PTX, for 4 rows of 32 weights; ptxas makes 4.8 a weight of it for sm_80
    for figures_of in RECORD["figures"].values():
        assert figures_of[f"nf4_matvec_v1 {dtype}"]["warps"] >= 8


@pytest.mark.parametrize(("rows", "parts"), [(16, 4), (32, 4), (64, 4), (64, 1)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_nf4_gradients_on_tensor_cores_are_made_of_their_instructions_and_leave_room_for_8_warps(dtype, rows, parts):
    """16 rows of W and 32 columns: an ldmatrix and 4 products for each 16 rows of dy; no level is looked up."""
    kernel, of_warp = f"nf4_matmul_backward_v3 {dtype} {rows} {parts}", 64 if parts == 1 else 64 * 16 // rows
    counts = RECORD["opcodes"][kernel]
    assert counts["tensor-core products"] == 4 * counts["ldmatrix"] == 4 * rows // 16 * of_warp // 16
    for figures_of in RECORD["figures"].values():
        assert figures_of[kernel]["warps"] >= 8


@pytest.mark.parametrize(("registers", "shared", "warps"), [
    (32, 0, 64),  # 65536 / (32 * 32) = 64 warps: all that an SM holds
    (33, 0, 48),  # 40 registers are given out: 51 warps, 12 blocks of 4
    (255, 0, 8),  # 8 warps
    (16, 81 * 1024, 8),  # 82 KiB of 164: two blocks
])
def test_occupancy_counted_by_hand(registers, shared, warps):
    """rope_v1 has blocks of 4 warps; compute capability 8.0 holds 64 warps, 32 blocks, 164 KiB."""
    assert resident_warps("80", "rope_v1 fp32", {"registers": registers, "shared": shared}) == warps


def test_mangled_names_are_read():
    assert readable("_ZN9minillama7kernels18flash_attention_v1I6__halfLi32EEEvNS0_7StridedE") == (
        "flash_attention_v1 fp16 32")
    assert readable("_ZN9minillama7kernels22nf4_matmul_backward_v1I13__nv_bfloat16EEv") == "nf4_matmul_backward_v1 bf16"
    assert readable("_ZN9minillama7kernels7rope_v4I13__nv_bfloat16Lb0EEEvNS0_8RopeRowsE") == "rope_v4 bf16 half-split"
    for number, name in enumerate(("flash_gradients_v2 fp16 32", "flash_gradients_v2 fp16 32 masked")):
        assert readable(f"_ZN9minillama7kernels18flash_gradients_v2I6__halfLi32ELb{number}EEEv") == name
    assert readable("_ZN9minillama7kernels12pack_mask_v1ENS0_13AttentionMaskEPj") == "pack_mask_v1"
    assert readable("_ZN9minillama7kernels11rope_scalarIfEEvNS0_8RopeRowsES2_") == "rope_scalar fp32"
    assert readable("_Z3fooIfEvPT_") is None


@pytest.mark.long
def test_the_instructions_that_have_no_words_in_c_compile(tmp_path):
    """Every wrapper of simt/tensor.h and the two macros, as one kernel; their PTX is looked for by name."""
    source, ptx = tmp_path / "tensor.cu", tmp_path / "tensor.ptx"
    source.write_text("""
        #include "simt/simt.h"
        #include "simt/wmma.h"
        template <int n> __global__ void all(const float* in, float* out) {
          DYNAMIC_SHARED(float, tile);
          cp_async<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x, n);
          cp_async_commit();
          cp_async_wait<0>();
          __syncthreads();
          unsigned a[4], b[4];
          ldmatrix_x4(a, tile + 4 * threadIdx.x);
          ldmatrix_x4_trans(b, tile + 4 * threadIdx.x);
          const unsigned first[2] = {b[0], b[1]};
          float c[4] = {};
          mma_bf16_16816(c, a, first);
          mma_f16_16816(c, a, first);
          out[threadIdx.x] = fast_exp2(c[0] + c[1] + c[2] + c[3]);
        }
        void launch(const float* in, float* out) { LAUNCH((all<8>), 1, 32, 512, nullptr)(in, out); }
    """)
    need_nvcc()
    subprocess.run(list(map(str, [nvcc(), "-std=c++17", "-arch=sm_80", "-I", CSRC, "-ptx", source, "-o", ptx])),
                   check=True)
    text = ptx.read_text()
    for words in ("cp.async.cg.shared.global", "cp.async.wait_group", "ldmatrix.sync.aligned.m8n8.x4.shared",
                  "ldmatrix.sync.aligned.m8n8.x4.trans.shared", "mma.sync.aligned.m16n8k16.row.col.f32.bf16",
                  "mma.sync.aligned.m16n8k16.row.col.f32.f16", "ex2.approx.ftz.f32"):
        assert words in text, words


MUTANTS = [
    Mutant(kernel_occupancy.__name__, "return min(found, default=0)", "return max(found, default=0)",
           test_the_loop_that_multiplies_is_the_shortest_with_half_of_the_products),
    Mutant(kernel_occupancy.__name__, "number[\"shared\"] + 1024", "number[\"shared\"] // 2 + 1024",
           lambda: test_occupancy_counted_by_hand(16, 81 * 1024, 8)),
    Mutant(kernel_occupancy.__name__, "// 256) * 256)", "// 256) * 128)",
           lambda: test_occupancy_counted_by_hand(255, 0, 8)),
]
