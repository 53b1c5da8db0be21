// Flash attention for heads of 129 to 256 columns, version 2: both products on tensor cores, for bf16 and fp16 (what it
// means: flash_attention.cuh; narrower heads, fragments and why tiles are swizzled: flash_tensor_cores.cuh).
//
// A wide head is two narrow ones that share their scores. With its columns cut in halves of W = 96 or 128,
//   S = q1 k1^T + q2 k2^T,  O = [P v1, P v2].
// A block takes 64 queries of one head, a warp 16 of them, and walks over tiles of 32 keys, each in four pieces of 32 x W:
// k1, k2, v1, v2. While a piece is multiplied the next one arrives. One barrier a piece.
//
//   registers  A warp's 16 x 256 numbers of O are 128 of a thread's 255 registers, its 16 x 32 scores 16 more. Its queries
//              would be 64, and leave 47 for fragments and addresses, where narrower heads take 80. So only the half that is
//              multiplied is held, 32, and loaded again for each tile: 16 ldmatrix more beside 64 and 128 products.
//   shared     64 x 256 queries are 32 KiB and two pieces 16: the 48 KiB that a block has unasked, and that leave room for
//              two blocks, 8 warps, where an SM has 100 (8.9, 12.0).
//   any width  Where rows are not aligned to 16 bytes, such as those of 129 columns, they are copied element by element, in
//              front of the products and not behind them: a warp's lanes take neighbours. The products are the same.
//
// Cost of a tile of 32 keys: 2 D / 4 products of a warp, ldmatrix D / 4 and D / 16. Bytes as for narrower heads: q, O, LSE,
// maxima and sums once, 2 e d T + 12 T, and 2 e d keys of all tiles for 64 queries of a head.
#pragma once

#include "flash_tensor_cores.cuh"

namespace minillama::kernels {

// Begins to copy rows first ... of a half of a matrix's columns into a piece, or copies them where 16 bytes are not aligned;
// what lies beyond its rows or columns becomes 0 and is not read.
template <int Rows, int W, int Warps = kWarps, class T>
__device__ void copy_piece(T* piece, const T* data, int64_t stride, int64_t first, int64_t rows, int width, bool aligned) {
  if (aligned) return copy_tile<Rows, W, Warps>(piece, data, stride, first, rows, width);
#pragma unroll 1
  for (int i = threadIdx.x; i < Rows * W; i += 32 * Warps) {
    const int row = i / W, column = i % W;
    T x(0.0f);
    if (first + row < rows && column < width) x = data[(first + row) * stride + column];
    piece[swizzled<W>(row, column / 8) + column % 8] = x;
  }
}

// S += q k^T over a half of the columns: a warp's 16 rows, and the keys of a piece.
template <int W, class T>
__device__ void add_scores(float (&S)[4][4], const T* tile_q, const T* piece) {
  unsigned Q[W / 16][4];
  load_operands<W>(Q, tile_q, 16 * int(threadIdx.x / 32));
  scores_of<W>(S, Q, piece);
}

// One half of the columns of a warp's results.
template <int W>
__device__ auto half_of_columns(float (&O)[2 * W / 8][4], int half) -> float (&)[W / 8][4] {
  return reinterpret_cast<float(&)[W / 8][4]>(O[half * W / 8]);
}

// A warp's 16 rows of a half of the columns, of which `width` are wanted, from shared memory to rows that are d apart.
template <int W, class T>
__device__ void store_piece(const T* piece, T* to, int64_t rows, int d, int width, bool aligned) {
  const int each = aligned ? 8 : 1;  // elements at a time
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < 16 * W / each; i += 32) {
    const int row = i / (W / each), column = i % (W / each) * each;
    const bool wanted = row < rows && column < width;
    const T* from = piece + swizzled<W>(row, column / 8) + column % 8;
    if (aligned) {
      const uint4 eight = *reinterpret_cast<const uint4*>(from);
      if (wanted) *reinterpret_cast<uint4*>(to + row * d + column) = eight;
    } else {
      const T one = *from;
      if (wanted) to[row * d + column] = one;
    }
  }
}

