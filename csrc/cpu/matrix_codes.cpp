// y = W x where W is kept in NF4 or int8: in the plainest form, one row of W after another.

#include "matrix_codes.h"

#include <algorithm>
#include <cmath>

#include "lanes.h"
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

void prepare_int8(const Matrix& w, Activations& to) {
  const int64_t K = w.columns;
  to.codes.assign(to.n * K, 0);
  to.absmax.assign(to.n, 0.0f);
  to.outliers.clear();
  for (int64_t k = 0; k < K; ++k)
    for (int64_t m = 0; m < to.n; ++m)
      if (std::fabs(to.x[m * K + k]) >= w.threshold) {
        to.outliers.push_back(k);
        break;
      }
  for (int64_t m = 0; m < to.n; ++m) {
    const float* row = to.x + m * K;
    float& absmax = to.absmax[m];  // what is below the threshold counts, in columns of outliers too
    for (int64_t k = 0; k < K; ++k) {
      const float size = std::fabs(row[k]);
      if (std::isnan(size) || (size > absmax && size < w.threshold)) absmax = size;  // nothing is above NaN: it stays
    }
    const float scale = 127.0f * (1.0f / absmax);
    if (!(absmax > 0)) continue;  // zeros alone, or NaN: codes 0
    for (int64_t k = 0; k < K; ++k)
      if (std::fabs(row[k]) < w.threshold) to.codes[m * K + k] = static_cast<int8_t>(std::nearbyint(row[k] * scale));
    for (int64_t k : to.outliers) to.codes[m * K + k] = 0;
  }
}

static INLINE int32_t dot_codes(const int8_t* a, const int8_t* b, int64_t size) {
  int32_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<int32_t>(a[i]) * b[i];
  return sum;
}

#if MINILLAMA_X86
AVX512 static int32_t dot_codes_avx512(const int8_t* a, const int8_t* b, int64_t size) { return dot_codes(a, b, size); }
AVX2 static int32_t dot_codes_avx2(const int8_t* a, const int8_t* b, int64_t size) { return dot_codes(a, b, size); }
#endif
static int32_t dot_codes_plain(const int8_t* a, const int8_t* b, int64_t size) { return dot_codes(a, b, size); }

static auto codes_product() {
#if MINILLAMA_X86
  if (vectors().kind == Kind::avx512) return dot_codes_avx512;
  if (vectors().kind == Kind::avx2) return dot_codes_avx2;
#endif
  return dot_codes_plain;
}

void multiply_int8(const Matrix& w, const Activations& x, int64_t first, int64_t end, float* y) {
  const auto* codes = static_cast<const int8_t*>(w.values);
  const int64_t K = w.columns;
  const auto dot = codes_product();
  for (int64_t r = first; r < end; ++r)
    for (int64_t m = 0; m < x.n; ++m) {
      const float sum = static_cast<float>(dot(codes + r * K, x.codes.data() + m * K, K));
      float apart = 0;
      for (int64_t k : x.outliers) apart += x.x[m * K + k] * (codes[r * K + k] * (w.absmax[r] / 127.0f));
      y[m * w.rows + r] = sum * (x.absmax[m] / 127.0f) * (w.absmax[r] / 127.0f) + apart;
    }
}

}  // namespace minillama
