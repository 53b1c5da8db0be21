// Encoding: words, each looked up in a cache, or cut where no piece reaches across and joined by score.
// The same ids as minillama/tokenizer/bpe_encoder.py, which says why the cuts change nothing.
//
// Joining compares numbers, not strings: a piece can only arise from two symbols that are pieces or characters
// themselves, so all (left, right) -> piece are listed once, when the vocabulary is loaded.

#include "bpe.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace minillama::bpe {

constexpr size_t kCachedBytes = 64;  // longer words are not cached
constexpr size_t kFew = 24;          // symbols up to which looking at all pairs beats a heap
constexpr int32_t kOwn = -2;         // symbols kOwn - id: a user-defined piece, which joins nothing

// ---- the cache

WordCache::Found WordCache::find(std::string_view word, uint64_t hash) const {
  for (size_t at = hash & (kEntries - 1);; at = (at + 1) & (kEntries - 1)) {
    const Entry& entry = table_[at];
    if (entry.size == 0) return {nullptr, 0};
    if (entry.hash == static_cast<uint32_t>(hash) && entry.size == word.size() &&
        std::memcmp(texts_.data() + entry.text, word.data(), word.size()) == 0)
      return {ids_.data() + entry.ids, entry.count};
  }
}

void WordCache::add(std::string_view word, uint64_t hash, const int32_t* ids, size_t count) {
  if (used_ * 2 >= kEntries) {
    std::fill(table_.begin(), table_.end(), Entry());
    texts_.clear();
    ids_.clear();
    used_ = 0;
  }
  size_t at = hash & (kEntries - 1);
  while (table_[at].size) at = (at + 1) & (kEntries - 1);
  table_[at] = {static_cast<uint32_t>(hash), static_cast<uint32_t>(texts_.size()), static_cast<uint32_t>(ids_.size()),
                static_cast<uint16_t>(word.size()), static_cast<uint16_t>(count)};
  texts_.append(word);
  ids_.insert(ids_.end(), ids, ids + count);
  ++used_;
}

// ---- encoding

std::vector<int32_t> BpeEncoder::encode(std::string_view text, bool dummy_prefix, bool spaces) const {
  if (text.empty()) return {};
  if (text.size() >= 1ull << 32) throw std::length_error("a text of more than 4 GB: encode it in parts");
  std::string visible;
  if (spaces && (has_unused_ || !own_.empty())) {  // these look at strings: give them U+2581 itself
    if (dummy_prefix) visible = kSpaceText;
    for (const char byte : text) byte == ' ' ? visible.append(kSpaceText) : visible.append(1, byte);
    text = visible;
    dummy_prefix = spaces = false;
  }
  if (has_unused_) return encode_with_unused(text);
  std::unique_ptr<WordCache> cache;
  {
    const std::lock_guard<std::mutex> guard(lock_);
    if (!caches_.empty()) {
      cache = std::move(caches_.back());
      caches_.pop_back();
    }
  }
  if (!cache) cache = std::make_unique<WordCache>();
  Work work{};
  work.spaces = spaces;
  work.cache = cache.get();
  work.ids.reserve(text.size() / 3 + 8);
  encode_words(work, text, dummy_prefix);
  const std::lock_guard<std::mutex> guard(lock_);
  caches_.push_back(std::move(cache));
  return std::move(work.ids);
}

// Cut the text before each run of spaces, if no piece reaches across such a place. In words, spaces are written ' '.
void BpeEncoder::encode_words(Work& work, std::string_view text, bool dummy_prefix) const {
  const auto space_at = [&](size_t at) -> size_t {
    if (text[at] == ' ') return work.spaces;
    return text[at] == '\xE2' && text.compare(at, 3, kSpaceText) == 0 ? 3 : 0;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    bool rewrite = dummy_prefix;
    for (size_t size; at < text.size() && (size = space_at(at)); at += size) rewrite |= work.spaces && size == 3;
    while (at < text.size() && (!cut_at_spaces_ || !space_at(at))) {
      rewrite |= !cut_at_spaces_ && work.spaces && space_at(at) == 3;
      ++at;
    }
    std::string_view word = text.substr(start, at - start);
    if (rewrite) {
      work.word.assign(dummy_prefix ? " " : "");
      for (size_t i = start; i < at;) {
        const size_t size = space_at(i);
        work.word.push_back(size ? ' ' : text[i]);
        i += size ? size : 1;
      }
      word = work.word;
    }
    encode_word(work, word);
    dummy_prefix = false;
  }
}

void BpeEncoder::encode_word(Work& work, std::string_view word) const {
  const auto append = [&](const int32_t* ids, size_t count) {  // a run of unknowns is one id
    const bool joined = count && !work.ids.empty() && work.ids.back() == unk_id_ && ids[0] == unk_id_;
    work.ids.insert(work.ids.end(), ids + joined, ids + count);
  };
  if (word.size() > kCachedBytes || !cut_at_spaces_) {
    parse(work, word);
    return encode_parsed(work);
  }
  const uint64_t hash = hash_bytes(word.data(), word.size());
  WordCache::Found found = work.cache->find(word, hash);
  if (found.ids) return append(found.ids, found.count);
  std::vector<int32_t> sentence;
  sentence.swap(work.ids);
  parse(work, word);
  encode_parsed(work);
  sentence.swap(work.ids);
  work.cache->add(word, hash, sentence.data(), sentence.size());
  append(sentence.data(), sentence.size());
}

size_t BpeEncoder::own_length(std::string_view rest) const {
  for (const size_t length : own_lengths_)
    if (length <= rest.size() && own_.count(rest.substr(0, length))) return length;
  return 0;
}

