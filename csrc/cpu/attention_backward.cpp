// Gradients of attention on a processor (arXiv 2307.08691, algorithm 2; on paper in lessons/tiled_attention.py).
//
// The tiles are those of the forward pass, and lie in the same way. Scores are computed again, and P is their exponentials over the sum:
//
//   S^T  (keys, queries) = K Q^T               P^T = exp((S^T - highest) / sqrt(d)) / sum
//   dP^T (keys, queries) = V dO^T              dS^T = P^T (dP^T - D),  D = rowsum(dO O) - dLSE
//   dV   (keys, d)      += P^T dO              dK (keys, d) += dS^T Q       single numbers of P^T and dS^T
//   dQ^T (d, queries)   += K^T dS^T            single numbers of K
//
// A task takes one head of keys and values with all queries that read it, so that dK and dV are summed in one order,
// whatever the number of threads. Both wait in fp32, S x d numbers, until the last query has added its part.

#include <cmath>

#include "attention_tiles.h"
#include "vectors.h"

namespace minillama {

using kernels::AttentionShape;
using kernels::Strided;

namespace {

struct Backward {
  explicit Backward(const AttentionShape& shape)
      : padded(round_up(shape.width, kLane)), q_rows(kQueries * padded), q(q_rows.size()), d_out_rows(q_rows.size()),
        d_out(q_rows.size()), dq(q_rows.size()), k(kKeys * shape.width), v(k.size()), scores(kKeys * kQueries),
        d_shares(scores.size()), dk(shape.keys * padded), dv(dk.size()) {
    std::fill(ones, ones + kQueries, 1.0f);
  }
  int64_t padded;
  std::vector<float> q_rows, q, d_out_rows, d_out;  // (kQueries, padded), and turned, (padded, kQueries)
  std::vector<float> dq;                            // (padded, kQueries)
  std::vector<float> k, v;                          // (kKeys, width)
  std::vector<float> scores, d_shares;              // (kKeys, kQueries)
  std::vector<float> dk, dv;                        // (S, padded)
  float highest[kQueries], inverse_sum[kQueries], delta[kQueries], ones[kQueries];
  Visible visible;
};

}  // namespace

// What keys [key, key + keys) and the tile's queries give one another.
static void backward_keys(const AttentionInputs& inputs, const TileOfQueries& queries, int64_t kv_head, int64_t key,
                          int64_t keys, Backward& b) {
  look(inputs, queries, key, keys, b.visible);
  if (b.visible.none) return;
  const auto& loops = attention_loops();
  const int64_t width = inputs.shape.width, padded = b.padded, first = b.visible.first, last = queries.last;
  float *S = b.scores.data(), *dP = b.d_shares.data();
  const auto K = tile_rows(inputs, inputs.k, rows_of(inputs.k, queries.batch, kv_head) + key * inputs.k.row, keys, b.k.data());
  const auto V = tile_rows(inputs, inputs.v, rows_of(inputs.v, queries.batch, kv_head) + key * inputs.v.row, keys, b.v.data());
  loops.set({K.data, K.row, b.q.data(), kQueries, S, kQueries, keys, width, first, last});
  if (!b.visible.all) loops.hide(S, b.visible.seen, keys, first, last, kHidden);
  loops.set({V.data, V.row, b.d_out.data(), kQueries, dP, kQueries, keys, width, first, last});
  loops.derive(S, dP, keys, first, last, inputs.shape.scale, b.highest, b.inverse_sum, b.delta);
  if (!b.visible.all) loops.hide(dP, b.visible.seen, keys, first, last, 0.0f);  // also where D is NaN: 0 NaN is no 0
  const int64_t depth = last - first;
  loops.add({S + first, kQueries, b.d_out_rows.data() + first * padded, padded, b.dv.data() + key * padded, padded, keys,
             depth, 0, padded});
  loops.add({dP + first, kQueries, b.q_rows.data() + first * padded, padded, b.dk.data() + key * padded, padded, keys,
             depth, 0, padded});
  loops.add_turned({K.data, K.row, dP, kQueries, b.dq.data(), kQueries, width, keys, first, last}, b.ones);
}

// Q, dO and D of a tile, and its softmax. All shares of a query beyond the last are 0, as those of one that saw nothing.
static void read_queries(const AttentionInputs& inputs, const AttentionGradients& g, const TileOfQueries& queries,
                         int64_t head, Backward& b) {
  const auto& loops = attention_loops();
  const int64_t width = inputs.shape.width, row = head * inputs.shape.queries + queries.begin, padded = b.padded;
  const int64_t own = head % inputs.shape.heads;
  const Strided out{g.out, 0, 0, width};
  read_rows(inputs.dtype, out, row * width, queries.count, width, b.dq.data(), padded, queries.last);
  read_rows(inputs.dtype, inputs.q, rows_of(inputs.q, queries.batch, own) + queries.begin * inputs.q.row, queries.count,
            width, b.q_rows.data(), padded, queries.last);
  read_rows(inputs.dtype, g.d_out, rows_of(g.d_out, queries.batch, own) + queries.begin * g.d_out.row, queries.count, width,
            b.d_out_rows.data(), padded, queries.last);
  loops.turn(b.q_rows.data(), padded, b.q.data(), kQueries, queries.last, padded);
  loops.turn(b.d_out_rows.data(), padded, b.d_out.data(), kQueries, queries.last, padded);
  for (int64_t q = 0; q < queries.last; ++q) {
    const bool real = q < queries.count;
    b.highest[q] = real ? g.rows[2 * (row + q)] : 0.0f;
    b.inverse_sum[q] = real ? 1.0f / g.rows[2 * (row + q) + 1] : 0.0f;
    b.delta[q] = vectors().dot(b.d_out_rows.data() + q * padded, b.dq.data() + q * padded, width);
    if (real && g.d_lse) b.delta[q] -= g.d_lse[row + q];
  }
  std::fill(b.dq.begin(), b.dq.end(), 0.0f);
}

static void backward_tile(const AttentionInputs& inputs, const AttentionGradients& g, int64_t head, int64_t begin,
                          Backward& b) {
  const auto& shape = inputs.shape;
  const int64_t count = std::min(kQueries, shape.queries - begin), padded = b.padded, width = shape.width;
  const TileOfQueries queries{head / shape.heads, begin, count, round_up(count, kLane)};
  read_queries(inputs, g, queries, head, b);
  const int64_t kv_head = head % shape.heads / (shape.heads / shape.kv_heads);
  const int64_t end = shape.causal ? std::min(shape.keys, begin + count + shape.keys - shape.queries) : shape.keys;
  for (int64_t key = 0; key < end; key += kKeys)
    backward_keys(inputs, queries, kv_head, key, std::min(kKeys, shape.keys - key), b);
  attention_loops().turn(b.dq.data(), kQueries, b.q_rows.data(), padded, padded, queries.last);
  for (int64_t q = 0; q < count; ++q) {
    float* row = b.q_rows.data() + q * padded;
    for (int64_t c = 0; c < width; ++c) row[c] *= shape.scale;
    attention_loops().write(inputs.dtype, row, g.dq, (head * shape.queries + begin + q) * width, width);
  }
}

void attention_backward(const AttentionInputs& inputs, const AttentionGradients& g, int64_t begin, int64_t end) {
  const auto& shape = inputs.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  Backward b(shape);
  for (int64_t task = begin; task < end; ++task) {  // task = batch * K + head of keys
    std::fill(b.dk.begin(), b.dk.end(), 0.0f);
    std::fill(b.dv.begin(), b.dv.end(), 0.0f);
    for (int64_t head = task * group; head < (task + 1) * group; ++head)
      for (int64_t first = 0; first < shape.queries; first += kQueries) backward_tile(inputs, g, head, first, b);
    for (int64_t key = 0; key < shape.keys; ++key) {
      float* row = b.dk.data() + key * b.padded;
      for (int64_t c = 0; c < shape.width; ++c) row[c] *= shape.scale;
      attention_loops().write(inputs.dtype, row, g.dk, (task * shape.keys + key) * shape.width, shape.width);
      attention_loops().write(inputs.dtype, b.dv.data() + key * b.padded, g.dv, (task * shape.keys + key) * shape.width,
                              shape.width);
    }
  }
}

}  // namespace minillama
