// The innermost loops of matrix products on a processor, compiled for several kinds of them.
#pragma once

#include <cstdint>
#include <string>

#include "lanes.h"

namespace minillama {

constexpr int64_t kRows = 6;  // rows of a that `accumulate` takes at once: as many sums as the registers hold
constexpr int64_t kPanel = 64;  // columns of b that it takes at once, and the distance of b's rows

struct RunStrides {
  int64_t codes, absmax, out;
};

enum class Kind { plain, avx2, avx512 };

struct Vectors {
  Kind kind;

  // level * absmax for the levels of `count` runs of NF4 codes, `pairs` bytes and one absmax for each; in codes, absmax and
  // the result the runs lie `stride` apart.
  void (*decode)(const uint8_t* codes, const float* absmax, float* out, int64_t pairs, int64_t count,
                 const RunStrides& stride);

  // sums (kRows, kPanel) += a (kRows, depth) b (depth, kPanel), in the first `columns` of the columns, rounded up to whole
  // vectors; rows of a lie a_stride apart.
  void (*accumulate)(const float* a, int64_t a_stride, const float* b, int64_t depth, int64_t columns, float* sums);

  float (*dot)(const float* a, const float* b, int64_t size);
};

// The loops in use: the best that this processor has, or those chosen by name.
const Vectors& vectors();

// Of a function that is compiled for each kind, name_plain and on x86 name_avx2 and name_avx512, the one in use.
template <typename Function>
Function* of_kind_in_use(Function* plain, Function* avx2, Function* avx512) {
  return vectors().kind == Kind::avx512 ? avx512 : vectors().kind == Kind::avx2 ? avx2 : plain;
}
#if MINILLAMA_X86
#define OF_KIND_IN_USE(name) of_kind_in_use(name##_plain, name##_avx2, name##_avx512)
#else
#define OF_KIND_IN_USE(name) name##_plain
#endif

// Whether these loops may use AVX-512's dot products of bytes (VNNI).
bool vectors_have_vnni();

// "avx512", "avx2", "plain" (any processor), or "best". False if there is no such kind, or this processor is not of it.
bool choose_vectors(const std::string& name);

}  // namespace minillama
