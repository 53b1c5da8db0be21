// y = x W^T and dx = dy W for a W in NF4 (arXiv 2305.14314), on a CPU: W is never in memory as a whole.
//
// 2 M N K FLOPs over 0.516 N K bytes of W: with M of a few rows reading and decoding W is all the work, with many the
// FLOPs are. So each weight is decoded once a call, into a tile that stays in the first cache, and multiplied from there
// with all M rows. In both directions one number of a row is multiplied with a vector:
//
//   y^T [n, m...] += W[n, k] * x^T[k, m...]     a tile of W gives the numbers, x is laid out in panels of columns
//   dx  [m, k...] += dy[m, n] * W[n, k...]      dy gives the numbers, a tile of W the vectors
//
// Few rows would leave such vectors empty: there nf4_matvec.cpp multiplies, or, where blocks cross rows of W and the like, a
// row of W is decoded and multiplied as it lies (`dot`).
// All sums are fp32.

#include "nf4_matmul.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "../nf4_table.h"
#include "nf4_matvec.h"
#include "vectors.h"

namespace minillama {

using kernels::NF4;

constexpr int64_t kDepth = 64;  // columns of a tile: 48 rows of it are 12 KiB, 64 rows of a panel 16 KiB
constexpr int64_t kFewRows = 4;
constexpr int64_t kStrip = 1024;  // weights of a row that `dot` takes at once

static const float kLevels[16] = {MINILLAMA_NF4_LEVELS};

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Of the flattened weight, an odd one is the low half of a byte.
void nf4_decode(const NF4& w, const float* of_blocks, int64_t element, int64_t count, float* out) {
  const int64_t begin = element, end = element + count, size = w.block_size;
  int64_t block = element / size;
  if (element % size == 0) {  // whole blocks at once
    const int64_t blocks = count / size;
    vectors().decode(w.codes + element / 2, of_blocks + block, out, size / 2, blocks, {size / 2, 1, size});
    element += blocks * size;
    block += blocks;
  }
  for (; element < end; ++block) {
    const int64_t stop = std::min(end, (block + 1) * size);
    const float* absmax = of_blocks + block;
    if (element % 2) out[element++ - begin] = kLevels[w.codes[element / 2] & 15] * *absmax;
    const int64_t pairs = (stop - element) / 2;
    vectors().decode(w.codes + element / 2, absmax, out + element - begin, pairs, 1, {});
    element += 2 * pairs;
    if (element < stop) out[element++ - begin] = kLevels[w.codes[element / 2] >> 4] * *absmax;
  }
}

// Weights [k, k + columns) of rows [n, n + rows), `apart` numbers apart. Blocks run over the flattened weight. Where they do
// not cross its rows, the runs of all rows that lie in one column of blocks are decoded in one call.
static void decode(const NF4Product& product, int64_t n, int64_t rows, int64_t k, int64_t columns, float* out,
                   int64_t apart) {
  const NF4& w = product.w;
  if (w.columns % w.block_size) {
    for (int64_t r = 0; r < rows; ++r) nf4_decode(w, product.absmax, (n + r) * w.columns + k, columns, out + r * apart);
    return;
  }
  const int64_t blocks = w.columns / w.block_size, end = k + columns;
  const RunStrides stride{w.columns / 2, blocks, apart};
  for (int64_t next; k < end; out += next - k, k = next) {
    next = std::min(end, (k / w.block_size + 1) * w.block_size);
    const float* absmax = product.absmax + n * blocks + k / w.block_size;
    vectors().decode(w.codes + (n * w.columns + k) / 2, absmax, out, (next - k) / 2, rows, stride);
  }
}

// ---- y = x W^T

bool nf4_by_matvec(const NF4& w, int64_t M) { return M <= kMatvecRows && nf4_has_pieces(w); }

template <typename Scalar>
static void lay_out_for_matvec(NF4Product& product, const Scalar* x) {
  const int64_t M = product.M, K = product.w.columns;
  const std::vector<float> numbers(x, x + M * K);
  nf4_matvec_lay_out(numbers.data(), M, K, product.rows);
}

// x as it is, for few rows; else in panels of `kPanel` rows, each of them transposed, (columns, kPanel), filled up with 0.
template <typename Scalar>
void nf4_lay_out(NF4Product& product, const Scalar* x) {
  const int64_t M = product.M, K = product.w.columns;
  if (product.by_matvec) return lay_out_for_matvec(product, x);
  if (M <= kFewRows) return product.rows.assign(x, x + M * K);
  product.rows.assign(round_up(M, kPanel) * K, 0.0f);
  constexpr int64_t block = 16;  // square blocks: read and written by whole lines of the cache
  for (int64_t first = 0; first < M; first += block) {
    float* panel = product.rows.data() + first / kPanel * kPanel * K + first % kPanel;
    for (int64_t k0 = 0; k0 < K; k0 += block)
      for (int64_t k = k0; k < std::min(K, k0 + block); ++k)
        for (int64_t m = first; m < std::min(M, first + block); ++m) panel[k * kPanel + m - first] = x[m * K + k];
  }
}

template <typename Scalar>
static void rows_by_matvec(const NF4Product& product, int64_t first, int64_t end, Scalar* y) {
  const int64_t M = product.M, N = product.w.rows;
  std::vector<float> sums(M * (end - first));
  nf4_matvec(product.w, product.rows, M, first, end, sums.data(), end - first);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = first; n < end; ++n) y[m * N + n] = static_cast<Scalar>(sums[m * (end - first) + n - first]);
}

