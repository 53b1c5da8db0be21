"""The laws of attention on processors see every planted fault of its C++: one wrong expression turns one of them red.

The sources are compiled once, each marked expression as `planted == n ? wrong : right`, with plain functions in front.
"""

import ctypes
import shutil
import subprocess

import pytest
import test_attention_cpu as laws
import torch
from planted_sources import plant_all

from minillama import kernels

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed here")]
FORWARD, BACKWARD, TILES, LOOPS = "attention.cpp", "attention_backward.cpp", "attention_tiles.h", "attention_loops.cpp"
POWER = "exponential.h"

FAULTS = [  # file of csrc/cpu; text that occurs there once, with @what is right@ in it; what is wrong instead
    # who sees whom
    (TILES, "@shape.keys - shape.queries - key@ : shape.keys", "-key"),
    (TILES, "@shape.keys - shape.queries - key@ : shape.keys", "shape.keys - shape.queries - key + 1"),
    (TILES, "@shape.keys - shape.queries - key@ : shape.keys", "shape.keys - shape.queries - key - 1"),
    (TILES, "shape.causal && @end - 1 + shift < 0@", "end - 1 + shift < kKeys"),
    (TILES, "@queries.begin + shift >= keys - 1@", "end + shift >= keys - 1"),
    (TILES, "visible.first = @(q + 1) / kLane * kLane@", "q / kLane * kLane + kLane"),
    (TILES, "bits &= @mask_bits(row + key, keys)@", "mask_bits(row, keys)"),
    (TILES, "row = inputs.mask.data + @queries.batch@ * inputs.mask.batch", "0"),
    (TILES, "@(queries.begin + q)@ * inputs.mask.query", "q"),
    (TILES, "visible.all = @every == full@", "any == full"),
    (TILES, "@key + 8 <= keys@", "key + 8 < keys - 1 || key == 0"),
    (TILES, "bits |= @eight_bits(seen + key) << key@", "eight_bits(seen + key)"),
    (FORWARD, "std::min(shape.keys, begin + count + @shape.keys - shape.queries@)", "0"),
    (BACKWARD, "std::min(shape.keys, begin + count + @shape.keys - shape.queries@)", "0"),
    (LOOPS, "@(bits & int32_t(uint32_t(1) << key)) != 0@", "(bits & int32_t(uint32_t(1) << (key / 2))) != 0"),
    # tiles and what is left of one
    (FORWARD, "shape.batch * shape.heads * (@(shape.queries + kQueries - 1)@ / kQueries)", "shape.queries"),
    (FORWARD, "forward_keys(inputs, queries, kv_head, key, @std::min(kKeys, shape.keys - key)@",
     "std::max<int64_t>(1, std::min(kKeys, shape.keys - key) - 1)"),
    (BACKWARD, "backward_keys(inputs, queries, kv_head, key, @std::min(kKeys, shape.keys - key)@",
     "std::max<int64_t>(1, std::min(kKeys, shape.keys - key) - 1)"),
    (LOOPS, "for (int64_t k = 0; @k < depth@", "k + 1 < depth || k == 0"),
    (TILES, "std::fill(to, to + (all - rows) * padded, @0.0f@", "NAN"),
    # softmax
    (LOOPS, "now = larger<lanes>(@load<lanes>(column + key * kQueries)@", "load<lanes>(column)"),
    (LOOPS, "(load<lanes>(column + key * kQueries) - now) * @to_power_of_2@", "to_power_of_2 * 1.0001f"),
    (LOOPS, "(sum + c, @load<lanes>(sum + c) * rescale@ + more)", "load<lanes>(sum + c)"),
    (LOOPS, "@load<lanes>(to) * load<lanes>(factor + v * lanes)@ + sum[r][v]", "load<lanes>(to)"),
    (FORWARD, "keys, first, last, @inputs.shape.scale@", "inputs.shape.scale * 1.001f"),
    (FORWARD, "f.highest[q] * @inputs.shape.scale@ + std::log", "1"),
    (FORWARD, "std::fill(f.highest, f.highest + kQueries, @std::numeric_limits<float>::lowest()@)", "0.0f"),
    (FORWARD, "sum = @f.sees[q] ? f.sum[q] : 1.0f@", "f.sum[q]"),
    (FORWARD, "results.lse[first_row + q] = @f.sees[q]@", "true"),
    (POWER, "p = p * f + @0.6931471824645996f@", "0.69315f"),
    (POWER, "p = p * f + @0.055503323674201965f@", "0.0556f"),
    (POWER, "return @x < -126.0f@", "x < -20.0f"),
    # heads
    (FORWARD, "kv_head = @head % shape.heads / (shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (BACKWARD, "kv_head = @head % shape.heads / (shape.heads / shape.kv_heads)@", "head % shape.kv_heads"),
    (BACKWARD, "@head < (task + 1) * group@", "head < task * group + 1"),
    # gradients
    (LOOPS, "(d_shares + at, @share * (load<lanes>(d_shares + at) - my_delta)@", "share * load<lanes>(d_shares + at)"),
    (LOOPS, "(d_shares + at, @share * (load<lanes>(d_shares + at) - my_delta)@",
     "load<lanes>(d_shares + at) - my_delta"),
    (BACKWARD, "c < width; ++c) row[c] *= @shape.scale@", "1.0f"),
    (BACKWARD, "c < shape.width; ++c) row[c] *= @shape.scale@", "1.0f"),
    (BACKWARD, "b.highest[q] = real ? @g.rows[2 * (row + q)]@", "g.rows[2 * row]"),
    (BACKWARD, "1.0f / @g.rows[2 * (row + q) + 1]@", "g.rows[2 * row + 1]"),
    (BACKWARD, "S, dP, keys, first, last, @inputs.shape.scale@", "inputs.shape.scale * 1.001f"),
    (BACKWARD, "b.delta[q] -= @g.d_lse[row + q]@", "0"),
    (BACKWARD, "S + first, kQueries, @b.d_out_rows.data() + first * padded@", "b.d_out_rows.data()"),
    (BACKWARD, "dP + first, kQueries, @b.q_rows.data() + first * padded@", "b.q_rows.data()"),
    (BACKWARD, "@b.dk.data() + key * padded@, padded, keys", "b.dk.data()"),
]
FAULTS = [fault if "@" in fault[1] else (fault[0], f"@{fault[1]}@", fault[2]) for fault in FAULTS]
PLAIN = """
#include <cmath>
#include <cstdint>
extern "C" { int planted; }
#include "%(folder)s/attention.cpp"
#include "%(folder)s/attention_backward.cpp"
#include "%(folder)s/attention_loops.cpp"
using namespace minillama;
static AttentionInputs inputs(float** x, const bool* mask, const int64_t* n) {
  const int64_t B = n[0], H = n[1], K = n[2], T = n[3], S = n[4], d = n[5];
  const kernels::Strided keys{x[1], K * S * d, S * d, d}, values{x[2], K * S * d, S * d, d};
  return {kernels::DType::f32, {x[0], H * T * d, T * d, d}, keys, values, {mask, T * S, S},
          {B, H, K, T, S, d, float(1 / std::sqrt(double(d))), n[6] != 0}};
}
extern "C" void forward(float** x, const bool* mask, const int64_t* n) {
  const auto all = inputs(x, mask, n);
  attention_forward(all, {x[3], x[4], x[5]}, 0, attention_tiles(all.shape));
}
extern "C" void backward(float** x, const bool* mask, const int64_t* n) {
  const kernels::Strided d_out{x[6], n[1] * n[3] * n[5], n[3] * n[5], n[5]};
  attention_backward(inputs(x, mask, n), {d_out, x[3], x[5], x[10], x[7], x[8], x[9]}, 0, n[0] * n[2]);
}
"""


def with_faults(folder):
    """A copy of csrc/cpu in which fault n is in force while the variable `planted` is n."""
    shutil.copytree(kernels.source_folder(), folder, dirs_exist_ok=True)
    plant_all((number, folder / "cpu" / name, text, wrong) for number, (name, text, wrong) in enumerate(FAULTS, 1))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    with_faults(folder)
    include = f"{torch.__path__[0]}/include"
    command = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-I", include, "-x", "c++", "-",
               str(folder / "cpu" / "vectors.cpp"), "-o", str(folder / "planted.so")]
    done = subprocess.run(command, input=PLAIN % {"folder": folder / "cpu"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(folder / "planted.so"))


def plain_attention(library):
    """`attention` by that library, for dense fp32 tensors."""
    def call(function, tensors, mask, causal):
        (B, H, T, d), (K, S) = tensors[0].shape, tensors[1].shape[1:3]
        pointers = (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))
        bits = None if mask is None else mask.expand(B, T, S).contiguous()
        function(pointers, ctypes.c_void_p(0 if mask is None else bits.data_ptr()),
                 (ctypes.c_int64 * 7)(B, H, K, T, S, d, causal))

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, causal, mask):
            out, lse, rows = torch.empty_like(q), q.new_empty(q.shape[:3]), q.new_empty(*q.shape[:3], 2)
            call(library.forward, (q, k, v, out, lse, rows), mask, causal)
            ctx.mark_non_differentiable(rows)
            ctx.save_for_backward(q, k, v, out, lse, rows, mask)
            ctx.causal = causal
            return out, lse, rows

        @staticmethod
        def backward(ctx, d_out, d_lse, _):
            *tensors, mask = ctx.saved_tensors
            results = [torch.empty_like(x) for x in tensors[:3]]
            call(library.backward, (*tensors, d_out.contiguous(), *results, d_lse.contiguous()), mask, ctx.causal)
            return *results, None, None

    return lambda q, k, v, causal=True, mask=None: Attend.apply(*(x.contiguous() for x in (q, k, v)), causal, mask)


