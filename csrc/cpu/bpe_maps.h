// What the compiled tokenizer is built from: UTF-8, rows of memory, two hash maps. Plain C++17.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace minillama::bpe {

constexpr uint32_t kCodePoints = 0x110000;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
constexpr bool kLittleEndian = false;
#else
constexpr bool kLittleEndian = true;
#endif

// ---- UTF-8

struct Character {
  uint32_t code;
  uint32_t size;  // bytes; 0: this byte starts no valid sequence
};

// The character at p < end. Overlong forms, surrogates and codes above U+10FFFF are invalid.
inline Character character_at(const unsigned char* p, const unsigned char* end) {
  const auto trail = [&](int i) { return (p[i] & 0xC0) == 0x80; };
  const int64_t left = end - p;
  if (p[0] < 0x80) return {p[0], 1};
  if (p[0] < 0xC2) return {0, 0};
  if (p[0] < 0xE0) {
    if (left < 2 || !trail(1)) return {0, 0};
    return {(p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu), 2};
  }
  if (p[0] < 0xF0) {
    if (left < 3 || !trail(1) || !trail(2)) return {0, 0};
    const uint32_t code = (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    return code < 0x800 || (code >= 0xD800 && code < 0xE000) ? Character{0, 0} : Character{code, 3};
  }
  if (p[0] > 0xF4 || left < 4 || !trail(1) || !trail(2) || !trail(3)) return {0, 0};
  const uint32_t code =
      (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
  return code < 0x10000 || code >= kCodePoints ? Character{0, 0} : Character{code, 4};
}

inline Character character_at(std::string_view text, size_t place) {
  const auto* data = reinterpret_cast<const unsigned char*>(text.data());
  return character_at(data + place, data + text.size());
}

// Write the character to out[4]; returns its size.
inline size_t write_utf8(uint32_t code, char* out) {
  const auto byte = [&](uint32_t lead, int shift) { return static_cast<char>(lead | (code >> shift & 0x3F)); };
  if (code < 0x80) return out[0] = static_cast<char>(code), 1;
  const size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  out[0] = static_cast<char>((0xF00u >> size & 0xF0u) | code >> 6 * (size - 1));
  for (size_t i = 1; i < size; ++i) out[i] = byte(0x80, static_cast<int>(6 * (size - 1 - i)));
  return size;
}

// ---- memory

// Rows of T that never move, cut from large blocks and freed all at once.
template <typename T>
class Rows {
 public:
  T* take(size_t size) {
    if (size > left_) {
      const size_t block = size > kBlock ? size : kBlock;
      blocks_.emplace_back(new T[block]);
      next_ = blocks_.back().get();
      left_ = block;
    }
    left_ -= size;
    return std::exchange(next_, next_ + size);
  }

 private:
  static constexpr size_t kBlock = (1 << 18) / sizeof(T);
  std::vector<std::unique_ptr<T[]>> blocks_;
  T* next_ = nullptr;
  size_t left_ = 0;
};

// ---- hashing

inline uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ull;
  x ^= x >> 32;
  return x;
}

template <typename Word>
uint64_t load(const char* data) {
  Word word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

// The first and the last word of a text, which may overlap.
template <typename Word>
uint64_t both_ends(const char* data, size_t size) {
  return load<Word>(data) << 32 | load<Word>(data + size - sizeof(Word));
}

inline uint64_t hash_bytes(const char* data, size_t size) {
  uint64_t hash = size * 0x9E3779B97F4A7C15ull, tail = 0;
  if (size > 8) {
    for (size_t at = 0; at + 8 < size; at += 8) {
      hash = (hash ^ load<uint64_t>(data + at)) * 0xD6E8FEB86659FD93ull;
      hash ^= hash >> 29;
    }
    tail = load<uint64_t>(data + size - 8);
  } else if (size >= 4) {
    tail = both_ends<uint32_t>(data, size);
  } else if (size >= 2) {
    tail = both_ends<uint16_t>(data, size);
  } else if (size) {
    tail = load<uint8_t>(data);
  }
  return mix(hash ^ tail * 0x9E3779B97F4A7C15ull);
}

// How often each string was added. Open addressing; the strings lie in blocks that never move.
class StringCounts {
 public:
  struct Entry {
    const char* data = nullptr;  // nullptr: free
    uint64_t count = 0;
    uint32_t size = 0, hash = 0;
    std::string_view text() const { return {data, size}; }
  };

  void add(std::string_view text, uint64_t count);
  void add_all(const StringCounts& other);
  size_t size() const { return used_; }
  std::vector<Entry>& entries() { return table_; }  // free ones included
  const std::vector<Entry>& entries() const { return table_; }

 private:
  void grow();

  std::vector<Entry> table_ = std::vector<Entry>(1024);
  size_t used_ = 0;
  Rows<char> texts_;
};

// Strings of which the longest that begins a text is wanted. O(its length * log of their number).
class PrefixSet {
 public:
  PrefixSet() = default;
  explicit PrefixSet(std::vector<std::string> texts) : texts_(std::move(texts)) {
    std::sort(texts_.begin(), texts_.end());
    for (const std::string& text : texts_) first_[static_cast<unsigned char>(text.at(0))] = true;
  }
  bool empty() const { return texts_.empty(); }
  bool may_begin_with(unsigned char byte) const { return first_[byte]; }

  // Its length, 0 if none begins the text.
  size_t longest(std::string_view text) const {
    size_t found = 0, depth = 0;
    for (auto low = texts_.begin(), high = texts_.end(); low < high; ++depth) {  // those with the same first bytes
      if (low->size() == depth) {
        found = depth;
        ++low;
      }
      if (depth == text.size()) break;
      const auto byte = static_cast<unsigned char>(text[depth]);
      const auto at = [&](const std::string& other) { return static_cast<unsigned char>(other[depth]); };
      low = std::partition_point(low, high, [&](const std::string& other) { return at(other) < byte; });
      high = std::partition_point(low, high, [&](const std::string& other) { return at(other) == byte; });
    }
    return found;
  }

 private:
  std::vector<std::string> texts_;  // sorted by bytes
  std::array<bool, 256> first_{};
};

// A map from 64-bit keys (two symbols) to 32-bit values; the key ~0 is not allowed.
class PairMap {
 public:
  static constexpr uint32_t kAbsent = ~0u;
  static uint64_t key(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

  explicit PairMap(size_t expected = 0) { resize(expected * 2); }
  uint32_t find(uint64_t key) const {
    for (size_t at = mix(key) & mask_;; at = (at + 1) & mask_) {
      if (slots_[at].key == key) return slots_[at].value;
      if (slots_[at].key == kFree) return kAbsent;
    }
  }
  template <typename Visit>
  void for_each(Visit visit) const {
    for (const Slot& slot : slots_)
      if (slot.key != kFree) visit(slot.key);
  }
  // The value of the key, which becomes `value` if there was none.
  uint32_t insert(uint64_t key, uint32_t value);

 private:
  static constexpr uint64_t kFree = ~0ull;
  struct Slot {
    uint64_t key = kFree;
    uint32_t value = 0;
  };
  void resize(size_t least);

  std::vector<Slot> slots_;
  size_t mask_ = 0, used_ = 0;
};

}  // namespace minillama::bpe