template <class T, int D, bool Masked>
__global__ void __launch_bounds__(32 * kWarps, 2)
flash_wide_v2(Strided q, Strided k, Strided v, const unsigned* __restrict__ seen, T* __restrict__ out,
              float* __restrict__ lse, float2* __restrict__ rows, AttentionShape shape, bool aligned) {
  constexpr int W = D / 2, Keys = kKeys<D>;
  __shared__ __align__(128) T tile_q[2][kQueries * W], pieces[2][Keys * W];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kQueries, shape.heads);
  const int64_t kv_head = unsigned(head) / unsigned(shape.heads / shape.kv_heads), mine = first + 16 * warp;
  const int64_t query = mine + lane / 4, end = keys_end(shape, first, kQueries);
  const T *keys = head_of<T>(k, batch, kv_head), *values = head_of<T>(v, batch, kv_head);
  const float c = shape.scale * kLog2E;  // exp(scale s) = 2^(c s)

  const auto copy = [&](const T* from, int64_t stride, int64_t start, int half) {
    copy_piece<Keys, W>(pieces[half], from + half * W, stride, start, shape.keys, d - half * W, aligned);
    cp_async_commit();
  };
  const auto await_piece = [] {
    cp_async_wait<0>();
    __syncthreads();  // this piece is complete, and the other place is read by all
  };
  int64_t start = 0, next;
  if constexpr (Masked) start = next_seen<D>(seen, shape, batch, first, 0, end);
  for (int half = 0; half < 2; ++half)
    copy_piece<kQueries, W>(tile_q[half], head_of<T>(q, batch, head) + half * W, q.row, first, shape.queries, d - half * W,
                            aligned);
  copy(keys, k.row, start, 0);
  if (start >= end) await_piece();  // no key is seen: the queries still arrive, where the output will lie
  float O[D / 8][4] = {};
  RowState state[2];
  unsigned saw[2] = {};
  for (; start < end; start = next) {
    bool works = mine < shape.queries && seen_by(shape, mine + 15) > start;  // whether anybody here sees any of it
    [[maybe_unused]] SeenKeys<D> here;
    if constexpr (Masked) {
      here = SeenKeys<D>(seen, shape, batch, query, start);
      saw[0] |= here.any(0), saw[1] |= here.any(1);
      works = __any_sync(kAllLanes, here.any(0) | here.any(1));
    }
    float S[Keys / 8][4] = {};
    await_piece();
    copy(keys, k.row, start, 1);
    if (works) add_scores<W>(S, tile_q[0], pieces[0]);
    await_piece();
    copy(values, v.row, start, 0);
    if (works) {
      add_scores<W>(S, tile_q[1], pieces[1]);
      if constexpr (Masked) mask<D>(S, here);
      else if (seen_by(shape, mine) < start + Keys)  // what the warp's first row sees all of, the others do
        mask<D>(S, seen_by(shape, query) - start, seen_by(shape, query + 8) - start);
      exponentiate<D>(S, O, state[0], 0, c);
      exponentiate<D>(S, O, state[1], 1, c);
    }
    await_piece();
    copy(values, v.row, start, 1);
    if (works) add_values<W>(half_of_columns<W>(O, 0), S, pieces[0]);
    await_piece();
    next = start + Keys;
    if constexpr (Masked) next = next_seen<D>(seen, shape, batch, first, next, end);
    if (next < end) copy(keys, k.row, next, 0);
    if (works) add_values<W>(half_of_columns<W>(O, 1), S, pieces[1]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = query + 8 * half, place = (batch * shape.heads + head) * shape.queries + row;
    const bool sees_any = Masked ? saw[half] != 0 : sees(shape, row, 0);
    const float sum = team_sum(state[half].sum), highest = state[half].highest, share = sees_any ? 1 / sum : 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const float x = sees_any ? O[n][2 * half] * share : 0, y = sees_any ? O[n][2 * half + 1] * share : 0;
      T* to = tile_q[n / (W / 8)] + swizzled<W>(16 * warp + lane / 4 + 8 * half, n % (W / 8)) + lane % 4 * 2;
      *reinterpret_cast<unsigned*>(to) = packed<T>(x, y);
    }
    if (lane % 4 != 0 || row >= shape.queries) continue;
    lse[place] = sees_any ? highest * shape.scale + logf(sum) : INFINITY;
    rows[place] = float2{highest, sees_any ? sum * fast_exp2(-__fmaf_rn(highest, c, -state[half].base)) : 0};
  }
  __syncwarp();  // a warp's rows are complete
  T* to = out + ((batch * shape.heads + head) * shape.queries + mine) * d;
#pragma unroll 1
  for (int half = 0; half < 2; ++half)
    store_piece<W>(tile_q[half] + 16 * warp * W, to + half * W, shape.queries - mine, d, d - half * W, aligned);
}

// For widths above kNarrow; `seen` are a mask's bits or null.
template <class T>
void flash_wide(Strided q, Strided k, Strided v, const unsigned* seen, T* out, float* lse, float2* rows,
                const AttentionShape& shape, cudaStream_t stream) {
  const dim3 grid = tile_grid(shape.queries, kQueries, shape.heads, shape.batch);
  const bool aligned = fits_copies({q, k, v}, {out}, shape.width);
  const auto launch = [&](auto width) {
    constexpr int D = decltype(width)::value;
    if (seen)
      LAUNCH((flash_wide_v2<T, D, true>), grid, 32 * kWarps, 0, stream)(q, k, v, seen, out, lse, rows, shape, aligned);
    else
      LAUNCH((flash_wide_v2<T, D, false>), grid, 32 * kWarps, 0, stream)(q, k, v, seen, out, lse, rows, shape, aligned);
  };
  if (shape.width <= 192) return launch(std::integral_constant<int, 192>{});
  launch(std::integral_constant<int, 256>{});
}

}  // namespace minillama::kernels