def laws_hold(library):
    """The laws of tests/test_attention_cpu.py that a fault may break, each at the sizes that show most."""
    flash = plain_attention(library)

    def attend(*inputs, causal=True, mask_BTS=None):
        return flash(*inputs, causal, mask_BTS)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laws, "attend", attend)
        patch.setattr(laws, "flash", flash)
        for T, S, causal in ((3, 79, True), (33, 5, True), (65, 257, True), (130, 67, False), (70, 70, True)):
            laws.law_holds(laws.random_inputs(2, 4, 2, T, S, 20), causal)
            for mask in laws.masks(T, S)[:3]:
                laws.law_holds(laws.random_inputs(2, 2, 1, T, S, 6), causal, mask)
        laws.test_a_query_that_sees_nothing_gives_zeros_and_takes_no_gradient(True)
        laws.test_the_log_sum_of_exponentials_is_returned_with_its_gradient()
        laws.test_scores_far_from_zero_neither_overflow_nor_vanish(12, None)
        laws.test_exponentials_are_right_to_two_units(None)


def test_without_a_fault_the_laws_hold(library):
    laws_hold(library)


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[f"{text} -> {wrong}" for _, text, wrong in FAULTS])
def test_every_fault_breaks_a_law(library, number):
    planted = ctypes.c_int.in_dll(library, "planted")
    planted.value = number
    try:
        with pytest.raises(AssertionError):
            laws_hold(library)
    finally:
        planted.value = 0
