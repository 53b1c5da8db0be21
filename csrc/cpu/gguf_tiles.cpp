// A prompt has many rows of x, and to unpack a block costs as much as some rows of products. So 32 rows of W are
// unpacked from where they lie in the file into a buffer of unsigned bytes, with a row of scales for each run of columns
// that shares one (32, in q6_k 16), and interleaved; then all rows of x pass. The tile, 32 bytes a column, stays in the
// second cache.

#include "gguf_tiles.h"

#include <algorithm>

#include "gguf_codes.h"
#include "int8_tiles.h"

namespace minillama {

bool gguf_has_tiles(int64_t M, int64_t columns) { return int8_has_tiles(M, columns) && columns % 64 == 0; }

#if MINILLAMA_X86
template <Block block>
constexpr int64_t kRun = block == Block::q6_k ? 16 : 32;  // columns that share a scale

// One row: its codes, and its column of scales (runs, kTileRows).
template <Block block>
AVX512 static void unpack_row(const uint8_t* w, int64_t columns, uint8_t* codes, float* scales) {
  for (int64_t group = 0; group < columns / 64; ++group) {
    const Codes found = codes_at<block>(w, group);
    alignas(64) float of_fours[16];
    _mm512_storeu_si512(codes + 64 * group, found.q);
    _mm512_store_ps(of_fours, found.scale);
    for (int64_t i = 0; i < 64 / kRun<block>; ++i, scales += kTileRows) *scales = of_fours[i * kRun<block> / 4];
  }
}

namespace {
// x in runs: what unsigned codes add to each one's sum is taken away, and its scale.
struct Runs {
  std::vector<int32_t> offsets;  // (M, runs)
  std::vector<float> scales;
};
}  // namespace

template <Block block>
static Runs runs_of(const GGUFRows& x) {
  const int64_t count = x.M * x.columns / kRun<block>, fours = kRun<block> / 4;
  Runs runs{std::vector<int32_t>(count, 0), std::vector<float>(count)};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < fours; ++j) runs.offsets[i] += x.fours[i * fours + j] * (1 << kZero<block>);
    runs.scales[i] = x.scales[i * kRun<block> / kPart];
  }
  return runs;
}

template <Block block>
static void multiply_in(const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  constexpr BlockLayout layout = layout_of(block);
  const int64_t K = x.columns, count = K / kRun<block>, row_bytes = K / layout.numbers * layout.bytes;
  const Runs runs = runs_of<block>(x);
  std::vector<uint8_t> codes(kTileRows * K);
  std::vector<uint32_t> tile(kTileRows * K / 4);
  std::vector<float> scales(kTileRows * count, 0.0f), sums(kTileRows * x.M);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int64_t rows = std::min(kTileRows, end - first);
    for (int64_t r = 0; r < rows; ++r) unpack_row<block>(w + (first + r) * row_bytes, K, &codes[r * K], &scales[r]);
    interleave_fours(codes.data(), K, rows, tile.data());
    int8_tile_scaled_dots({reinterpret_cast<const uint8_t*>(tile.data()), x.codes.data(), K, x.M, count, kRun<block>,
                           runs.offsets.data()}, scales.data(), runs.scales.data(), sums.data());
    for (int64_t m = 0; m < x.M; ++m) std::copy_n(&sums[m * kTileRows], rows, y + m * y_row + first - begin);
  }
}

void gguf_rows_by_tiles(Block block, const uint8_t* w, const GGUFRows& x, int64_t begin, int64_t end, float* y, int64_t y_row) {
  if (block == Block::q4_0) multiply_in<Block::q4_0>(w, x, begin, end, y, y_row);
  if (block == Block::q8_0) multiply_in<Block::q8_0>(w, x, begin, end, y, y_row);
  if (block == Block::q6_k) multiply_in<Block::q6_k>(w, x, begin, end, y, y_row);
}
#else
void gguf_rows_by_tiles(Block, const uint8_t*, const GGUFRows&, int64_t, int64_t, float*, int64_t) {}
#endif

}  // namespace minillama
