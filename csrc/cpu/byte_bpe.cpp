// Joining the bytes of a word: of all neighbours that the vocabulary can join, those of the lowest rank, the leftmost of
// equals, again and again. Parts are neighbours in the text, so what two of them make is a piece of the text itself.

#include "byte_bpe.h"

#include <algorithm>
#include <queue>
#include <stdexcept>
#include <tuple>

namespace minillama::bpe {

constexpr size_t kFewBytes = 64;  // up to which looking at all pairs beats a heap

TextNumbers::TextNumbers(size_t expected) {
  size_t size = 16;
  while (size < 2 * expected) size *= 2;
  slots_.resize(size);
}

size_t TextNumbers::place_of(std::string_view text, uint32_t left) const {
  for (size_t at = hash_bytes(text.data(), text.size());; ++at) {
    const Slot& slot = slots_[at & (slots_.size() - 1)];
    if (!slot.data) return at & (slots_.size() - 1);
    if (slot.left == left && std::string_view(slot.data, slot.size) == text) return at & (slots_.size() - 1);
  }
}

uint32_t TextNumbers::find(std::string_view text, uint32_t left) const {
  const Slot& slot = slots_[place_of(text, left)];
  return slot.data ? slot.number : kAbsent;
}

void TextNumbers::insert(std::string_view text, uint32_t number, uint32_t left) {
  Slot& slot = slots_[place_of(text, left)];
  if (!slot.data) {
    char* copy = texts_.take(text.size() + 1);  // an empty text has a place, too
    std::copy(text.begin(), text.end(), copy);
    slot = {copy, static_cast<uint32_t>(text.size()), left, number};
  }
  slot.number = number;
}

ByteBpeEncoder::ByteBpeEncoder(const std::vector<std::string>& tokens, const std::vector<int32_t>& ids,
                               const std::vector<Merge>& merges, bool ids_are_ranks, bool whole_words,
                               WordSplitter splitter)
    : ids_(tokens.size()), ranks_(merges.size()), ids_are_ranks_(ids_are_ranks), whole_words_(whole_words),
      splitter_(std::move(splitter)) {
  if (tokens.size() != ids.size()) throw std::invalid_argument("tokens and ids are not equally many");
  for (size_t i = 0; i < tokens.size(); ++i) {
    ids_.insert(tokens[i], static_cast<uint32_t>(ids[i]));
    longest_ = std::max(longest_, tokens[i].size());
  }
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string joined = merges[i].left + merges[i].right;
    ranks_.insert(joined, static_cast<uint32_t>(i), static_cast<uint32_t>(merges[i].left.size()));
    longest_ = std::max(longest_, joined.size());
  }
}

uint32_t ByteBpeEncoder::rank(std::string_view joined, uint32_t left) const {
  if (joined.size() > longest_) return TextNumbers::kAbsent;
  return ids_are_ranks_ ? ids_.find(joined) : ranks_.find(joined, left);
}

std::vector<int32_t> ByteBpeEncoder::encode(std::string_view text) const {
  if (text.size() >= 1ull << 32) throw std::length_error("a text of more than 4 GB: encode it in parts");
  std::unique_ptr<SegmentCache> cache = caches_.take();
  std::vector<int32_t> ids;
  std::vector<Part> parts;
  ids.reserve(text.size() / 3 + 8);
  splitter_.for_each(text, [&](std::string_view word) { add_word(word, *cache, ids, parts); });
  caches_.give_back(std::move(cache));
  return ids;
}

// Append the ids of a word; short ones are remembered.
void ByteBpeEncoder::add_word(std::string_view word, SegmentCache& cache, std::vector<int32_t>& ids,
                              std::vector<Part>& parts) const {
  if (word.size() > SegmentCache::kMostBytes) return join(word, ids, parts);
  SegmentCache::Entry& entry = cache.at(0, word, false);
  if (!entry.count) {
    const size_t before = ids.size();
    join(word, ids, parts);
    entry.count = static_cast<uint32_t>(ids.size() - before);
    std::copy(ids.begin() + before, ids.end(), entry.ids);
  } else {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
  }
}