void BpeEncoder::parse(Work& work, std::string_view text) const {
  work.text = text;
  work.symbols.clear();
  work.begins.clear();
  for (size_t at = 0; at < text.size();) {
    work.begins.push_back(static_cast<uint32_t>(at));
    if (own_first_[static_cast<unsigned char>(text[at])]) {
      if (const size_t length = own_length(text.substr(at))) {
        work.symbols.push_back(kOwn - own_.at(text.substr(at, length)));
        at += length;
        continue;
      }
    }
    const Character character = character_at(text, at);
    if (!character.size) throw std::invalid_argument("the text is not UTF-8");
    work.symbols.push_back(symbol_of(work.spaces && character.code == ' ' ? kSpace : character.code));
    at += character.size;
  }
  work.begins.push_back(static_cast<uint32_t>(text.size()));
}

// Cut between symbols that are side by side in no piece.
void BpeEncoder::encode_parsed(Work& work) const {
  const std::vector<int32_t>& symbols = work.symbols;
  for (size_t first = 0, last = 1; first < symbols.size(); first = last++) {
    while (last < symbols.size() && symbols[last - 1] >= 0 && symbols[last] >= 0 &&
           neighbours_.find(PairMap::key(symbols[last - 1], symbols[last])) != PairMap::kAbsent)
      ++last;
    encode_segment(work, first, last);
  }
}

void BpeEncoder::encode_segment(Work& work, size_t first, size_t last) const {
  if (last - first > kFew) return join_many(work, first, last);
  if (last - first > 1) return join_few(work, first, last);
  emit(work, work.symbols[first], work.text.substr(work.begins[first], work.begins[last] - work.begins[first]));
}

uint32_t BpeEncoder::join_of(int32_t left, int32_t right) const {
  return joins_.find(PairMap::key(left, right));
}

// Look at all pairs for the best one, the leftmost of equals, until none joins.
void BpeEncoder::join_few(Work& work, size_t first, size_t last) const {
  int32_t symbols[kFew];
  uint32_t joins[kFew], begins[kFew + 1];
  size_t size = last - first;
  std::copy(work.symbols.begin() + first, work.symbols.begin() + last, symbols);
  std::copy(work.begins.begin() + first, work.begins.begin() + last + 1, begins);
  for (size_t i = 0; i + 1 < size; ++i) joins[i] = join_of(symbols[i], symbols[i + 1]);
  while (size > 1) {
    size_t best = size;
    uint32_t best_rank = ~0u;
    for (size_t i = 0; i + 1 < size; ++i)
      if (joins[i] != PairMap::kAbsent && rank_of_[joins[i]] < best_rank) best_rank = rank_of_[joins[best = i]];
    if (best == size) break;
    symbols[best] = static_cast<int32_t>(joins[best]);
    --size;
    std::copy(symbols + best + 2, symbols + size + 1, symbols + best + 1);
    std::copy(joins + best + 1, joins + size, joins + best);
    std::copy(begins + best + 2, begins + size + 2, begins + best + 1);
    if (best > 0) joins[best - 1] = join_of(symbols[best - 1], symbols[best]);
    if (best + 1 < size) joins[best] = join_of(symbols[best], symbols[best + 1]);
  }
  for (size_t i = 0; i < size; ++i) emit(work, symbols[i], work.text.substr(begins[i], begins[i + 1] - begins[i]));
}

// The same with a heap of (rank, place). An entry is stale if the pair that begins there has another rank by now.
void BpeEncoder::join_many(Work& work, size_t first, size_t last) const {
  auto &joins = work.joins, &next = work.next, &previous = work.previous;
  auto& heap = work.heap;
  const size_t size = last - first;
  int32_t* symbol = work.symbols.data() + first;
  joins.assign(size, PairMap::kAbsent);
  next.resize(size);
  previous.resize(size);
  heap.clear();
  const auto worse = std::greater<uint64_t>();
  const auto consider = [&](uint32_t left, uint32_t right) {
    joins[left] = right < size ? join_of(symbol[left], symbol[right]) : PairMap::kAbsent;
    if (joins[left] != PairMap::kAbsent) heap.push_back(static_cast<uint64_t>(rank_of_[joins[left]]) << 32 | left);
    return joins[left] != PairMap::kAbsent;
  };
  for (uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
    consider(i, i + 1);
  }
  std::make_heap(heap.begin(), heap.end(), worse);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    const uint32_t left = static_cast<uint32_t>(heap.back()), rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (joins[left] == PairMap::kAbsent || rank_of_[joins[left]] != rank) continue;
    const uint32_t right = next[left];
    symbol[left] = static_cast<int32_t>(joins[left]);
    joins[right] = PairMap::kAbsent;
    next[left] = next[right];
    if (next[left] < size) previous[next[left]] = left;
    if (consider(left, next[left])) std::push_heap(heap.begin(), heap.end(), worse);
    if (left > 0 && consider(previous[left], left)) std::push_heap(heap.begin(), heap.end(), worse);
  }
  for (uint32_t i = 0; i < size; i = next[i]) {
    const uint32_t begin = work.begins[first + i], end = work.begins[first + next[i]];
    emit(work, symbol[i], work.text.substr(begin, end - begin));
  }
}

// Append a symbol's id; a character without one becomes its bytes or <unk>.
void BpeEncoder::emit(Work& work, int32_t symbol, std::string_view text) const {
  if (symbol <= kOwn) return work.ids.push_back(kOwn - symbol);
  if (symbol >= 0 && piece_of_[symbol] >= 0) return work.ids.push_back(piece_of_[symbol]);
  if (byte_fallback_) {
    if (work.spaces && text == " ") text = kSpaceText;
    for (const char byte : text) work.ids.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  } else if (work.ids.empty() || work.ids.back() != unk_id_) {
    work.ids.push_back(unk_id_);
  }
}

}  // namespace minillama::bpe
