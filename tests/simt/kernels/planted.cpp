// The kernels with one barrier left out: `planted KERNEL FILE:LINE` skips the barrier on that line, `planted KERNEL none`
// skips nothing. Prints the results as floats. `planted list` names the barriers that the kernels have passed.

#include "simt/simt.h"

#include <cstdlib>
#include <set>
#include <string>
#include <vector>

static std::string left_out;
static std::set<std::string> passed;

static bool skipped(const char* file, int line) {
  const std::string path = file, name = path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
  passed.insert(name);
  return name == left_out;
}
static void barrier_unless_skipped(const char* file, int line) {
  if (!skipped(file, line)) simt::barrier(0, "__syncthreads()", {file, line});
}
static void warp_barrier_unless_skipped(const char* file, int line) {
  if (!skipped(file, line)) __syncwarp(~0u, {file, line});
}
#define __syncthreads() barrier_unless_skipped(__FILE__, __LINE__)
#define __syncwarp() warp_barrier_unless_skipped(__FILE__, __LINE__)
#include "cuda/flash_backward_tensor_cores.cuh"
#include "cuda/flash_decoding.cuh"
#include "cuda/flash_decoding_append.cuh"
#include "cuda/flash_forward.cuh"
#include "cuda/flash_wide_backward.cuh"
#include "cuda/nf4_backward_tensor_cores.cuh"
#undef __syncwarp

using namespace minillama::kernels;

static std::vector<float> numbers(size_t count, unsigned seed) {
  std::vector<float> all(count);
  for (float& x : all) x = float((seed = seed * 1664525 + 1013904223) >> 8) / float(1 << 23) - 1;
  return all;
}

static void print(const std::vector<float>& all) {
  for (float x : all) std::printf("%.9g ", double(x));
}

static void run_attention() {
  const AttentionShape shape{1, 2, 1, 35, 50, 20, 0.25f, true};
  const auto q = numbers(2 * 35 * 20, 1), k = numbers(50 * 20, 2), v = numbers(50 * 20, 3), d_out = numbers(1400, 4);
  std::vector<float> out(1400), lse(70), rows(140), delta(70), dq(1400), dk(1000), dv(1000);
  const Strided Q{q.data(), 1400, 700, 20}, K{k.data(), 1000, 1000, 20}, V{v.data(), 1000, 1000, 20};
  flash_attention(DType::f32, Q, K, V, {}, nullptr, out.data(), lse.data(), rows.data(), shape, nullptr);
  flash_attention_backward(DType::f32, Q, K, V, {d_out.data(), 1400, 700, 20}, {}, nullptr, out.data(), rows.data(),
                           nullptr, delta.data(), nullptr, nullptr, dq.data(), dk.data(), dv.data(), shape, nullptr);
  for (const auto& result : {out, dq, dk, dv}) print(result);
}

// On tensor cores: a tile of queries all of whose warps work, and three of keys.
template <int d>
static void run_tensor_cores() {
  constexpr int T = 64, S = 140;
  const AttentionShape shape{1, 1, 1, T, S, d, 0.25f, true};
  const auto q = numbers(T * d, 1), k = numbers(S * d, 2), v = numbers(S * d, 3);
  alignas(16) static __half Q[T * d], K[S * d], V[S * d], out[T * d];
  for (int i = 0; i < T * d; ++i) Q[i] = __half(q[i]);
  for (int i = 0; i < S * d; ++i) K[i] = __half(k[i]), V[i] = __half(v[i]);
  std::vector<float> lse(T), rows(2 * T), read(T * d);
  flash_attention(DType::f16, {Q, T * d, T * d, d}, {K, S * d, S * d, d}, {V, S * d, S * d, d}, {}, nullptr, out,
                  lse.data(), rows.data(), shape, nullptr);
  for (int i = 0; i < T * d; ++i) read[i] = float(out[i]);
  print(read);
}

static std::vector<__half> halves(size_t count, unsigned seed) {
  std::vector<__half> all(count);
  const auto from = numbers(count, seed);
  for (size_t i = 0; i < count; ++i) all[i] = __half(from[i]);
  return all;
}

static void print(const std::vector<__half>& all) {
  for (const __half& x : all) std::printf("%.9g ", double(float(x)));
}

// Gradients on tensor cores: two blocks of keys, all of whose warps work, and three tiles of queries.
template <int d>
static void run_gradients() {
  constexpr int T = 70, S = 250;
  const AttentionShape shape{1, 1, 1, T, S, d, 0.25f, true};
  const auto q = halves(T * d, 1), k = halves(S * d, 2), v = halves(S * d, 3), d_out = halves(T * d, 4);
  auto out = d_out, dq = q, dk = k, dv = v;
  std::vector<float> rows(2 * T, 1.0f), delta(T), sums(gradient_sums(shape));
  std::vector<unsigned> turns(gradient_turns(shape));
  const Strided Q{q.data(), T * d, T * d, d}, K{k.data(), S * d, S * d, d}, V{v.data(), S * d, S * d, d};
  flash_attention_backward(DType::f16, Q, K, V, {d_out.data(), T * d, T * d, d}, {}, nullptr, out.data(), rows.data(),
                           nullptr, delta.data(), sums.data(), turns.data(), dq.data(), dk.data(), dv.data(), shape,
                           nullptr);
  for (const auto& result : {dq, dk, dv}) print(result);
}