template <typename Scalar>
static void few_rows(const NF4Product& product, int64_t first, int64_t end, Scalar* y) {
  const int64_t K = product.w.columns, N = product.w.rows;
  float strip[kStrip];
  for (int64_t n = first; n < end; ++n) {
    float sums[kFewRows] = {};
    for (int64_t k = 0; k < K; k += kStrip) {
      const int64_t size = std::min(kStrip, K - k);
      nf4_decode(product.w, product.absmax, n * K + k, size, strip);
      for (int64_t m = 0; m < product.M; ++m) sums[m] += vectors().dot(product.rows.data() + m * K + k, strip, size);
    }
    for (int64_t m = 0; m < product.M; ++m) y[m * N + n] = static_cast<Scalar>(sums[m]);
  }
}

template <typename Scalar>
void nf4_rows(const NF4Product& product, int64_t first, int64_t end, Scalar* y) {
  if (product.by_matvec) return rows_by_matvec(product, first, end, y);
  if (product.M <= kFewRows) return few_rows(product, first, end, y);
  const int64_t M = product.M, K = product.w.columns, N = product.w.rows;
  std::vector<float> tile(kNF4Tile * kDepth, 0.0f), sums(round_up(M, kPanel) * kNF4Tile);
  for (; first < end; first += kNF4Tile) {
    const int64_t rows = std::min(kNF4Tile, end - first);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t k = 0; k < K; k += kDepth) {
      const int64_t depth = std::min(kDepth, K - k);
      decode(product, first, rows, k, depth, tile.data(), kDepth);
      for (int64_t m = 0; m < M; m += kPanel)
        for (int64_t r = 0; r < rows; r += kRows)
          vectors().accumulate(&tile[r * kDepth], kDepth, &product.rows[m * K + k * kPanel], depth, std::min(kPanel, M - m),
                               &sums[m * kNF4Tile + r * kPanel]);
    }
    for (int64_t m = 0; m < M; ++m) {
      const float* column = &sums[m / kPanel * kPanel * kNF4Tile + m % kPanel];
      for (int64_t r = 0; r < rows; ++r) y[m * N + first + r] = static_cast<Scalar>(column[r * kPanel]);
    }
  }
}

// ---- dx = dy W

// dy in pieces of kDepth columns, so that the rows of a piece lie near each other; rows filled up with 0.
template <typename Scalar>
void nf4_lay_out_backward(NF4Product& product, const Scalar* dy) {
  const int64_t M = product.M, N = product.w.rows, rows = round_up(M, kRows);
  product.rows.assign(rows * round_up(N, kDepth), 0.0f);
  for (int64_t n = 0; n < N; n += kDepth)
    for (int64_t m = 0; m < M; ++m)
      std::copy(dy + m * N + n, dy + m * N + std::min(N, n + kDepth), &product.rows[n * rows + m * kDepth]);
}

template <typename Scalar>
void nf4_columns(const NF4Product& product, int64_t first, int64_t end, Scalar* dx) {
  const int64_t M = product.M, K = product.w.columns, N = product.w.rows, all = round_up(M, kRows);
  std::vector<float> tile(kDepth * kPanel), sums(all * kPanel);
  for (; first < end; first += kPanel) {
    const int64_t columns = std::min(kPanel, end - first);
    std::fill(tile.begin(), tile.end(), 0.0f);
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t n = 0; n < N; n += kDepth) {
      const int64_t depth = std::min(kDepth, N - n);
      decode(product, n, depth, first, columns, tile.data(), kPanel);
      for (int64_t m = 0; m < M; m += kRows)
        vectors().accumulate(&product.rows[n * all + m * kDepth], kDepth, tile.data(), depth, columns, &sums[m * kPanel]);
    }
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < columns; ++c) dx[m * K + first + c] = static_cast<Scalar>(sums[m * kPanel + c]);
  }
}

#define INSTANTIATE(Scalar)                                                              \
  template void nf4_lay_out<Scalar>(NF4Product&, const Scalar*);                         \
  template void nf4_rows<Scalar>(const NF4Product&, int64_t, int64_t, Scalar*);          \
  template void nf4_lay_out_backward<Scalar>(NF4Product&, const Scalar*);                \
  template void nf4_columns<Scalar>(const NF4Product&, int64_t, int64_t, Scalar*);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace minillama
