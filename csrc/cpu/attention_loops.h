// The inner loops of attention on a processor, compiled for several kinds of them.
//
// A tile has kQueries queries, which lie side by side in the vectors, and as many rows as it has keys or columns of
// heads. So each query keeps a lane of its own: its maximum, its sum and its mask need no look at other lanes.
#pragma once

#include <cstdint>
#include <limits>

#include "../cuda/kernels.h"

namespace minillama {

constexpr int64_t kQueries = 64;  // of a tile: 24 sums of AVX-512, 6 rows of 4 vectors, then stay in registers
constexpr int64_t kKeys = 32;     // of a tile: scores are 8 KiB, which wait in the first cache for their values
constexpr int64_t kLane = 16;     // rows are filled up with zeros to a multiple of it: the longest vectors' length

// out (rows, columns) of a, which gives single numbers, and b (depth, columns), which gives vectors. Of the columns those
// in [first, last) are computed, both multiples of kLane. The other numbers are distances between rows.
struct Product {
  const float* a;
  int64_t a_row;
  const float* b;
  int64_t b_row;
  float* out;
  int64_t out_row, rows, depth, first, last;
};

constexpr float kHidden = -std::numeric_limits<float>::infinity();  // a score whose exponential is 0

struct AttentionLoops {
  void (*set)(const Product& p);                              // out = a b, a (rows, depth)
  void (*add)(const Product& p);                              // out += a b
  void (*add_turned)(const Product& p, const float* factor);  // out = factor * out + a^T b: a (depth, rows); (columns) factors

  // scores (keys, kQueries): those that bit `key` of seen[query] does not allow become `hidden`.
  void (*hide)(float* scores, const int32_t* seen, int64_t keys, int64_t first, int64_t last, float hidden);

  // One step of the online softmax (arXiv 1805.02867) for every query: highest is its highest score so far, sum that of
  // exp(scale (score - highest)). Scores become such exponentials, below the new highest one; older exponentials are to be
  // multiplied by factor.
  void (*softmax)(float* scores, int64_t keys, int64_t first, int64_t last, float scale, float* highest, float* sum,
                  float* factor);

  // P = exp(scale (S - highest)) / sum in place of the scores S, and dS = P (dP - delta) in place of dP (arXiv 2205.14135,
  // appendix B.4).
  void (*derive)(float* scores, float* d_shares, int64_t keys, int64_t first, int64_t last, float scale,
                 const float* highest, const float* inverse_sum, const float* delta);

  // to (columns, rows) = from (rows, columns) turned; both numbers are multiples of 4.
  void (*turn)(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t columns);

  // `count` numbers of a row, to fp32 and back, rounded to nearest.
  void (*read)(kernels::DType dtype, const void* from, int64_t offset, float* to, int64_t count);
  void (*write)(kernels::DType dtype, const float* from, void* to, int64_t offset, int64_t count);
};

// Those of the kind that vectors() has chosen.
const AttentionLoops& attention_loops();

}  // namespace minillama
