// Instructions that C++ has no words for, one function each: tensor-core products, ldmatrix, cp.async, exp2.
//
// Under nvcc each is one line of PTX. Emulated, lanes hold what the PTX manual says they hold (ISA 9.7.14: for lane L,
// g = L / 4 and t = L % 4), and asynchronous copies arrive as late as the rules allow: until cp_async_wait the target
// reads as NaN. Sums run in fp32 in the order of k; hardware leaves its order open, so compare with a tolerance.
#pragma once

#ifdef __CUDACC__

#define SIMT_INSTRUCTION __device__ __forceinline__

// c (16 x 8, fp32) += a (16 x 16) b (16 x 8), operands bf16 or fp16, two to a register.
#define SIMT_MMA(name, type)                                                                                       \
  SIMT_INSTRUCTION void name(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {                      \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                                    \
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                           \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
SIMT_MMA(mma_bf16_16816, "bf16")
SIMT_MMA(mma_f16_16816, "f16")
#undef SIMT_MMA

// Four 8 x 8 matrices of 16-bit elements; lane 8j + r names row r of matrix j in shared memory, 16-byte aligned.
#define SIMT_LDMATRIX(name, variant)                                                                               \
  SIMT_INSTRUCTION void name(unsigned (&r)[4], const void* row) {                                                  \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" variant ".shared.b16 {%0,%1,%2,%3}, [%4];"                        \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                                  \
                 : "r"(unsigned(__cvta_generic_to_shared(row))) : "memory");                                       \
  }
SIMT_LDMATRIX(ldmatrix_x4, "")
SIMT_LDMATRIX(ldmatrix_x4_trans, ".trans")
#undef SIMT_LDMATRIX

// Copy Bytes (4, 8 or 16) from global to shared memory; only `wanted` bytes are read, the rest is filled with zeros.
template <int Bytes>
SIMT_INSTRUCTION void cp_async(void* shared, const void* global, int wanted = Bytes) {
  const unsigned to = unsigned(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)  // past the first cache, which the others cannot pass
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(16), "r"(wanted) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(Bytes), "r"(wanted)
                 : "memory");
}
SIMT_INSTRUCTION void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int InFlight>  // wait until at most so many committed groups are under way
SIMT_INSTRUCTION void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(InFlight) : "memory");
}

SIMT_INSTRUCTION float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#else

#include "narrow_types.h"
#include "warp.h"

namespace simt {

struct Fragments {  // a0..a7 and b0..b3 of one lane
  uint16_t a[8], b[4];
};

// a: row g or g + 8, columns 2t, 2t+1, 2t+8, 2t+9; b: the same as rows, column g; c: rows g, g + 8, columns 2t, 2t+1.
template <class Decode>
void mma_16816(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Decode decode, const char* what,
               Where where) {
  Fragments mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const Gathered<Fragments> all(~0u, mine, what, where);
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int k = 0; k < 16; ++k) {
    const int owner = k % 8 / 2, place = k % 2 + k / 8 * 4;  // lane 4 row + owner holds a[place], a[place + 2]
    const Fragments rows = all[4 * g + owner];
    for (int n = 0; n < 2; ++n) {
      const float column = decode(all[4 * (2 * t + n) + owner].b[k % 2 + k / 8 * 2]);
      c[n] += decode(rows.a[place]) * column;
      c[n + 2] += decode(rows.a[place + 2]) * column;
    }
  }
}

SIMT_UNSEEN inline uint16_t half_of(const uint16_t* row, int place) { return row[place]; }

inline void load_matrices(unsigned (&r)[4], const void* row, bool transposed, const char* what, Where where) {
  matrix_row(row, what, where);
  const Gathered<const uint16_t*> rows(~0u, static_cast<const uint16_t*>(row), what, where);
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int j = 0; j < 4; ++j) {
    const uint16_t low = transposed ? half_of(rows[8 * j + 2 * t], g) : half_of(rows[8 * j + g], 2 * t);
    const uint16_t high =
        transposed ? half_of(rows[8 * j + 2 * t + 1], g) : half_of(rows[8 * j + g], 2 * t + 1);
    r[j] = unsigned{low} | unsigned{high} << 16;
  }
  exchange(~0u, &row, sizeof row, "end of ldmatrix", where);  // nobody overwrites rows that others still read
}

}  // namespace simt

inline void mma_bf16_16816(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_HERE) {
  simt::mma_16816(c, a, b, simt::from_bfloat16, "mma_bf16_16816()", where);
}
inline void mma_f16_16816(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_HERE) {
  simt::mma_16816(c, a, b, simt::from_half, "mma_f16_16816()", where);
}
inline void ldmatrix_x4(unsigned (&r)[4], const void* row, SIMT_HERE) {
  simt::load_matrices(r, row, false, "ldmatrix_x4()", where);
}
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, SIMT_HERE) {
  simt::load_matrices(r, row, true, "ldmatrix_x4_trans()", where);
}
template <int Bytes>
void cp_async(void* shared, const void* global, int wanted = Bytes, SIMT_HERE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::copy_later(shared, global, Bytes, wanted, where);
}
inline void cp_async_commit() { simt::commit_copies(); }
template <int InFlight>
void cp_async_wait() {
  simt::finish_copies(InFlight);
}
inline float fast_exp2(float x) { return std::exp2(x); }

#endif