void ByteBpeEncoder::join(std::string_view word, std::vector<int32_t>& ids, std::vector<Part>& parts) const {
  const uint32_t whole = whole_words_ || word.size() == 1 ? ids_.find(word) : TextNumbers::kAbsent;
  if (whole != TextNumbers::kAbsent) {
    ids.push_back(static_cast<int32_t>(whole));
    return;
  }
  parts.clear();
  word.size() <= kFewBytes ? join_few(word, parts) : join_many(word, parts);
  parts.push_back({static_cast<uint32_t>(word.size()), 0});
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    const std::string_view part = word.substr(parts[i].begin, parts[i + 1].begin - parts[i].begin);
    const uint32_t id = ids_.find(part);
    if (id == TextNumbers::kAbsent) {
      char text[8];
      std::snprintf(text, sizeof text, "0x%02X", static_cast<unsigned char>(part[0]));
      throw std::invalid_argument("this vocabulary has no token for the byte " + std::string(text) +
                                  ": the text cannot be said in it");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
}

// The pair of the lowest rank is looked for anew each time.
void ByteBpeEncoder::join_few(std::string_view word, std::vector<Part>& parts) const {
  for (uint32_t i = 0; i < word.size(); ++i)
    parts.push_back({i, i + 1 < word.size() ? rank(word.substr(i, 2), 1) : TextNumbers::kAbsent});
  const auto update = [&](size_t i) {  // the pair of the parts i and i + 1
    if (i + 1 >= parts.size()) {
      parts[i].rank = TextNumbers::kAbsent;
      return;
    }
    const size_t end = i + 2 < parts.size() ? parts[i + 2].begin : word.size();
    parts[i].rank = rank(word.substr(parts[i].begin, end - parts[i].begin), parts[i + 1].begin - parts[i].begin);
  };
  while (true) {
    const auto best = std::min_element(parts.begin(), parts.end(),
                                       [](const Part& a, const Part& b) { return a.rank < b.rank; });
    if (best->rank == TextNumbers::kAbsent) return;
    const size_t i = best - parts.begin();
    parts.erase(best + 1);
    update(i);
    if (i > 0) update(i - 1);
  }
}

// A heap of candidates; one is outdated where its parts no longer reach as far as they did.
void ByteBpeEncoder::join_many(std::string_view word, std::vector<Part>& parts) const {
  const auto n = static_cast<uint32_t>(word.size());
  std::vector<uint32_t> next(n), previous(n);  // where the part behind begins (n: none), and the part in front
  using Candidate = std::tuple<uint32_t, uint32_t, uint32_t>;  // rank, begin of the left part, end of the right one
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  std::vector<uint32_t> rank_of(n, TextNumbers::kAbsent);  // of the pair that a part makes with the next
  const auto consider = [&](uint32_t left) {
    rank_of[left] = TextNumbers::kAbsent;
    if (next[left] >= n) return;
    const uint32_t end = next[next[left]];
    rank_of[left] = rank(word.substr(left, end - left), next[left] - left);
    if (rank_of[left] != TextNumbers::kAbsent) heap.emplace(rank_of[left], left, end);
  };
  for (uint32_t i = 0; i < n; ++i) next[i] = i + 1, previous[i] = i - 1;
  for (uint32_t i = 0; i + 1 < n; ++i) consider(i);
  while (!heap.empty()) {
    const auto [found, left, end] = heap.top();
    heap.pop();
    if (rank_of[left] != found || next[next[left]] != end) continue;
    rank_of[next[left]] = TextNumbers::kAbsent;  // no part begins there any more
    next[left] = end;
    if (end < n) previous[end] = left;
    consider(left);
    if (left > 0) consider(previous[left]);
  }
  for (uint32_t i = 0; i < n; i = next[i]) parts.push_back({i, 0});
}

}  // namespace minillama::bpe