// Two parts of the keys, and a group of two.
static void run_decoding() {
  constexpr int H = 2, S = 140, d = 24;
  const AttentionShape shape{1, H, 1, 1, S, d, 0.25f, true};
  const auto q = halves(H * d, 1), k = halves(S * d, 2), v = halves(S * d, 3);
  auto out = q;
  std::vector<float> part_out(H * 2 * d), part_rows(H * 2 * 2);
  flash_decoding(DType::f16, {q.data(), H * d, d, d}, {k.data(), S * d, S * d, d}, {v.data(), S * d, S * d, d}, {},
                 out.data(), part_out.data(), part_rows.data(), shape, nullptr);
  print(out);
  // the last key and value as the new ones
  auto keys = k, values = v;
  const std::vector<float> turns(2 * d / 2, 0.5f);
  const NewTokens token{turns.data(), 1, d / 2, 0, false, true, nullptr, nullptr, S - 1};
  unsigned arrivals[H] = {};
  flash_decoding_append(DType::f16, {q.data(), H * d, d, d}, {k.data() + (S - 1) * d, d, d, d},
                        {v.data() + (S - 1) * d, d, d, d}, {keys.data(), S * d, S * d, d},
                        {values.data(), S * d, S * d, d}, token, out.data(), part_out.data(), part_rows.data(), arrivals,
                        shape, nullptr);
  print(out);
}

static void run_nf4(int64_t N, int64_t K) {
  std::vector<uint8_t> codes(N * K / 2);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(i * 37 + 11);
  const auto absmax = numbers((N * K + 63) / 64, 5), x = numbers(3 * K, 6), dy = numbers(3 * N, 7);
  std::vector<float> y(3 * N), dx(3 * K);
  const NF4 w{codes.data(), absmax.data(), nullptr, nullptr, nullptr, N, K, 64};
  nf4_matmul(DType::f32, x.data(), w, y.data(), 3, nullptr);
  nf4_matmul_backward(DType::f32, dy.data(), w, dx.data(), 3, nullptr);
  print(y), print(dx);
}

// One row of x: more columns than a block takes at once.
static void run_nf4_one_row() {
  constexpr int N = 8, K = 2112;
  alignas(16) static uint8_t codes[N * K / 2];
  for (size_t i = 0; i < sizeof codes; ++i) codes[i] = uint8_t(i * 37 + 11);
  const auto absmax = numbers(N * K / 64, 10), x = numbers(K, 11);
  alignas(16) static __half X[K], Y[N];
  for (int i = 0; i < K; ++i) X[i] = __half(x[i]);
  nf4_matmul(DType::f16, X, {codes, absmax.data(), nullptr, nullptr, nullptr, N, K, 64}, Y, 1, nullptr);
  print(std::vector<float>(Y, Y + N));
}

// On tensor cores: two blocks of 32 rows of W, and a step more than there are stages.
static void run_nf4_tensor_cores() {
  constexpr int M = 16, N = 40, K = 1024;
  alignas(16) static uint8_t codes[N * K / 2];
  for (size_t i = 0; i < sizeof codes; ++i) codes[i] = uint8_t(i * 37 + 11);
  const auto absmax = numbers(N * K / 64, 8), x = numbers(M * K, 9);
  alignas(16) static __half X[M * K], Y[M * N];
  for (int i = 0; i < M * K; ++i) X[i] = __half(x[i]);
  nf4_matmul(DType::f16, X, {codes, absmax.data(), nullptr, nullptr, nullptr, N, K, 64}, Y, M, nullptr);
  print(std::vector<float>(Y, Y + M * N));
  for (int i = 0; i < M * N; ++i) Y[i] = __half(x[i]);  // N = 40 of K columns, as gradients of 1024 rows of W
  nf4_matmul_backward(DType::f16, Y, {codes, absmax.data(), nullptr, nullptr, nullptr, N, K, 64}, X, M, nullptr);
  print(std::vector<float>(X, X + M * K));
}

// For all versions, and with more than one tile of columns and of rows.
static void run_nf4() { run_nf4(20, 34), run_nf4(5, 1056), run_nf4(70, 32); }

int main(int, char** words) {
  const std::string what = words[1];
  if (what == "list") {
    std::freopen("/dev/null", "w", stderr);
    run_attention(), run_tensor_cores<24>(), run_tensor_cores<136>(), run_gradients<24>(), run_gradients<136>(),
        run_decoding(), run_nf4(), run_nf4_one_row(), run_nf4_tensor_cores();
    std::puts("");
    for (const auto& name : passed) std::printf("%s ", name.c_str());
    return 0;
  }
  left_out = words[2];
  what == "nf4" ? run_nf4() : what == "nf4 row" ? run_nf4_one_row() : what == "nf4 tensor" ? run_nf4_tensor_cores()
      : what == "tensor" ? run_tensor_cores<24>() : what == "wide tensor" ? run_tensor_cores<136>()
      : what == "gradients" ? run_gradients<24>() : what == "wide gradients" ? run_gradients<136>()
      : what == "decoding" ? run_decoding() : run_attention();
}
