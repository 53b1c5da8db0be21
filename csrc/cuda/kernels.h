// The kernels as plain functions: raw pointers in, nothing of CUDA or PyTorch in the signatures. The bindings see only
// this; nvcc compiles the bodies for a GPU, g++ and clang++ compile the same bodies over the emulator in simt/.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace minillama::kernels {

enum class DType { f32, f16, bf16 };

// A tensor (batch, head, row, width) by its strides in elements; the last dimension has stride 1.
struct Strided {
  const void* data;
  int64_t batch, head, row;
};

// Heads that are turned together, (B, T, H, d): x by its strides, and where the result goes, by its own. y may be x.
struct RopeRows {
  Strided x;  // "row" is the token
  void* y;
  int64_t y_batch, y_head, y_row, heads;
};

// (cos, sin) of `half` pairs for each of `rows` positions: (rows, half, 2). Token (b, t) turns by row
// positions[b * batch + t]; without positions, by row b * batch + offset + t.
struct RopeTable {
  const float* rotations;
  const int64_t* positions;
  int64_t rows, half, batch, offset;
};

struct RopeShape {
  int64_t batch, tokens, width;
  bool interleaved, inverse;  // the layout of pairs; whether to turn back, which is also the gradient
};

// q and k together: the first 2 half columns of every head are turned, the others copied.
void rope(DType dtype, RopeRows q, RopeRows k, RopeTable table, RopeShape shape, void* stream);
// Versions 1 to 3, which the operators do not use: one tensor, contiguous (tokens, heads, 2 half), row t for token t.
void rope_version(int version, DType dtype, const void* x, const float* rotations, void* y, int64_t tokens,
                  int64_t heads, int64_t half, bool interleaved, void* stream);

// A weight (rows, columns) in NF4; see minillama/quant/nf4.py. Either absmax, or the other three (double quantization).
struct NF4 {
  const uint8_t* codes;
  const float* absmax;
  const uint8_t* absmax_codes;
  const float *absmax_scale, *absmax_offset;
  int64_t rows, columns, block_size;
};

// y (M, rows) = x (M, columns) W^T, and dx (M, columns) = dy (M, rows) W; all contiguous.
void nf4_matmul(DType dtype, const void* x, NF4 w, void* y, int64_t M, void* stream);
void nf4_matmul_backward(DType dtype, const void* dy, NF4 w, void* dx, int64_t M, void* stream);

struct AttentionShape {
  int64_t batch, heads, kv_heads, queries, keys, width;
  float scale;
  bool causal;
};
constexpr int64_t kMaxHeadWidth = 256, kNarrow = 128;  // wider heads have kernels of their own
constexpr int kDeltaRows = 4;  // of the smallest tiles, those of the kernel that sums dO O: a warp each
constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a launch

// Which keys may be seen, bool (B, T, S) by its strides, of which a row's keys lie side by side; without data: all.
struct AttentionMask {
  const bool* data;
  int64_t batch, query;
};
inline int64_t mask_words(int64_t keys) { return (keys + 31) / 32; }  // of 32 bits, for each query

// out (B, H, T, d), lse (B, H, T) and rows (B, H, T, 2), contiguous. Of each row: the maximum of its scores before they are
// scaled, and the sum of exp(scale (score - maximum)). Scratch, where there is a mask: seen (B, words, T), its bits.
void flash_attention(DType dtype, Strided q, Strided k, Strided v, AttentionMask mask, unsigned* seen, void* out,
                     float* lse, float* rows, AttentionShape shape, void* stream);

// The same out, alone, for up to 8 queries. Scratch: part_out (B, H, T, parts, d), part_rows (B, H, T, parts, 2).
void flash_decoding(DType dtype, Strided q, Strided k, Strided v, AttentionMask mask, void* out, float* part_out,
                    float* part_rows, AttentionShape shape, void* stream);
