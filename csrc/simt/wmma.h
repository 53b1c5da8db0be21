// nvcuda::wmma. NVIDIA leaves open which lane holds which element of a fragment, so here lane L simply holds the L-th
// piece of the matrix in row-major order. Code that assumes another layout is wrong on some GPU too.
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
namespace precision {
struct tf32 {};
}

template <class T> struct Stored { using type = T; };
template <> struct Stored<precision::tf32> { using type = float; };
inline float __float_to_tf32(float x) {  // 10 bits of mantissa, ties away from zero
  const uint32_t bits = simt::bits_of(x);
  return (bits & 0x7fffffff) > 0x7f800000 ? x : simt::float_of((bits + 0x1000) & ~0x1fffu);
}

template <int M, int N, int K, class T>
constexpr bool is_shape = (M * N == 256 && K == 16 && (M == 8 || M == 16 || M == 32) && sizeof(T) <= 4) ||
                          (M == 16 && N == 16 && K == 8 && sizeof(T) <= 4) || (M == 8 && N == 8 && K == 4 && sizeof(T) == 8);

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  using element_type = typename Stored<T>::type;
  static_assert(is_shape<M, N, K, element_type>, "16x16x16, 32x8x16, 8x32x16, 16x16x8 (tf32) or 8x8x4 (double)");
  static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M;
  static constexpr int columns = std::is_same<Use, matrix_a>::value ? K : N;
  static constexpr int num_elements = rows * columns / 32, num_storage_elements = num_elements;
  element_type x[num_elements];
};

template <class Use, int M, int N, int K, class T, class Layout, class U>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, U value) {
  for (auto& element : f.x) element = typename Stored<T>::type(value);
}

template <class Fragment>
int place(const Fragment&, int element, bool by_rows, unsigned stride) {
  const int at = Fragment::num_elements * simt::lane_id() + element;
  const int row = at / Fragment::columns, column = at % Fragment::columns;
  return by_rows ? row * int(stride) + column : column * int(stride) + row;
}

template <class Use, int M, int N, int K, class T, class Layout>
SIMT_INLINE void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const typename Stored<T>::type* from,
                                  unsigned stride, SIMT_HERE) {
  for (int e = 0; e < f.num_elements; ++e) f.x[e] = from[place(f, e, std::is_same<Layout, row_major>::value, stride)];
  __syncwarp(~0u, where);
}

template <int M, int N, int K, class T>
SIMT_INLINE void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* from, unsigned stride, layout_t layout,
                                  SIMT_HERE) {
  for (int e = 0; e < f.num_elements; ++e) f.x[e] = from[place(f, e, layout == mem_row_major, stride)];
  __syncwarp(~0u, where);
}

template <int M, int N, int K, class T>
SIMT_INLINE void store_matrix_sync(T* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout,
                                   SIMT_HERE) {
  for (int e = 0; e < f.num_elements; ++e) to[place(f, e, layout == mem_row_major, stride)] = f.x[e];
  __syncwarp(~0u, where);
}

template <class Fragment>
struct Elements {  // of a whole matrix, wherever they lie
  struct Piece {
    typename Fragment::element_type x[Fragment::num_elements];
  };
  Piece all[32];
  Elements(const Fragment& mine, const char* what, simt::Where where) {
    Piece piece;
    std::memcpy(piece.x, mine.x, sizeof piece.x);
    const simt::Gathered<Piece> gathered(~0u, piece, what, where);
    for (int lane = 0; lane < 32; ++lane) all[lane] = gathered[lane];
  }
  auto operator()(int row, int column) const {
    const int at = row * Fragment::columns + column;
    return all[at / Fragment::num_elements].x[at % Fragment::num_elements];
  }
};

template <int M, int N, int K, class D, class T, class C, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c,
              bool /*saturate*/ = false, SIMT_HERE) {
  using Sum = std::conditional_t<sizeof(C) == 2, float, C>;
  const Elements all_a(a, "operand a of a product", where);
  const Elements all_b(b, "wmma::mma_sync()", where);
  for (int e = 0; e < d.num_elements; ++e) {
    const int at = d.num_elements * simt::lane_id() + e, row = at / N, column = at % N;
    Sum sum = Sum(c.x[e]);
    for (int k = 0; k < K; ++k) sum += Sum(all_a(row, k)) * Sum(all_b(k, column));
    d.x[e] = D(sum);
  }
}

}  // namespace nvcuda::wmma

#endif
