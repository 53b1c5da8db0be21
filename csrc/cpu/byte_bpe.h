// Byte-level BPE: the text is cut into words by a pattern, and the bytes of each word are joined pair by pair. The same
// ids as minillama/tokenizer/byte_bpe.py.
//
//   byte_words.cpp         text -> words          O(bytes)
//   byte_bpe.cpp           words -> ids           O(bytes) for words seen before, O(n log n) for a new one of n bytes
//   byte_bpe_training.cpp  words -> merges        O(1) for each neighbour of each merge
//
// No Python in it. Errors are std::exceptions.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bpe.h"

namespace minillama::bpe {

// What a character is to the patterns: \p{L}, \p{N}, \s, or none of these.
enum class CharacterClass : uint8_t { kOther, kLetter, kNumber, kSpace };

// The patterns that are known, in the order of byte_bpe.KNOWN_PATTERNS.
enum class Pattern : uint8_t { kLlama3, kGpt2, kSingleDigits };

// Cuts a text into words.
class WordSplitter {
 public:
  // classes: (first, last, class) ranges of code points; all others are kOther.
  WordSplitter(const std::vector<std::array<uint32_t, 3>>& classes, std::vector<Pattern> patterns);

  // Call take(word) for each word in turn, none of them empty; together they are the text, which is valid UTF-8.
  template <typename Take>
  void for_each(std::string_view text, const Take& take) const {
    if (!text.empty()) split(text, 0, take);
  }

 private:
  template <typename Take>
  void split(std::string_view text, size_t level, const Take& take) const {
    if (level == patterns_.size()) {
      take(text);
      return;
    }
    for (size_t at = 0; at < text.size();) {
      const size_t end = word_end(patterns_[level], text, at);
      split(text.substr(at, end - at), level + 1, take);
      at = end;
    }
  }

  struct Next {  // the character at a place; at the end of the text its size is 0
    CharacterClass kind = CharacterClass::kOther;
    uint32_t size = 0;
  };
  Next next(std::string_view text, size_t at) const;
  size_t skip(CharacterClass kind, std::string_view text, size_t at, size_t most = SIZE_MAX) const;
  size_t word_end(Pattern pattern, std::string_view text, size_t at) const;
  size_t llama3_end(std::string_view text, size_t at) const;
  size_t gpt2_end(std::string_view text, size_t at) const;
  size_t space_end(std::string_view text, size_t at, bool by_line) const;
  size_t digit_end(std::string_view text, size_t at) const;

  std::vector<CharacterClass> class_of_;  // by code point
  std::vector<Pattern> patterns_;
};

// Numbers of texts; one may have several, told apart by `left`, the length of its left part. Open addressing.
class TextNumbers {
 public:
  static constexpr uint32_t kAbsent = ~0u;
  explicit TextNumbers(size_t expected);
  uint32_t find(std::string_view text, uint32_t left = 0) const;
  void insert(std::string_view text, uint32_t number, uint32_t left = 0);  // replaces the number that was there

 private:
  struct Slot {
    const char* data = nullptr;  // nullptr: free
    uint32_t size = 0, left = 0, number = 0;
  };
  size_t place_of(std::string_view text, uint32_t left) const;

  std::vector<Slot> slots_;
  Rows<char> texts_;
};

struct Merge {
  std::string left, right;
};

// Encodes with a byte-level vocabulary. May be used by several threads at once.
class ByteBpeEncoder {
 public:
  // tokens: the bytes of each, with its id. merges: pairs in the order of their ranks; without any, if
  // `ids_are_ranks`, a pair ranks by the id of what it joins to. whole_words: a word in the vocabulary is one token
  // without any joining.
  ByteBpeEncoder(const std::vector<std::string>& tokens, const std::vector<int32_t>& ids,
                 const std::vector<Merge>& merges, bool ids_are_ranks, bool whole_words, WordSplitter splitter);

  std::vector<int32_t> encode(std::string_view text) const;  // valid UTF-8
  const WordSplitter& splitter() const { return splitter_; }

 private:
  struct Part {  // of a word
    uint32_t begin, rank;  // rank of the pair that it makes with the next
  };
  uint32_t rank(std::string_view joined, uint32_t left) const;
  void add_word(std::string_view word, SegmentCache& cache, std::vector<int32_t>& ids, std::vector<Part>& parts) const;
  void join(std::string_view word, std::vector<int32_t>& ids, std::vector<Part>& parts) const;
  void join_few(std::string_view word, std::vector<Part>& parts) const;
  void join_many(std::string_view word, std::vector<Part>& parts) const;

  TextNumbers ids_, ranks_;
  bool ids_are_ranks_, whole_words_;
  size_t longest_ = 0;  // bytes of the longest token or merge: no pair makes more
  WordSplitter splitter_;
  mutable CachePool caches_;
};

// Learns merges: first all texts, then pairs.
class ByteBpeTrainer {
 public:
  // bytes: all 256, in the order of their ids.
  ByteBpeTrainer(std::string bytes, WordSplitter splitter);

  void feed(std::string_view text);  // valid UTF-8
  // The next pairs of ids, at most `most`; fewer when none occurs any more. Each makes the next id, from 256 on.
  std::vector<std::pair<uint32_t, uint32_t>> learn(size_t most);

 private:
  std::string bytes_;
  WordSplitter splitter_;
  StringCounts counts_;
  std::unique_ptr<PieceTrainer> trainer_;
};

}  // namespace minillama::bpe