constexpr int64_t kDecodingQueries = 8, kDecodingRows = 8;  // at most: of a head; of the heads of a group, in one block
constexpr int64_t kDecodingBlocks = 108, kPartKeys = 64;    // at least: the SMs of an A100; keys of a part

// Rows of a KV cache (B, K, room, d), by their strides, that are read and written.
struct CacheRows {
  void* data;
  int64_t batch, head, row;
};

// Of a new token of each row of the batch: the tokens held before it, `lengths` or, without them, `length` in every row, of
// which `begins` are padding; and (cos, sin) of `half` pairs, of which it takes row lengths - begins, or b * apart.
struct NewTokens {
  const float* rotations;
  int64_t rows, half, apart;
  bool by_length, interleaved;
  const int64_t *lengths, *begins;
  int64_t length;
};

// RoPE, the cache's new rows and attention for one token, in one launch. q and out (B, H, 1, d), k and v (B, K, 1, d);
// shape.keys is the room. Scratch as above; arrivals (B, H) are 0 and become 0 again: a row of the cache a stream.
void flash_decoding_append(DType dtype, Strided q, Strided k, Strided v, CacheRows keys, CacheRows values,
                           NewTokens token, void* out, float* part_out, float* part_rows, unsigned* arrivals,
                           AttentionShape shape, void* stream);

// Into how many parts the keys of a head are cut.
inline int64_t decoding_parts(const AttentionShape& shape) {
  const int64_t rows = shape.heads / shape.kv_heads * shape.queries;
  const int64_t blocks = shape.batch * shape.kv_heads * ((rows + kDecodingRows - 1) / kDecodingRows);
  const int64_t wanted = blocks > 0 ? (kDecodingBlocks + blocks - 1) / blocks : 1, most = shape.keys / kPartKeys;
  return wanted < most ? wanted : most > 1 ? most : 1;
}

// Whether keys and values can be read 16 bytes at a time: rows and all their neighbours begin at multiples of 16.
inline bool fits_decoding(DType dtype, const Strided& k, const Strided& v, int64_t width) {
  const int64_t chunk = dtype == DType::f32 ? 4 : 8;
  bool fits = width % chunk == 0;
  for (const Strided* x : {&k, &v})
    fits = fits && reinterpret_cast<uintptr_t>(x->data) % 16 == 0 && x->batch % chunk == 0 && x->head % chunk == 0 &&
           x->row % chunk == 0;
  return fits;
}

// dq like q, dk and dv like k, contiguous; d_lse may be null. Scratch: `seen` as above, `delta` like lse, and for 16 bits
// sums (gradient_sums), and turns (gradient_turns), which are 0.
void flash_attention_backward(DType dtype, Strided q, Strided k, Strided v, Strided d_out, AttentionMask mask,
                              unsigned* seen, const void* out, const float* rows, const float* d_lse, float* delta,
                              float* sums, unsigned* turns, void* dq, void* dk, void* dv, AttentionShape shape,
                              void* stream);

constexpr int kBlockKeys = 128, kFewestWalked = 16;  // of a block of gradients in 16 bits; queries of its smallest tile
// How many blocks the keys of a head are cut into: one where there are none, for dq.
inline int64_t key_tiles(const AttentionShape& shape) {
  return shape.keys > kBlockKeys ? (shape.keys + kBlockKeys - 1) / kBlockKeys : 1;
}
inline int64_t gradient_sums(const AttentionShape& shape) {  // in tiles, padded; of one block alone no sum is kept
  const int64_t rows = (shape.queries + 31) / 32 * 32, width = (shape.width + 31) / 32 * 32;
  return key_tiles(shape) > 1 && shape.width <= kNarrow ? shape.batch * shape.heads * rows * width : 0;
}
inline int64_t gradient_turns(const AttentionShape& shape) {
  return 1 + shape.batch * shape.heads * ((shape.queries + kFewestWalked - 1) / kFewestWalked);
}

}  // namespace minillama::kernels
