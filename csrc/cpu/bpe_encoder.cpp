// Encoding: the text is cut wherever two characters stand side by side in no piece, for no piece can reach across;
// what lies between is looked up in a cache or joined by score. The same ids as minillama/tokenizer/bpe_encoder.py.
//
// Joining compares numbers, not strings: a piece can only arise from two symbols that are pieces or characters
// themselves, so all (left, right) -> piece are listed once, when the vocabulary is loaded.

#include "bpe.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace minillama::bpe {

constexpr size_t kFew = 24;   // symbols up to which looking at all pairs beats a heap
constexpr int32_t kOwn = -2;  // symbols kOwn - id: a user-defined piece, which joins nothing

// ---- the cache

// The first 8 bytes of a text of `size` bytes, zeros behind it.
static uint64_t first_word(const char* data, size_t size, bool may_read_on) {
  if (size >= 8) return load<uint64_t>(data);
  if (may_read_on && kLittleEndian) return size ? load<uint64_t>(data) & ~0ull >> (64 - 8 * size) : 0;
  uint64_t word = 0;
  std::memcpy(&word, data, size);
  return word;
}

SegmentCache::Entry& SegmentCache::at(uint32_t spaces, std::string_view rest, bool may_read_on) {
  uint64_t key[3] = {};
  for (size_t i = 0, left = rest.size(); left > 0; ++i, left -= std::min<size_t>(left, 8))
    key[i] = first_word(rest.data() + 8 * i, left, may_read_on);
  const uint32_t size = spaces << 8 | static_cast<uint32_t>(rest.size());
  const uint64_t hash = mix(key[0] ^ mix(key[1] + key[2] * 0x9E3779B97F4A7C15ull + size));
  const size_t place = hash & (table_.size() - 1);
  Entry &first = table_[place], &second = table_[place ^ 1];
  const auto holds = [&](const Entry& entry) {
    return entry.key[0] == key[0] && entry.key[1] == key[1] && entry.key[2] == key[2] && entry.size == size;
  };
  if (holds(first)) return first;
  if (holds(second)) return second;
  if (++taken_ > table_.size() && table_.size() < kMost) {  // crowded: a larger one, empty
    table_ = std::vector<Entry>(table_.size() * 4);
    taken_ = 0;
    return at(spaces, rest, may_read_on);
  }
  second = first;
  std::copy(key, key + 3, first.key);
  first.size = size;
  first.count = 0;
  return first;
}

// ---- cutting

// Characters and whether they touch the one before.
struct BpeEncoder::Reader {
  const BpeEncoder& encoder;
  std::string_view text;
  bool spaces;
  size_t at = 0;
  unsigned char left_byte = ' ';  // of the character before, if that is ASCII; else 0x80
  int32_t left = -1;              // its symbol

  // Take a character unconditionally.
  void take() { move(character()); }

  // Take characters as long as each touches the one before.
  void take_touching() {
    while (at < text.size()) {
      const auto byte = static_cast<unsigned char>(text[at]);
      if (byte < 0x80 && left_byte < 0x80 && spaces) {
        if (!encoder.ascii_neighbours_[left_byte][byte]) return;
        left_byte = byte;
        left = encoder.ascii_[byte];
        ++at;
      } else {
        const Character next = character();
        if (!encoder.neighbours(left, symbol(next))) return;
        move(next);
      }
    }
  }

 private:
  Character character() const {
    const Character character = character_at(text, at);
    if (!character.size) throw std::invalid_argument("the text is not UTF-8");
    return character;
  }
  int32_t symbol(Character character) const {
    return encoder.symbol_of(spaces && character.code == ' ' ? kSpace : character.code);
  }
  void move(Character character) {
    left = symbol(character);
    left_byte = character.code < 0x80 ? static_cast<unsigned char>(character.code) : 0x80;
    at += character.size;
  }
};

bool BpeEncoder::neighbours(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return false;
  const uint64_t key = PairMap::key(left, right), bit = mix(key) % kNeighbourBits;
  return maybe_neighbours_[bit / 64] >> bit % 64 & 1 && neighbours_.find(key) != PairMap::kAbsent;
}

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
  std::unique_ptr<SegmentCache> cache = caches_.take();
  Work work;
  work.spaces = spaces;
  work.cache = cache.get();
  work.ids.reserve(text.size() / 3 + 8);
  encode_segments(work, text, dummy_prefix);
  caches_.give_back(std::move(cache));
  return std::move(work.ids);
}

