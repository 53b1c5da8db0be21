// One step of EM over the lattices of words, and pruning. See unigram.h, and unigram.py and unigram_training.py for the
// formulas.

#include "unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

namespace minillama::unigram {

constexpr double kUnknownPenalty = 10.0, kLeastCount = 0.5;  // as in unigram.py and unigram_training.py
constexpr double kNever = -std::numeric_limits<double>::infinity();

// ---- lattices

Model::Model(const Pieces& pieces) : pieces_(pieces), children_(4 * pieces.size()), piece_of_(1, -1) {
  double least = pieces.empty() ? 0.0 : pieces[0].value;
  for (size_t number = 0; number < pieces.size(); ++number) {
    const auto [text, log_p] = pieces[number];
    uint32_t node = 0;
    for (size_t at = 0; at < text.size();) {
      const Character character = character_at(text, at);
      const auto fresh = static_cast<uint32_t>(piece_of_.size());
      node = children_.insert(PairMap::key(node, character.code), fresh);
      if (node == fresh) piece_of_.push_back(-1);
      at += character.size;
    }
    piece_of_[node] = static_cast<int32_t>(number);
    least = std::min(least, log_p);
  }
  unknown_ = least - kUnknownPenalty;
}

void Model::fill(Lattice& lattice, std::string_view word) const {
  auto& characters = lattice.characters_;
  characters.clear();
  for (size_t at = 0; at < word.size();) {
    const Character character = character_at(word, at);
    characters.push_back(character.code);
    at += character.size;
  }
  const auto size = static_cast<uint32_t>(characters.size());
  lattice.edges_.clear();
  lattice.first_from_.clear();
  for (uint32_t start = 0; start < size; ++start) {
    lattice.first_from_.push_back(static_cast<uint32_t>(lattice.edges_.size()));
    bool known = false;  // whether the character is a piece itself
    uint32_t node = 0;
    for (uint32_t end = start + 1; end <= size; ++end) {
      node = children_.find(PairMap::key(node, characters[end - 1]));
      if (node == PairMap::kAbsent) break;
      const int32_t piece = piece_of_[node];
      if (piece < 0) continue;
      known |= end == start + 1;
      lattice.edges_.push_back({start, end, piece, pieces_[static_cast<size_t>(piece)].value});
    }
    if (!known) {
      const auto first = lattice.edges_.begin() + lattice.first_from_.back();
      lattice.edges_.insert(first, {start, start + 1, -1, unknown_});
    }
  }
  lattice.first_from_.push_back(static_cast<uint32_t>(lattice.edges_.size()));
  lattice.sort_by_end();
}

// Counting sort, which keeps the order of starts.
void Lattice::sort_by_end() {
  first_to_.assign(size() + 2, 0);
  for (const Edge& edge : edges_) ++first_to_[edge.end + 1];
  for (size_t end = 1; end < first_to_.size(); ++end) first_to_[end] += first_to_[end - 1];
  next_ = first_to_;
  by_end_.resize(edges_.size());
  for (uint32_t i = 0; i < edges_.size(); ++i) by_end_[next_[edges_[i].end]++] = i;
}

// ---- EM

namespace {

// log(exp(a) + exp(b) + ...) without overflow.
double log_sum(const std::vector<double>& terms) {
  const double top = *std::max_element(terms.begin(), terms.end());
  double sum = 0.0;
  for (const double term : terms) sum += std::exp(term - top);
  return top + std::log(sum);
}

// Sums over the paths of a lattice, for one word after the other.
class PathSums {
 public:
  void add_shares(const Lattice& lattice, double count, std::vector<double>& expected) {
    go_forward(lattice);
    after_.assign(lattice.size() + 1, 0.0);
    for (size_t start = lattice.size(); start-- > 0;) {
      terms_.clear();
      for (uint32_t i = lattice.first_from(start + 1); i-- > lattice.first_from(start);) {  // the longest first
        const Lattice::Edge& edge = lattice.edges()[i];
        terms_.push_back(edge.log_p + after_[edge.end]);
        if (edge.piece < 0) continue;
        const double share = std::exp(before_[start] + edge.log_p + after_[edge.end] - before_.back());
        expected[static_cast<size_t>(edge.piece)] += count * share;
      }
      after_[start] = log_sum(terms_);
    }
  }

 private:
  void go_forward(const Lattice& lattice) {
    before_.assign(1, 0.0);
    for (size_t end = 1; end <= lattice.size(); ++end) {
      terms_.clear();
      for (uint32_t i = lattice.first_to(end); i < lattice.first_to(end + 1); ++i) {
        const Lattice::Edge& edge = lattice.edges()[lattice.by_end()[i]];
        terms_.push_back(before_[edge.start] + edge.log_p);
      }
      before_.push_back(log_sum(terms_));
    }
  }

