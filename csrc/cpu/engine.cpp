// A decoding step of minillama/transformer.py, written out: with one token a row, every product is W x, and reading the
// weights once is nearly all of its cost. Between products lie a few thousand numbers, which stay in the caches.
//
// Only products and attention are shared among threads, each in a parallel region of PyTorch's own pool; what is below
// kWeightsPerTask runs on one. Every number of a result is computed by one thread in an order that does not depend on how
// many there are, so neither do the bits. All activations and sums are fp32.

#include "engine.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "row_loops.h"
#include "vectors.h"

namespace minillama {

// ---- products

struct Product {
  const Matrix& w;
  float* y;
};

// Runs task(begin, end) on shares of [0, size), each of at least kWeightsPerTask numbers where one costs `each`.
template <typename Task>
static void share(int64_t size, int64_t each, const Task& task) {
  at::parallel_for(0, size, std::max<int64_t>(1, kWeightsPerTask / std::max<int64_t>(1, each)), task);
}

static bool same_layout(const Matrix& a, const Matrix& b) {
  return a.form == b.form && a.block == b.block && a.columns == b.columns && a.threshold == b.threshold;
}

// Lays out rows x for each product; where two want the same layout the later one takes the earlier's number.
static std::vector<int> lay_out(const float* x, int64_t B, std::initializer_list<Product> products, Activations* layouts) {
  std::vector<int> numbers;
  for (const Product& product : products) {
    int number = 0;
    for (; number < static_cast<int>(numbers.size()); ++number)
      if (same_layout(product.w, products.begin()[number].w)) break;
    if (number == static_cast<int>(numbers.size())) prepare(product.w, x, B, layouts[number]);
    numbers.push_back(number);
  }
  return numbers;
}

// Several products with the same rows x in one parallel region: their rows are numbered through.
static void multiply(const float* x, int64_t B, std::initializer_list<Product> products, Activations* layouts) {
  const auto numbers = lay_out(x, B, products, layouts);
  int64_t rows = 0;
  for (const Product& product : products) rows += product.w.rows;
  share(rows, products.begin()->w.columns, [&](int64_t begin, int64_t end) {
    int64_t before = 0;
    for (size_t i = 0; i < products.size(); ++i) {
      const auto& [w, y] = products.begin()[i];
      const int64_t first = std::max<int64_t>(0, begin - before), stop = std::min(w.rows, end - before);
      if (first < stop) multiply_rows(w, layouts[numbers[i]], first, stop, y);
      before += w.rows;
    }
  });
}

// ---- the parts of a block

Engine::Engine(Model model) : model_(std::move(model)) {
  const int64_t D = model_.dim, d = model_.head_dim, B = kMostRows;
  const int64_t F = model_.layers.empty() ? 0 : model_.layers[0].w1.rows;
  for (auto* row : {&x_, &normed_, &out_}) row->resize(B * D);
  for (auto* row : {&q_, &mixed_}) row->resize(B * model_.heads * d);
  for (auto* row : {&k_, &v_}) row->resize(B * model_.kv_heads * d);
  for (auto* row : {&gate_, &up_}) row->resize(B * F);
  gain_.resize(D);
  rotations_.resize(B * d);
}

// normed = x / sqrt(mean(x^2) + eps) * gain
void Engine::normalize(const Matrix& gain, int64_t B) {
  const int64_t D = model_.dim;
  read_row(gain, 0, gain_.data());
  for (int64_t b = 0; b < B; ++b) {
    const float *x = &x_[b * D], mean = vectors().dot(x, x, D) / static_cast<float>(D);
    const float scale = 1.0f / std::sqrt(mean + model_.norm_eps);
    row_loops().normalize(x, scale, gain_.data(), &normed_[b * D], D);
  }
}

// The angles of each row's new position, formed in fp32; padding has no position.
static void rotations_of(int64_t B, int64_t half, const float* frequencies, const Cache& cache, float* rotations) {
  for (int64_t b = 0; b < B; ++b) {
    const int64_t pad = cache.left_pad ? cache.left_pad[b] : 0, position = std::max<int64_t>(0, cache.length - pad);
    for (int64_t i = 0; i < half; ++i, rotations += 2) {
      const float angle = static_cast<float>(position) * frequencies[i];
      rotations[0] = std::cos(angle);
      rotations[1] = std::sin(angle);
    }
  }
}

// Pairs (2i, 2i + 1) of each head as complex numbers times e^(i angle).
static void turn(float* head, const float* rotations, int64_t width) {
  for (int64_t i = 0; i < width; i += 2) {
    const float a = head[i], b = head[i + 1], cos = rotations[i], sin = rotations[i + 1];
    head[i] = a * cos - b * sin;
    head[i + 1] = a * sin + b * cos;
  }
}

// Numbers from `at` on of memory in that form, rounded once.
static void write(Form form, void* memory, int64_t at, const float* from, int64_t size) {
  if (form == Form::f32) std::copy(from, from + size, static_cast<float*>(memory) + at);
  if (form == Form::bf16) std::copy(from, from + size, static_cast<c10::BFloat16*>(memory) + at);
  if (form == Form::f16) std::copy(from, from + size, static_cast<c10::Half*>(memory) + at);
}

void Engine::turn_and_store(int64_t B, const Cache& cache, int64_t layer) {
  const int64_t d = model_.head_dim, H = model_.heads, K = model_.kv_heads;
  for (int64_t b = 0; b < B; ++b) {
    const float* rotations = &rotations_[b * d];
    for (int64_t h = 0; h < H; ++h) turn(&q_[(b * H + h) * d], rotations, d);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t from = (b * K + k) * d;
      const int64_t to = layer * cache.layer + b * cache.row + (k * cache.max_len + cache.length) * d;
      turn(&k_[from], rotations, d);
      write(cache.form, cache.keys, to, &k_[from], d);
      write(cache.form, cache.values, to, &v_[from], d);
    }
  }
}

