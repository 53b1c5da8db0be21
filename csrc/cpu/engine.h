// One token of each row of a batch through a whole LLaMA: from ids to the scores of the next token.
#pragma once

#include <cstdint>
#include <vector>

#include "matrix.h"

namespace minillama {

// A block's weights; the two gains of RMSNorm are matrices of one row.
struct Layer {
  Matrix attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3;
};

struct Model {
  int64_t dim, heads, kv_heads, head_dim;  // D, H, K, d
  float norm_eps;
  const float* frequencies;  // (d/2), radians a position
  Matrix embeddings, norm, output;
  std::vector<Layer> layers;
};

// The memory of minillama/kv_cache.py: keys and values (L, B, K, max_len, d), of which the first two dimensions have
// strides of their own, in numbers.
struct Cache {
  Form form;  // f32, bf16 or f16
  void *keys, *values;
  int64_t layer, row, max_len;
  int64_t length;  // tokens held, padding included; the new one is stored behind them
  const int64_t* left_pad;  // (B) places of each row that nobody attends to; null: none
};

class Engine {
 public:
  explicit Engine(Model model);

  // tokens (B), B up to kMostRows -> logits (B, V); keys and values of the tokens go into the cache. Where `stages` is
  // given, the residual stream (B, D) as the embedding and then each block leave it is added to it, and the final norm of
  // it at last.
  void step(const int64_t* tokens, int64_t B, const Cache& cache, float* logits, std::vector<float>* stages = nullptr);

 private:
  void normalize(const Matrix& gain, int64_t B);
  void attention(const Layer& w, int64_t B, const Cache& cache, int64_t layer);
  void feed_forward(const Layer& w, int64_t B);
  void turn_and_store(int64_t B, const Cache& cache, int64_t layer);
  void attend(int64_t b, int64_t kv_head, const Cache& cache, int64_t layer);
  void add_to_stream(const Matrix& w, const std::vector<float>& from, int64_t B);

  Model model_;
  std::vector<float> x_, normed_, q_, k_, v_, mixed_, gate_, up_, out_, gain_;  // (B, ...) for up to kMostRows rows
  std::vector<float> scores_;  // (B, H, S)
  std::vector<float> rotations_;  // (B, d/2, 2): cos and sin
  Activations laid_out_[3];
};

}  // namespace minillama
