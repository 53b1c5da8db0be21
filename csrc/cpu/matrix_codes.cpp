// y = W x where W is kept in NF4 or int8: in the plainest form, one row of W after another.

#include "matrix_codes.h"

#include <algorithm>

#include "int8_dots.h"
#include "int8_rows.h"
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

void prepare_int8(const Matrix& w, Activations& to) {
  int8_rows(to.x, to.n, w.columns, w.threshold, to.codes, to.absmax, to.outliers);
}

void multiply_int8(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  const auto* codes = static_cast<const int8_t*>(w.values);
  const int64_t K = w.columns;
  std::vector<int64_t> sums(kDottedRows * x.n);
  for (; first < end; first += kDottedRows) {
    const int64_t rows = std::min(kDottedRows, end - first);
    int8_dots(codes + first * K, rows, x.codes.data(), x.n, K, sums.data());
    for (int64_t r = first; r < first + rows; ++r)
      for (int64_t m = 0; m < x.n; ++m) {
        float apart = 0;
        for (int64_t k : x.outliers) apart += x.x[m * K + k] * (codes[r * K + k] * (w.absmax[r] / 127.0f));
        const float sum = static_cast<float>(sums[(r - first) * x.n + m]);
        y[m * w.rows + r] = sum * (x.absmax[m] / 127.0f) * (w.absmax[r] / 127.0f) + apart;
      }
  }
}

}  // namespace minillama
