// Products of int8 codes with many rows of x, by AVX-512's dot products of bytes (VNNI).
#pragma once

#include <cstdint>

namespace minillama {

constexpr int64_t kTileRows = 32;   // rows of W of a tile
constexpr int64_t kTiledRows = 12;  // rows of x from which on it pays to interleave W

// Whether a product of M rows of x may run on tiles: with VNNI, and where columns are whole fours.
bool int8_has_tiles(int64_t M, int64_t columns);

// Fours of bytes of up to kTileRows rows, row_bytes long: out[i * kTileRows + r] is the i-th of row r; where rows
// are missing, the last one stands in for them.
void interleave_fours(const void* from, int64_t row_bytes, int64_t rows, uint32_t* out);

// The same of levels of NF4, as unsigned bytes: `levels` has 16. Of each 8 fours of codes come the low halves of all
// bytes first, as 8 fours, then the high ones.
void interleave_levels(const uint8_t* codes, int64_t row_bytes, int64_t rows, const uint8_t* levels, uint8_t* out);

// kTileRows rows of W, interleaved: (columns / 4, kTileRows, 4) unsigned bytes; and M rows of x, x_row codes apart,
// that are multiplied with them in `runs` runs of `depth` columns.
struct Int8Tile {
  const uint8_t* w;
  const int8_t* x;
  int64_t x_row, M, runs, depth;
  const int32_t* offsets;  // (M, runs): what is added to a run's sum, for the bytes that were made unsigned
};

// sums (M, kTileRows) of one run.
void int8_tile_dots(const Int8Tile& tile, int32_t* sums);

// sums (M, kTileRows) over all runs: sum += (dot * absmax[run, row]) * scales[m, run], in the order of the runs.
void int8_tile_scaled_dots(const Int8Tile& tile, const float* absmax, const float* scales, float* sums);

}  // namespace minillama
