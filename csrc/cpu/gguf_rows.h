// Rows of a matrix in the blocks of a GGUF file, as they lie there; minillama/checkpoint/gguf_blocks.py says what each holds.
#pragma once

#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace minillama {

enum class Block { q4_0, q8_0, q6_k };

constexpr int64_t kPart = 32;  // numbers that are unpacked at a time

struct BlockLayout {
  int64_t numbers, bytes;  // of a block
  int zero;                // what is taken from a code
};

constexpr BlockLayout layout_of(Block block) {
  return block == Block::q4_0 ? BlockLayout{32, 18, 8} : block == Block::q8_0 ? BlockLayout{32, 34, 0} : BlockLayout{256, 210, 32};
}

INLINE float half_at(const uint8_t* bytes) {
  c10::Half half;
  std::memcpy(&half, bytes, sizeof half);
  return half;
}

// kPart numbers: scale[i / 16] * q[i]
struct Part {
  int8_t q[kPart];
  float scale[2];
};

// Part `number` of a block.
template <Block block>
INLINE void unpack(const uint8_t* bytes, int64_t number, Part& part) {
  if (block == Block::q8_0) {
    part.scale[0] = part.scale[1] = half_at(bytes);
    std::memcpy(part.q, bytes + 2, kPart);
  }
  if (block == Block::q4_0) {
    part.scale[0] = part.scale[1] = half_at(bytes);
    for (int64_t i = 0; i < 16; ++i) {
      part.q[i] = static_cast<int8_t>((bytes[2 + i] & 15) - 8);
      part.q[16 + i] = static_cast<int8_t>((bytes[2 + i] >> 4) - 8);
    }
  }
  if (block == Block::q6_k) {  // each half of a block: four parts, of the same 32 bytes of upper bits
    const int64_t half = number / 4, of_half = number % 4;
    const uint8_t *low = bytes + 64 * half + 32 * (of_half % 2), *high = bytes + 128 + 32 * half;
    const auto* scales = reinterpret_cast<const int8_t*>(bytes + 192);
    for (int64_t i = 0; i < 2; ++i) part.scale[i] = half_at(bytes + 208) * static_cast<float>(scales[2 * number + i]);
    for (int64_t i = 0; i < kPart; ++i)
      part.q[i] = static_cast<int8_t>((low[i] >> (of_half / 2 * 4) & 15) + ((high[i] >> 2 * of_half & 3) << 4) - 32);
  }
}

// The same numbers as `gguf_blocks.py` decodes, `columns` of them, whole blocks.
void gguf_read_row(Block block, const uint8_t* bytes, int64_t columns, float* out);

}  // namespace minillama
