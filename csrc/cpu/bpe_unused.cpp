// Encoding with a vocabulary that has UNUSED pieces: they join like others but fall apart again in the end, into the
// two parts that were last looked up as that piece anywhere in the text. So the text is one, without cuts or cache.

#include <queue>
#include <tuple>

#include "bpe.h"

namespace minillama::bpe {

constexpr int kMaxDepth = 100;  // SentencePiece's

namespace {

struct Part {
  std::string_view text;  // empty: joined to the one on its left
  int64_t previous, next;
  bool frozen;
};

// Joins parts by rank, leftmost first, and remembers the halves of all it looked up.
class Joiner {
 public:
  using Known = std::unordered_map<std::string_view, int32_t>;
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> halves;

  Joiner(std::vector<Part>& parts, const Known& id_of, const std::vector<uint32_t>& rank_of)
      : parts_(parts), id_of_(id_of), rank_of_(rank_of) {}

  void run() {
    for (size_t i = 0; i + 1 < parts_.size(); ++i) consider(i, i + 1);
    while (!heap_.empty()) {
      const auto [rank, left, right, size] = heap_.top();
      heap_.pop();
      Part &a = parts_[left], &b = parts_[right];
      if (a.text.empty() || b.text.empty() || a.text.size() + b.text.size() != size) continue;
      a.text = {a.text.data(), size};
      b.text = {};
      a.next = b.next;
      if (a.next >= 0) parts_[a.next].previous = left;
      consider(a.previous, left);
      consider(left, a.next);
    }
  }

 private:
  using Entry = std::tuple<uint32_t, int64_t, int64_t, size_t>;  // rank, left, right, size of the joined text

  void consider(int64_t left, int64_t right) {
    if (left < 0 || right < 0 || parts_[left].frozen || parts_[right].frozen) return;
    const std::string_view a = parts_[left].text, b = parts_[right].text, joined(a.data(), a.size() + b.size());
    const auto known = id_of_.find(joined);
    if (known == id_of_.end()) return;
    heap_.emplace(rank_of_[known->second], left, right, joined.size());
    halves[joined] = {a, b};
  }

  std::vector<Part>& parts_;
  const Known& id_of_;
  const std::vector<uint32_t>& rank_of_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> heap_;
};

}  // namespace

std::vector<int32_t> BpeEncoder::encode_with_unused(std::string_view text) const {
  std::vector<Part> parts;
  for (size_t at = 0; at < text.size();) {
    const size_t own = own_.longest(text.substr(at));
    const size_t size = own ? own : std::max(1u, character_at(text, at).size);
    const auto index = static_cast<int64_t>(parts.size());
    parts.push_back({text.substr(at, size), index - 1, at + size < text.size() ? index + 1 : -1, own > 0});
    at += size;
  }
  Joiner joiner(parts, id_of_, rank_of_);
  joiner.run();
  Work work{};
  std::vector<std::pair<std::string_view, int>> waiting;
  for (const Part& part : parts) {
    if (!part.text.empty()) waiting.emplace_back(part.text, 0);
    while (!waiting.empty()) {
      const auto [piece, depth] = waiting.back();
      waiting.pop_back();
      const auto known = id_of_.find(piece);
      const bool unused = known != id_of_.end() && pieces_[known->second].kind == kUnused;
      const auto halves = unused && depth <= kMaxDepth ? joiner.halves.find(piece) : joiner.halves.end();
      if (halves != joiner.halves.end()) {
        waiting.emplace_back(halves->second.second, depth + 1);
        waiting.emplace_back(halves->second.first, depth + 1);
      } else {
        emit(work, known != id_of_.end() && (!unused || depth > kMaxDepth) ? known->second : -1, piece);
      }
    }
  }
  return std::move(work.ids);
}

}  // namespace minillama::bpe
