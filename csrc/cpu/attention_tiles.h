// A tile of queries and a tile of keys: their rows in fp32, and who sees whom. Used by both passes of attention.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention.h"
#include "attention_loops.h"

namespace minillama {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Where tensor rows lie: head `head` of batch `batch`.
inline int64_t rows_of(const kernels::Strided& x, int64_t batch, int64_t head) { return batch * x.batch + head * x.head; }

// `rows` rows in fp32, `padded` numbers apart, and rows of zeros behind them up to `all`.
inline void read_rows(kernels::DType dtype, const kernels::Strided& x, int64_t offset, int64_t rows, int64_t width, float* to,
                      int64_t padded, int64_t all) {
  const auto& loops = attention_loops();
  for (int64_t r = 0; r < rows; ++r, to += padded) loops.read(dtype, x.data, offset + r * x.row, to, width);
  std::fill(to, to + (all - rows) * padded, 0.0f);
}

// Rows of a tensor as the products take them: in place where that is possible, else a copy.
struct TileRows {
  const float* data;
  int64_t row;
};

// Rows further apart than this would fall on the same few places of the first cache, and displace one another.
constexpr int64_t kNearRows = 256;

inline TileRows tile_rows(const AttentionInputs& inputs, const kernels::Strided& x, int64_t offset, int64_t rows,
                          float* copy) {
  if (inputs.dtype == kernels::DType::f32 && x.row <= kNearRows) return {static_cast<const float*>(x.data) + offset, x.row};
  const int64_t width = inputs.shape.width;
  read_rows(inputs.dtype, x, offset, rows, width, copy, width, rows);
  return {copy, width};
}

// Queries [begin, begin + count) of a head against keys [key, key + keys): bit i of seen[q] says whether query q of the
// tile sees key i of it.
struct TileOfQueries {
  int64_t batch, begin, count, last;  // last: count, rounded up to whole vectors
};
struct Visible {
  bool none, all;
  int64_t first;  // a multiple of kLane: no query before it sees a key
  int32_t seen[kQueries];
};

// Eight bools, which are bytes 0 or 1, as eight bits: the product moves byte i's bit to bit 56 + i.
inline uint32_t eight_bits(const bool* seen) {
  uint64_t bytes = 0;
  for (int64_t i = 0; i < 8; ++i) bytes |= uint64_t(seen[i]) << (8 * i);
  return uint32_t((bytes * 0x0102040810204080u) >> 56);
}

inline uint32_t mask_bits(const bool* seen, int64_t keys) {
  uint32_t bits = 0;
  int64_t key = 0;
  for (; key + 8 <= keys; key += 8) bits |= eight_bits(seen + key) << key;
  for (; key < keys; ++key) bits |= uint32_t(seen[key]) << key;
  return bits;
}

inline void look(const AttentionInputs& inputs, const TileOfQueries& queries, int64_t key, int64_t keys, Visible& visible) {
  const auto& shape = inputs.shape;
  const int64_t shift = shape.causal ? shape.keys - shape.queries - key : shape.keys;  // query q sees keys <= q + shift
  const int64_t end = queries.begin + queries.count;
  visible.none = shape.causal && end - 1 + shift < 0;
  visible.all = !inputs.mask.data && (!shape.causal || queries.begin + shift >= keys - 1);
  visible.first = 0;
  if (visible.none || visible.all) return;
  const uint32_t full = uint32_t((uint64_t(1) << keys) - 1);
  uint32_t any = 0, every = full;
  for (int64_t q = 0; q < queries.last; ++q) {
    uint32_t bits = q < queries.count ? full : 0;
    const int64_t until = queries.begin + q + shift;
    if (until < keys - 1) bits &= until < 0 ? 0 : uint32_t((uint64_t(1) << (until + 1)) - 1);
    if (inputs.mask.data && bits) {
      const bool* row = inputs.mask.data + queries.batch * inputs.mask.batch + (queries.begin + q) * inputs.mask.query;
      bits &= mask_bits(row + key, keys);
    }
    if (any == 0 && bits == 0) visible.first = (q + 1) / kLane * kLane;
    any |= bits;
    if (q < queries.count) every &= bits;
    visible.seen[q] = int32_t(bits);
  }
  visible.none = any == 0;
  visible.all = every == full;
}

}  // namespace minillama