static Matrix head_of(Form form, const void* memory, int64_t at, int64_t rows, int64_t width) {
  const int64_t bytes = at * (form == Form::f32 ? 4 : 2);
  return {form, rows, width, static_cast<const char*>(memory) + bytes, nullptr, 0, {}};
}

// The query heads that share a head of keys and values are rows of one product with its keys, S of them, and of one with
// its values.
void Engine::attend(int64_t b, int64_t kv_head, const Cache& cache, int64_t layer) {
  const int64_t d = model_.head_dim, H = model_.heads, group = H / model_.kv_heads, S = cache.length + 1;
  const int64_t at = layer * cache.layer + b * cache.row + kv_head * cache.max_len * d, first = b * H + kv_head * group;
  const int64_t pad = cache.left_pad ? std::min(cache.left_pad[b], S - 1) : 0;
  float* scores = &scores_[first * S];
  Activations q;
  q.x = &q_[first * d];
  q.n = group;
  multiply_rows(head_of(cache.form, cache.keys, at, S, d), q, pad, S, scores);
  for (int64_t g = 0; g < group; ++g) row_loops().softmax(scores + g * S + pad, S - pad, 1 / std::sqrt(static_cast<float>(d)));
  combine_rows(head_of(cache.form, cache.values, at, S, d), scores, S, group, pad, S, &mixed_[first * d]);
}

void Engine::add_to_stream(const Matrix& w, const std::vector<float>& from, int64_t B) {
  multiply(from.data(), B, {{w, out_.data()}}, laid_out_);
  for (int64_t i = 0; i < B * model_.dim; ++i) x_[i] += out_[i];
}

void Engine::attention(const Layer& w, int64_t B, const Cache& cache, int64_t layer) {
  const int64_t K = model_.kv_heads, S = cache.length + 1;
  multiply(normed_.data(), B, {{w.wq, q_.data()}, {w.wk, k_.data()}, {w.wv, v_.data()}}, laid_out_);
  turn_and_store(B, cache, layer);
  share(B * K, 2 * S * model_.head_dim, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attend(i / K, i % K, cache, layer);
  });
  add_to_stream(w.wo, mixed_, B);
}

// w2 (silu(w1 x) * w3 x), silu(a) = a / (1 + e^-a)
void Engine::feed_forward(const Layer& w, int64_t B) {
  const auto numbers = lay_out(normed_.data(), B, {{w.w1, gate_.data()}, {w.w3, up_.data()}}, laid_out_);
  share(w.w1.rows, 2 * w.w1.columns, [&](int64_t first, int64_t end) {
    multiply_rows(w.w1, laid_out_[numbers[0]], first, end, gate_.data());
    multiply_rows(w.w3, laid_out_[numbers[1]], first, end, up_.data());
    for (int64_t at = first; at < B * w.w1.rows; at += w.w1.rows)
      row_loops().gate(&gate_[at], &up_[at], &gate_[at], end - first);
  });
  add_to_stream(w.w2, gate_, B);
}

// ---- the whole step

void Engine::step(const int64_t* tokens, int64_t B, const Cache& cache, float* logits, std::vector<float>* stages) {
  const int64_t D = model_.dim;
  const auto note = [&](const std::vector<float>& stream) {
    if (stages) stages->insert(stages->end(), stream.begin(), stream.begin() + B * D);
  };
  scores_.resize(std::max<size_t>(scores_.size(), B * model_.heads * (cache.length + 1)));
  rotations_of(B, model_.head_dim / 2, model_.frequencies, cache, rotations_.data());
  for (int64_t b = 0; b < B; ++b) read_row(model_.embeddings, tokens[b], &x_[b * D]);
  note(x_);
  for (size_t layer = 0; layer < model_.layers.size(); ++layer) {
    const Layer& w = model_.layers[layer];
    normalize(w.attention_norm, B);
    attention(w, B, cache, static_cast<int64_t>(layer));
    normalize(w.ffn_norm, B);
    feed_forward(w, B);
    note(x_);
  }
  normalize(model_.norm, B);
  note(normed_);
  multiply(normed_.data(), B, {{model_.output, logits}}, laid_out_);
}

}  // namespace minillama
