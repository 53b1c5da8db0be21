// Training of a unigram model: minillama/tokenizer/unigram_training.py in C++, with results that are equal to the last
// bit, as every sum is taken in the same order.
//
//   unigram_seeds.cpp   words -> the strings that they repeat          O(n log n) of n characters in all words
//   unigram.cpp         one E step, one M step, one pruning            O(edges of all lattices)
//
// No Python in it. Words and pieces are valid UTF-8. Characters of a word are counted, not its bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe_maps.h"

namespace minillama::unigram {

using namespace minillama::bpe;

template <typename Number>
struct Row {
  std::string_view text;
  Number value;
};
using Counts = std::vector<Row<uint64_t>>;
using Pieces = std::vector<Row<double>>;  // with their log probabilities, or expected counts

// ---- seeds

constexpr uint8_t kAnyClass = 0, kDigitClass = 254;  // scripts lie between

struct SeedRules {
  uint32_t max_piece_length;  // characters
  bool whole_words;           // words are seeds too
};

// The alphabet by its counts, repeated strings by count times length. class_of: of each character of the alphabet. A
// word's last character is what follows it.
Pieces seed_pieces(const Counts& words, const Counts& alphabet, const std::vector<uint8_t>& class_of,
                   const SeedRules& rules);

// ---- the model

// Where a word may be cut: edges are pieces, places are between its characters.
class Lattice {
 public:
  struct Edge {
    uint32_t start, end;
    int32_t piece;  // -1: a character that is no piece
    double log_p;
  };

  size_t size() const { return characters_.size(); }
  uint32_t character(size_t place) const { return characters_[place]; }
  // By start, then by end; those from a place begin at first_from(start) and end at first_from(start + 1).
  const std::vector<Edge>& edges() const { return edges_; }
  uint32_t first_from(size_t start) const { return first_from_[start]; }
  // Indices of edges by end, then by start; those to a place begin at first_to(end) and end at first_to(end + 1).
  const std::vector<uint32_t>& by_end() const { return by_end_; }
  uint32_t first_to(size_t end) const { return first_to_[end]; }

 private:
  friend class Model;
  void sort_by_end();

  std::vector<uint32_t> characters_, first_from_, first_to_, by_end_, next_;
  std::vector<Edge> edges_;
};

// Pieces in a trie by characters.
class Model {
 public:
  explicit Model(const Pieces& pieces);
  const Pieces& pieces() const { return pieces_; }

  // Fill the lattice of a word. O(its characters * those of the longest piece).
  void fill(Lattice& lattice, std::string_view word) const;

 private:
  const Pieces& pieces_;
  PairMap children_;                // (node, character) -> node
  std::vector<int32_t> piece_of_;   // by node: the piece that ends there, or -1
  double unknown_;                  // log probability of a character that is no piece
};

// The E step: how often each piece is expected in random segmentations of the words.
std::vector<double> expected_counts(const Model& model, const Counts& words);

// The M step: pieces that are expected half a time or more, with digamma(count) - digamma(sum) for log probability.
Pieces maximize(const Pieces& expected);

// The `size` pieces whose loss of likelihood would be greatest, less those that no best segmentation uses.
Pieces prune(const Model& model, const Counts& words, size_t size);

}  // namespace minillama::unigram
