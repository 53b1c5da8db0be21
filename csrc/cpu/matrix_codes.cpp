// y = W x where W is kept in NF4, int8 or blocks of a GGUF file: in the plainest form, one row of W after another.

#include "matrix_codes.h"

#include <algorithm>

#include "int8_dots.h"
#include "int8_rows.h"
#include "int8_tiles.h"
#include "nf4_absmax.h"
#include "nf4_matmul.h"
#include "nf4_matvec.h"
#include "vectors.h"

namespace minillama {

// ---- NF4: the scales of some rows are decoded, then `nf4_rows` multiplies, up to four rows of x at a time

constexpr int64_t kScaledRows = 16;
constexpr int64_t kNF4Rows = 4;

void prepare_nf4(const Matrix& w, Activations& to) {
  kernels::NF4 any = w.nf4;  // of these columns; matrices that share the layout may have other blocks
  any.block_size = kNF4Piece;
  if (nf4_has_pieces(any)) nf4_matvec_lay_out(to.x, to.n, w.columns, to.in_code_order);
}

void multiply_nf4(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  if (nf4_has_pieces(w.nf4)) return nf4_matvec(w.nf4, x.in_code_order, x.n, first, end, y + first, w.rows);
  const int64_t K = w.columns, size = w.nf4.block_size;
  std::vector<float> absmax;
  for (; first < end; first += kScaledRows) {
    const int64_t stop = std::min(end, first + kScaledRows);
    const int64_t begin = first * K / size, past = (stop * K + size - 1) / size;
    absmax.resize(past - begin);
    nf4_absmax(w.nf4, begin, past, absmax.data());
    for (int64_t m = 0; m < x.n; m += kNF4Rows) {
      NF4Product product{w.nf4, absmax.data() - begin, std::min(kNF4Rows, x.n - m), false, {}};
      nf4_lay_out(product, x.x + m * K);
      nf4_rows(product, first, stop, y + m * w.rows);
    }
  }
}

// ---- int8

constexpr int64_t kDottedRows = 16;  // of W, that stay in the cache while all rows of x pass
constexpr int64_t kMostTiled = 65536;  // columns whose largest sum fits an int32: 2^16 * 128 * 127 < 2^30

void prepare_int8(const Matrix& w, Activations& to) {
  int8_rows(to.x, to.n, w.columns, w.threshold, to.codes, to.absmax, to.outliers);
}

// y[m, r] of a sum of codes and the outliers' part
static float number_of_y(const Matrix& w, const Activations& x, int64_t r, int64_t m, float sum, float apart) {
  return sum * (x.absmax[m] / 127.0f) * (w.absmax[r] / 127.0f) + apart;
}

// The weights of some rows in the columns of outliers, (outliers, kTileRows); 0 where rows are missing.
static void outliers_of_rows(const Matrix& w, const Activations& x, int64_t first, int64_t rows, float* out) {
  const auto* codes = static_cast<const int8_t*>(w.values);
  for (int64_t k : x.outliers) {
    for (int64_t r = 0; r < rows; ++r) out[r] = codes[(first + r) * w.columns + k] * (w.absmax[first + r] / 127.0f);
    out += kTileRows;
  }
}

// apart[r] = sum over outliers k of w[k, r] x[k], in their order
static void add_outliers(const Activations& x, const float* w, const float* of_x, float* apart) {
  std::fill(apart, apart + kTileRows, 0.0f);
  for (int64_t k : x.outliers) {
    for (int64_t r = 0; r < kTileRows; ++r) apart[r] += of_x[k] * w[r];
    w += kTileRows;
  }
}

// Many rows of x: see int8_tiles.cpp. Bytes of W become unsigned by 128 more; 128 times the sum of x is taken away.
static void int8_by_tiles(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  const auto* codes = static_cast<const int8_t*>(w.values);
  const int64_t K = w.columns;
  std::vector<int32_t> offsets(x.n, 0), sums(x.n * kTileRows);
  for (int64_t i = 0; i < x.n * K; ++i) offsets[i / K] -= 128 * x.codes[i];
  std::vector<uint32_t> tile(K / 4 * kTileRows);
  std::vector<float> outliers(x.outliers.size() * kTileRows, 0.0f), apart(kTileRows);
  for (; first < end; first += kTileRows) {
    const int64_t rows = std::min(kTileRows, end - first);
    interleave_fours(codes + first * K, K, rows, tile.data());
    for (uint32_t& four : tile) four ^= 0x80808080;
    const auto* bytes = reinterpret_cast<const uint8_t*>(tile.data());
    int8_tile_dots({bytes, x.codes.data(), K, x.n, 1, K, offsets.data()}, sums.data());
    outliers_of_rows(w, x, first, rows, outliers.data());
    for (int64_t m = 0; m < x.n; ++m) {
      add_outliers(x, outliers.data(), x.x + m * K, apart.data());
      for (int64_t r = 0; r < rows; ++r) {
        const auto sum = static_cast<float>(sums[m * kTileRows + r]);
        y[m * w.rows + first + r] = number_of_y(w, x, first + r, m, sum, apart[r]);
      }
    }
  }
}

void multiply_int8(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  const auto* codes = static_cast<const int8_t*>(w.values);
  const int64_t K = w.columns;
  if (K <= kMostTiled && int8_has_tiles(x.n, K)) return int8_by_tiles(w, x, first, end, y);
  std::vector<int64_t> sums(kDottedRows * x.n);
  for (; first < end; first += kDottedRows) {
    const int64_t rows = std::min(kDottedRows, end - first);
    int8_dots(codes + first * K, rows, x.codes.data(), x.n, K, sums.data());
    for (int64_t r = first; r < first + rows; ++r)
      for (int64_t m = 0; m < x.n; ++m) {
        float apart = 0;
        for (int64_t k : x.outliers) apart += x.x[m * K + k] * (codes[r * K + k] * (w.absmax[r] / 127.0f));
        y[m * w.rows + r] = number_of_y(w, x, r, m, static_cast<float>(sums[(r - first) * x.n + m]), apart);
      }
  }
}

// ---- blocks of a GGUF file

void read_blocks(const Matrix& w, int64_t row, float* out) {
  const BlockLayout layout = layout_of(w.block);
  const auto* bytes = static_cast<const uint8_t*>(w.values) + row * (w.columns / layout.numbers * layout.bytes);
  gguf_read_row(w.block, bytes, w.columns, out);
}

void multiply_blocks(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  std::vector<float> row(w.columns), sums(x.n);
  for (int64_t r = first; r < end; ++r) {
    read_blocks(w, r, row.data());
    multiply_rows({Form::f32, 1, w.columns, row.data(), nullptr, 0, {}, {}}, x, 0, 1, sums.data());
    for (int64_t m = 0; m < x.n; ++m) y[m * w.rows + r] = sums[m];
  }
}

}  // namespace minillama