void BpeEncoder::encode_segments(Work& work, std::string_view text, bool dummy_prefix) const {
  Reader reader{*this, text, work.spaces};
  if (dummy_prefix) {
    reader.left = symbol_of(kSpace);
    reader.take_touching();
    encode_segment(work, std::string(1, ' ').append(text.substr(0, reader.at)), false);
  }
  while (reader.at < text.size()) {
    const size_t start = reader.at;
    reader.take();
    const size_t second = reader.at;
    reader.take_touching();
    const std::string_view segment = text.substr(start, reader.at - start);
    if (reader.at == second && own_.empty()) emit(work, reader.left, segment);  // one character
    else encode_segment(work, segment, reader.at + 8 <= text.size());
  }
}

void BpeEncoder::encode_segment(Work& work, std::string_view text, bool may_read_on) const {
  const size_t spaces = std::min(text.find_first_not_of(' '), text.size());
  const std::string_view rest = text.substr(spaces);
  if (rest.size() > SegmentCache::kMostBytes || spaces > SegmentCache::kMostSpaces) return join(work, text);
  SegmentCache::Entry& entry = work.cache->at(static_cast<uint32_t>(spaces), rest, may_read_on);
  const size_t before = work.ids.size();
  const bool after_unknown = before > 0 && work.ids.back() == unk_id_;  // unknowns in a row are one id
  if (entry.count) {
    for (uint32_t i = after_unknown && entry.ids[0] == unk_id_; i < entry.count; ++i) work.ids.push_back(entry.ids[i]);
    return;
  }
  join(work, text);
  const size_t count = work.ids.size() - before;
  if (after_unknown || count > SegmentCache::kMostIds) return;  // the first may have become part of the one before
  std::copy(work.ids.begin() + before, work.ids.end(), entry.ids);
  entry.count = static_cast<uint32_t>(count);
}

// ---- joining

void BpeEncoder::parse(Work& work, std::string_view text) const {
  work.text = text;
  work.symbols.clear();
  work.begins.clear();
  for (size_t at = 0; at < text.size();) {
    work.begins.push_back(static_cast<uint32_t>(at));
    if (own_.may_begin_with(static_cast<unsigned char>(text[at]))) {
      if (const size_t length = own_.longest(text.substr(at))) {
        work.symbols.push_back(kOwn - id_of_.at(text.substr(at, length)));
        at += length;
        continue;
      }
    }
    const Character character = character_at(text, at);
    work.symbols.push_back(symbol_of(work.spaces && character.code == ' ' ? kSpace : character.code));
    at += character.size;
  }
  work.begins.push_back(static_cast<uint32_t>(text.size()));
}

void BpeEncoder::join(Work& work, std::string_view text) const {
  parse(work, text);
  if (work.symbols.size() > kFew) join_many(work);
  else join_few(work);
}

// Look at all pairs for the best one, the leftmost of equals, until none joins.
void BpeEncoder::join_few(Work& work) const {
  int32_t* symbols = work.symbols.data();
  uint32_t *begins = work.begins.data(), joins[kFew];
  size_t size = work.symbols.size();
  const auto join_at = [&](size_t i) { joins[i] = joins_.find(PairMap::key(symbols[i], symbols[i + 1])); };
  for (size_t i = 0; i + 1 < size; ++i) join_at(i);
  while (true) {
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
    if (best > 0) join_at(best - 1);
    if (best + 1 < size) join_at(best);
  }
  for (size_t i = 0; i < size; ++i) emit(work, symbols[i], work.text.substr(begins[i], begins[i + 1] - begins[i]));
}

// The same with a heap of (rank, place). An entry is stale if the pair that begins there has another rank by now.
void BpeEncoder::join_many(Work& work) const {
  auto &symbols = work.symbols;
  auto &joins = work.joins, &next = work.next, &previous = work.previous;
  auto& heap = work.heap;
  const size_t size = symbols.size();
  joins.assign(size, PairMap::kAbsent);
  next.resize(size);
  previous.resize(size);
  heap.clear();
  const auto worse = std::greater<uint64_t>();
  const auto consider = [&](uint32_t left, uint32_t right) {
    joins[left] = right < size ? joins_.find(PairMap::key(symbols[left], symbols[right])) : PairMap::kAbsent;
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
    const auto left = static_cast<uint32_t>(heap.back()), rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (joins[left] == PairMap::kAbsent || rank_of_[joins[left]] != rank) continue;
    const uint32_t right = next[left];
    symbols[left] = static_cast<int32_t>(joins[left]);
    joins[right] = PairMap::kAbsent;
    next[left] = next[right];
    if (next[left] < size) previous[next[left]] = left;
    if (consider(left, next[left])) std::push_heap(heap.begin(), heap.end(), worse);
    if (left > 0 && consider(previous[left], left)) std::push_heap(heap.begin(), heap.end(), worse);
  }
  for (uint32_t i = 0; i < size; i = next[i])
    emit(work, symbols[i], work.text.substr(work.begins[i], work.begins[next[i]] - work.begins[i]));
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
