// What attention on tensor cores is made of: tiles of shared memory that arrive by cp.async, and the fragments of mma.sync
// that a warp's registers hold (PTX ISA 9.7.14, as functions in ../simt/tensor.h). Used by flash_tensor_cores.cuh, which
// says why tiles are swizzled, and by flash_backward_tensor_cores.cuh.
#pragma once

#include "flash_attention.cuh"

namespace minillama::kernels {

constexpr int kWarps = 4, kQueries = 16 * kWarps;  // of a block: a warp has the 16 rows of one product
constexpr unsigned kAllLanes = 0xffffffffu;

template <int D>
constexpr int kKeys = D <= 64 ? 64 : 32;  // of a tile: q and two stages of k and v are at most 48 KiB

// Where 8 neighbouring elements lie in a tile whose rows have D elements. Rows of 32 or 96 lie four or twelve 16 bytes apart:
// there two rows together are, or end with, a line of 32 banks; of 16, four rows.
template <int D>
__device__ int swizzled(int row, int chunk) {
  return row * D + (chunk ^ (D % 64 == 0 ? row % 8 : D % 32 == 0 ? row / 2 % 4 : row / 4 % 2)) * 8;
}

// Begins to copy rows first ... of a matrix into a tile; what lies beyond its rows or columns becomes 0 and is not read.
template <int Rows, int D, int Warps = kWarps, class T>
__device__ void copy_tile(T* tile, const T* data, int64_t stride, int64_t first, int64_t rows, int width) {
  constexpr int Side = D % 64 == 0 ? D / 8 : 4, Step = 32 * Warps / Side;  // 16 bytes side by side, rows at once
  const int there = rows - first < Rows ? int(rows - first) : Rows;
  const int row = int(threadIdx.x) / Side, chunk = int(threadIdx.x) % Side;
  if (Step > Rows && row >= Rows) return;
  const T* from = data + (first + row) * stride + chunk * 8;
#pragma unroll
  for (int r = 0; r < Rows; r += Step, from += Step * stride)
#pragma unroll
    for (int c = 0; c < D / 8; c += Side) {
      const bool inside = row + r < there && (c + chunk) * 8 < width;
      cp_async<16>(tile + swizzled<D>(row + r, c + chunk), from + c * 8, inside ? 16 : 0);
    }
}

// What either type of 16 bits does by instructions of its own.
template <class T>
struct Halves;
template <>
struct Halves<__half> {
  static __device__ __half2 pair(float low, float high) { return __floats2half2_rn(low, high); }
  static __device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_f16_16816(c, a, b);
  }
};
template <>
struct Halves<__nv_bfloat16> {
  static __device__ __nv_bfloat162 pair(float low, float high) { return __floats2bfloat162_rn(low, high); }
  static __device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_bf16_16816(c, a, b);
  }
};

// c += a b, b being one half of what an ldmatrix has loaded.
template <class T>
__device__ void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned b[2] = {b0, b1};
  Halves<T>::multiply_add(c, a, b);
}

// Two numbers rounded into one register, the first in its lower half.
template <class T>
__device__ unsigned packed(float low, float high) {
  const auto pair = Halves<T>::pair(low, high);
  unsigned bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// A warp's scores with the keys of a tile: S[n] are keys 8 n ... 8 n + 7, of rows lane / 4 and lane / 4 + 8.
template <int D, int N, class T>
__device__ void scores_of(float (&S)[N][4], const unsigned (&Q)[D / 16][4], const T* K) {
  const int lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
#pragma unroll
  for (int n = 0; n < N; n += 2)
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      unsigned b[4];
      ldmatrix_x4(b, K + swizzled<D>(n * 8 + row, 2 * k + half));
      multiply_add<T>(S[n], Q[k], b[0], b[1]);
      multiply_add<T>(S[n + 1], Q[k], b[2], b[3]);
    }
}

// O += P v.
template <int D, int N, class T>
__device__ void add_values(float (&O)[D / 8][4], const float (&P)[N][4], const T* V) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    const unsigned a[4] = {packed<T>(P[2 * k][0], P[2 * k][1]), packed<T>(P[2 * k][2], P[2 * k][3]),
                           packed<T>(P[2 * k + 1][0], P[2 * k + 1][1]), packed<T>(P[2 * k + 1][2], P[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      unsigned b[4];
      ldmatrix_x4_trans(b, V + swizzled<D>(k * 16 + lane % 16, n + lane / 16));
      multiply_add<T>(O[n], a, b[0], b[1]);
      multiply_add<T>(O[n + 1], a, b[2], b[3]);
    }
  }
}

// A warp's 16 rows of results times a factor, rounded, by way of its rows of a tile: 16 bytes a store.
template <int D, class T>
__device__ void store_rows(T* tile, const float (&C)[D / 8][4], float factor, T* to, int64_t rows, int d) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // nobody reads what lies there any more
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<unsigned*>(tile + swizzled<D>(lane / 4 + 8 * half, n) + lane % 4 * 2) =
          packed<T>(C[n][2 * half] * factor, C[n][2 * half + 1] * factor);
  __syncwarp();  // the rows are complete
#pragma unroll 1
  for (int i = lane; i < 16 * D / 8; i += 32) {
    const int row = i / (D / 8), chunk = i % (D / 8);
    if (row < rows && chunk * 8 < d)
      *reinterpret_cast<uint4*>(to + row * d + chunk * 8) =
          *reinterpret_cast<const uint4*>(tile + swizzled<D>(row, chunk));
  }
}

// A warp's 16 rows of a tile, as operands: those that begin at row `first`.
template <int D, class T>
__device__ void load_operands(unsigned (&A)[D / 16][4], const T* tile, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < D / 16; ++i) ldmatrix_x4(A[i], tile + swizzled<D>(first + lane % 16, 2 * i + lane / 16));
}

// visit(D) with the smallest compiled width that holds `width` columns.
template <class Visit>
void with_padded_width(int64_t width, Visit visit) {
  if (width > 64 && width <= 96) return visit(std::integral_constant<int, 96>{});
  with_width<kNarrow>(width, visit);
}

// Whether 16 bytes can be copied at a time: rows and all their neighbours begin at multiples of 16.
inline bool fits_copies(std::initializer_list<Strided> inputs, std::initializer_list<const void*> results, int64_t width) {
  bool fits = width % 8 == 0;
  for (const void* result : results) fits = fits && reinterpret_cast<uintptr_t>(result) % 16 == 0;
  for (const Strided& x : inputs)
    fits = fits && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % 8 == 0 && x.head % 8 == 0 && x.row % 8 == 0;
  return fits;
}

inline bool fits_tensor_cores(std::initializer_list<Strided> inputs, std::initializer_list<const void*> results,
                              int64_t width) {
  return width <= kNarrow && fits_copies(inputs, results, width);
}

}  // namespace minillama::kernels