  std::vector<double> before_, after_;  // of each place: log of the sum over all paths to it, and from it to the end
  std::vector<double> terms_;
};

// The slope of log gamma, as in unigram_training.py.
double digamma(double x) {
  double below = 0.0;
  for (; x < 10.0; x += 1.0) below -= 1.0 / x;
  const double y = 1.0 / (x * x);
  const double series = y * (1.0 / 12 - y * (1.0 / 120 - y * (1.0 / 252 - y * (1.0 / 240 - y * (1.0 / 132)))));
  return below + std::log(x) - 0.5 / x - series;
}

}  // namespace

std::vector<double> expected_counts(const Model& model, const Counts& words) {
  std::vector<double> expected(model.pieces().size());
  Lattice lattice;
  PathSums sums;
  for (const auto& [word, count] : words) {
    model.fill(lattice, word);
    sums.add_shares(lattice, static_cast<double>(count), expected);
  }
  return expected;
}

Pieces maximize(const Pieces& expected) {
  Pieces kept;
  double sum = 0.0;
  for (const auto& row : expected) {
    if (row.value < kLeastCount) continue;
    kept.push_back(row);
    sum += row.value;
  }
  const double of_sum = digamma(sum);
  for (auto& row : kept) row.value = digamma(row.value) - of_sum;
  return kept;
}

// ---- pruning

namespace {

// The edges of the best path, the last first. Sums are 32-bit floats, and of equals the earlier start wins.
class BestPath {
 public:
  const std::vector<uint32_t>& find(const Lattice& lattice, bool without_whole = false) {
    best_.assign(1, 0.0f);
    back_.assign(1, 0);
    for (size_t end = 1; end <= lattice.size(); ++end) {
      best_.push_back(static_cast<float>(kNever));
      back_.push_back(0);
      for (uint32_t i = lattice.first_to(end); i < lattice.first_to(end + 1); ++i) {
        const Lattice::Edge& edge = lattice.edges()[lattice.by_end()[i]];
        if (without_whole && edge.start == 0 && end == lattice.size()) continue;
        const auto sum = static_cast<float>(static_cast<double>(best_[edge.start]) + edge.log_p);
        if (sum > best_[end]) {
          best_[end] = sum;
          back_[end] = lattice.by_end()[i];
        }
      }
    }
    path_.clear();
    for (size_t end = lattice.size(); end > 0; end = lattice.edges()[back_[end]].start) path_.push_back(back_[end]);
    return path_;
  }

 private:
  std::vector<float> best_;
  std::vector<uint32_t> back_, path_;  // edges
};

// How often the best segmentations have each piece, and each character that is none.
class PartCounts {
 public:
  PartCounts(const Model& model, const Counts& words) : of_piece_(model.pieces().size()) {
    Lattice lattice;
    BestPath best;
    for (const auto& [word, count] : words) {
      model.fill(lattice, word);
      for (const uint32_t edge : best.find(lattice)) add(lattice, lattice.edges()[edge], count);
    }
  }
  uint64_t of(size_t piece) const { return of_piece_[piece]; }
  uint64_t of(const Lattice& lattice, const Lattice::Edge& edge) const {
    if (edge.piece >= 0) return of_piece_[static_cast<size_t>(edge.piece)];
    const auto found = of_character_.find(lattice.character(edge.start));
    return found == of_character_.end() ? 0 : found->second;
  }
  uint64_t total() const { return total_; }

 private:
  void add(const Lattice& lattice, const Lattice::Edge& edge, uint64_t count) {
    if (edge.piece < 0) {
      of_character_[lattice.character(edge.start)] += count;
    } else {
      of_piece_[static_cast<size_t>(edge.piece)] += count;
      total_ += count;
    }
  }

  std::vector<uint64_t> of_piece_;
  std::unordered_map<uint32_t, uint64_t> of_character_;
  uint64_t total_ = 0;  // of pieces
};

double log_of(uint64_t count) { return std::log(static_cast<double>(count)); }

// What the log likelihood loses without a piece: its parts stand for it, and the counts of all grow by as many.
double loss_without(const Lattice& lattice, const std::vector<uint32_t>& path, uint64_t count, const PartCounts& counts) {
  const double new_total = log_of(counts.total() + count * (path.size() - 1));
  double without = 0.0;
  for (size_t i = path.size(); i-- > 0;)
    without += log_of(counts.of(lattice, lattice.edges()[path[i]]) + count) - new_total;
  return static_cast<double>(count) * (log_of(count) - log_of(counts.total()) - without);
}

}  // namespace

Pieces prune(const Model& model, const Counts& words, size_t size) {
  const Pieces& pieces = model.pieces();
  const PartCounts counts(model, words);
  Pieces kept;
  std::vector<std::pair<double, size_t>> losses;
  Lattice lattice;
  BestPath best;
  for (size_t number = 0; number < pieces.size(); ++number) {
    const uint64_t count = counts.of(number);
    if (!count) continue;
    model.fill(lattice, pieces[number].text);
    if (lattice.size() == 1) {
      kept.push_back(pieces[number]);  // a character: nothing else can spell it
    } else if (best.find(lattice).size() == 1) {  // else its parts are better than itself
      losses.emplace_back(loss_without(lattice, best.find(lattice, true), count, counts), number);
    }
  }
  std::stable_sort(losses.begin(), losses.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; i < losses.size() && kept.size() < size; ++i) kept.push_back(pieces[losses[i].second]);
  return kept;
}

}  // namespace minillama::unigram
