// nvcuda::wmma for 16 x 16 x 16 products. NVIDIA leaves open which lane holds which element of a fragment, so here lane
// L simply holds elements 8 L ... 8 L + 7 in row-major order. Code that assumes another layout is wrong on some GPU too.
#pragma once

#ifdef __CUDACC__
#include <mma.h>
#else

#include "narrow_types.h"
#include "warp.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "only fragments of 16 x 16 x 16 are emulated");
  static constexpr int num_elements = 8;
  T x[8];
};

template <class Use, int M, int N, int K, class T, class Layout, class U>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, U value) {
  for (T& element : f.x) element = T(value);
}

inline int place(int element, bool by_rows, unsigned stride) {
  const int at = 8 * simt::lane_id() + element, row = at / 16, column = at % 16;
  return by_rows ? row * int(stride) + column : column * int(stride) + row;
}

template <class Use, int M, int N, int K, class T, class Layout>
SIMT_INLINE void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const T* from, unsigned stride, SIMT_HERE) {
  for (int e = 0; e < 8; ++e) f.x[e] = from[place(e, std::is_same<Layout, row_major>::value, stride)];
  __syncwarp(~0u, where);
}

template <int M, int N, int K, class T>
SIMT_INLINE void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* from, unsigned stride, layout_t layout,
                      SIMT_HERE) {
  for (int e = 0; e < 8; ++e) f.x[e] = from[place(e, layout == mem_row_major, stride)];
  __syncwarp(~0u, where);
}

template <int M, int N, int K, class T>
SIMT_INLINE void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout,
                       SIMT_HERE) {
  for (int e = 0; e < 8; ++e) to[place(e, layout == mem_row_major, stride)] = f.x[e];
  __syncwarp(~0u, where);
}

template <int M, int N, int K, class T, class C, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, C>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c,
              SIMT_HERE) {
  struct Both {
    T a[8], b[8];
  } mine;
  std::memcpy(mine.a, a.x, sizeof mine.a);
  std::memcpy(mine.b, b.x, sizeof mine.b);
  const simt::Gathered<Both> all(~0u, mine, "wmma::mma_sync()", where);
  for (int e = 0; e < 8; ++e) {
    const int at = 8 * simt::lane_id() + e, row = at / 16, column = at % 16;
    float sum = float(c.x[e]);
    for (int k = 0; k < 16; ++k)
      sum += float(all[2 * row + k / 8].a[k % 8]) * float(all[2 * k + column / 8].b[column % 8]);
    d.x[e] = C(sum);
  }
}

}  // namespace nvcuda::wmma

#endif
