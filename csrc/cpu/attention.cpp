// softmax(q k^T / sqrt(d)) v on a processor, without the T x S matrix (arXiv 2307.08691; on paper in
// lessons/tiled_attention.py, in the same letters).
//
// 4 T S d FLOPs forward and 10 T S d backward, about half of it where attention is causal: tiles beyond the diagonal are
// left out. Everything between two tiles is in the caches, so the FLOPs are all of the time, beside one exponential for
// each score. A tile has kQueries queries and kKeys keys, and lies with its queries along the vectors:
//
//   S^T (keys, queries) = K Q^T                K gives single numbers, Q^T the vectors
//   O^T (d, queries)   += V^T P^T              V gives single numbers, P^T the vectors
//
// So K and V are read as they lie; only Q is turned, once for a tile, and O turned back. The maxima and sums of the online
// softmax are vectors too. All arithmetic is fp32; the result is rounded once. The order of all sums is that of the tiles,
// whoever computes them: the bits do not depend on the number of threads.

#include "attention.h"

#include <cmath>
#include <limits>

#include "attention_tiles.h"
#include "vectors.h"

namespace minillama {

using kernels::AttentionShape;
using kernels::DType;

static int64_t padded(const AttentionShape& shape) { return round_up(shape.width, kLane); }

int64_t attention_tiles(const AttentionShape& shape) {
  return shape.batch * shape.heads * ((shape.queries + kQueries - 1) / kQueries);
}

// ---- forward

namespace {

// What a task of the forward pass works in, one tile after another.
struct Forward {
  explicit Forward(const AttentionShape& shape)
      : rows(kQueries * padded(shape)), q(rows.size()), out(rows.size()), k(kKeys * shape.width), v(k.size()),
        scores(kKeys * kQueries) {}
  std::vector<float> rows;  // (kQueries, padded): queries as they lie, then the result as it is to lie
  std::vector<float> q, out;  // (padded, kQueries)
  std::vector<float> k, v;    // (kKeys, width)
  std::vector<float> scores;  // (kKeys, kQueries)
  float highest[kQueries], sum[kQueries], factor[kQueries];
  int32_t sees[kQueries];  // whether a query has seen a key
  Visible visible;
};

}  // namespace

// Keys [key, key + keys) are added to what the tile's queries have read so far.
static void forward_keys(const AttentionInputs& inputs, const TileOfQueries& queries, int64_t kv_head, int64_t key,
                         int64_t keys, Forward& f) {
  look(inputs, queries, key, keys, f.visible);
  if (f.visible.none) return;
  const auto& loops = attention_loops();
  const int64_t width = inputs.shape.width, first = f.visible.first, last = queries.last;
  const auto K = tile_rows(inputs, inputs.k, rows_of(inputs.k, queries.batch, kv_head) + key * inputs.k.row, keys, f.k.data());
  const auto V = tile_rows(inputs, inputs.v, rows_of(inputs.v, queries.batch, kv_head) + key * inputs.v.row, keys, f.v.data());
  loops.set({K.data, K.row, f.q.data(), kQueries, f.scores.data(), kQueries, keys, width, first, last});
  if (!f.visible.all) loops.hide(f.scores.data(), f.visible.seen, keys, first, last, kHidden);
  for (int64_t q = first; q < last; ++q) f.sees[q] |= f.visible.all || f.visible.seen[q];
  loops.softmax(f.scores.data(), keys, first, last, inputs.shape.scale, f.highest, f.sum, f.factor);
  loops.add_turned({V.data, V.row, f.scores.data(), kQueries, f.out.data(), kQueries, width, keys, first, last}, f.factor);
}

// out / sum, turned back; zeros for a query that saw nothing, whose sum is 0. One that saw only scores of -inf has the
// sum 0 as well, and 0 / 0 is what plain softmax gives.
static void finish(const AttentionInputs& inputs, const TileOfQueries& queries, int64_t first_row, Forward& f,
                   const AttentionResults& results) {
  const int64_t width = inputs.shape.width;
  attention_loops().turn(f.out.data(), kQueries, f.rows.data(), padded(inputs.shape), padded(inputs.shape), queries.last);
  for (int64_t q = 0; q < queries.count; ++q) {
    const float sum = f.sees[q] ? f.sum[q] : 1.0f, inverse = 1.0f / sum;
    float* row = f.rows.data() + q * padded(inputs.shape);
    for (int64_t c = 0; c < width; ++c) row[c] *= inverse;
    attention_loops().write(inputs.dtype, row, results.out, (first_row + q) * width, width);
    const float infinity = std::numeric_limits<float>::infinity();
    results.lse[first_row + q] = f.sees[q] ? f.highest[q] * inputs.shape.scale + std::log(f.sum[q]) : infinity;
    results.rows[2 * (first_row + q)] = f.highest[q];
    results.rows[2 * (first_row + q) + 1] = f.sees[q] ? f.sum[q] : infinity;
  }
}

static void forward_tile(const AttentionInputs& inputs, int64_t head, int64_t begin, Forward& f,
                         const AttentionResults& results) {
  const auto& shape = inputs.shape;
  const int64_t batch = head / shape.heads, count = std::min(kQueries, shape.queries - begin);
  const TileOfQueries queries{batch, begin, count, round_up(count, kLane)};
  const int64_t from = rows_of(inputs.q, batch, head % shape.heads) + begin * inputs.q.row;
  read_rows(inputs.dtype, inputs.q, from, count, shape.width, f.rows.data(), padded(shape), queries.last);
  attention_loops().turn(f.rows.data(), padded(shape), f.q.data(), kQueries, queries.last, padded(shape));
  std::fill(f.out.begin(), f.out.end(), 0.0f);
  std::fill(f.highest, f.highest + kQueries, std::numeric_limits<float>::lowest());
  std::fill(f.sum, f.sum + kQueries, 0.0f);
  std::fill(f.sees, f.sees + kQueries, 0);
  const int64_t kv_head = head % shape.heads / (shape.heads / shape.kv_heads);
  const int64_t end = shape.causal ? std::min(shape.keys, begin + count + shape.keys - shape.queries) : shape.keys;
  for (int64_t key = 0; key < end; key += kKeys)
    forward_keys(inputs, queries, kv_head, key, std::min(kKeys, shape.keys - key), f);
  finish(inputs, queries, head * shape.queries + begin, f, results);
}

// Causal tiles see the more keys the later they are: the order is last, first, last but one, ..., so that neighbouring
// tasks, which one thread gets, have together about as much to do as others.
void attention_forward(const AttentionInputs& inputs, const AttentionResults& results, int64_t begin, int64_t end) {
  Forward forward(inputs.shape);
  const int64_t tiles = (inputs.shape.queries + kQueries - 1) / kQueries;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t turn = task % tiles, tile = turn % 2 ? turn / 2 : tiles - 1 - turn / 2;
    forward_tile(inputs, task / tiles, tile * kQueries, forward, results);
  }
}

}  // namespace minillama
