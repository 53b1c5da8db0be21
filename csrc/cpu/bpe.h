// The tokenizer's compiled core: minillama/tokenizer/{word_counts,bpe,bpe_encoder}.py in C++, with equal results.
//
//   word_counts.cpp   text -> how often each segment occurs, alphabet          O(bytes)
//   bpe.cpp           segments -> merged pieces in order                       O(1) for each neighbour of each merge
//   byte_bpe_training.cpp  the same for byte-level BPE, without the rules for pieces
//   bpe_encoder.cpp   text -> ids: cuts, cache, joining by score               O(bytes), O(n log n) where no cut helps
//
// No Python in it. Errors are std::exceptions. Counts are 64-bit.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bpe_maps.h"

namespace minillama::bpe {

constexpr uint32_t kSpace = 0x2581;     // the visible space of SentencePiece
constexpr uint32_t kReserved = 0x2585;  // lines that hold it are skipped
constexpr std::string_view kSpaceText = "\xE2\x96\x81", kBadText = "\xEF\xBF\xBD", kBoundaryText = "\x1F";

// ---- training

// Classes of characters: scripts, and these.
constexpr uint8_t kAnyScript = 0, kNotAscii = 252, kMaybeMeta = 253, kDigit = 254, kSpaceClass = 255;

struct ReadingReport {
  uint64_t lines = 0, long_lines = 0, reserved_lines = 0, bytes = 0, characters = 0;
};

// Counts segments: maximal runs of characters that could share a piece. See word_counts.py for the rules.
// In segments U+2581 is written ' ', which no normalised text contains.
class SegmentCounter {
 public:
  // classes: (first, last, class) code point ranges; all others get `common`.
  SegmentCounter(const std::vector<std::string>& meta_pieces, const std::vector<std::array<uint32_t, 3>>& classes,
                 uint8_t common, uint64_t max_line_bytes, unsigned threads);

  void feed(std::string_view block, bool is_last);
  ReadingReport report() const;
  StringCounts take_counts();
  const std::vector<uint8_t>& classes() const { return class_of_; }

 private:
  struct Shard {
    StringCounts counts;
    std::array<uint64_t, 128> single{};  // counts of segments of one ASCII character
    ReadingReport report;
    std::string line;  // the normalised line
  };
  size_t finish_rest(std::string_view block, bool is_last);
  void share_lines(std::string_view lines);
  void take_lines(Shard& shard, std::string_view lines) const;
  void take_line(Shard& shard, std::string_view line) const;
  bool normalise(Shard& shard, std::string_view line, uint64_t& characters) const;
  void count_segments(Shard& shard) const;

  std::vector<uint8_t> class_of_;      // by code point
  std::array<uint8_t, 256> class_of_byte_;  // the same, or kNotAscii or kMaybeMeta, which say to look closer
  PrefixSet meta_;
  uint64_t max_line_bytes_;
  std::vector<Shard> shards_;
  std::string rest_;
  bool too_long_ = false;
};

struct Alphabet {
  std::vector<uint32_t> characters;  // in their order in the vocabulary
  uint64_t uncovered = 0;
};
Alphabet choose_alphabet(const StringCounts& counts, float coverage);

// Learns pieces from segments; the same choices as bpe.py's PieceTrainer.
class PieceTrainer {
 public:
  PieceTrainer(StringCounts counts, const std::vector<uint32_t>& alphabet, const std::vector<uint8_t>& class_of,
               uint32_t max_piece_length);

  // For byte-level BPE: the symbols are the 256 bytes in this order, any two may be joined, and of pairs that occur
  // equally often the one with the lower left symbol is taken, then the one with the lower right symbol.
  PieceTrainer(const StringCounts& words, std::string_view bytes);

  // The next pairs of symbols, at most `most`; fewer when none occurs any more. Each makes the next symbol.
  std::vector<std::pair<uint32_t, uint32_t>> learn_pairs(size_t most);

  // The next pieces, at most `most`; fewer when no admissible pair is left.
  std::vector<std::string> learn(size_t most);
  uint64_t last_count() const { return last_count_; }
  uint64_t segments() const { return weights_.size(); }

 private:
  static constexpr int32_t kBarrier = INT32_MIN;
  static constexpr uint32_t kNoPair = ~0u - 1;
  struct Symbol {
    uint64_t text;    // where its bytes begin
    uint32_t bytes, length;
    uint8_t script;
    bool starts_with_space, ends_with_space;
  };
  struct Pair {
    uint32_t left, right;
    uint64_t count = 0;
    uint32_t* places = nullptr;  // where it was found
    uint32_t size = 0;           // how many these are, stale ones included
  };
  struct Place {
    int32_t slot;  // first character of a symbol: its id; last one of several: minus its length; kBarrier at ends
    uint32_t pair;     // the pair whose left symbol begins here
    uint32_t segment;  // index of the weight
  };
  struct Candidate {  // of one count
    uint64_t key;     // length and first bytes: decides nearly all comparisons; or both symbols
    uint32_t pair;
  };

  void lay_out(StringCounts& counts, const std::vector<uint32_t>& alphabet);
  void add_symbol(std::string_view text, uint32_t length, uint8_t script);
  void add_segment(std::string_view text, uint64_t count, const std::vector<int32_t>& symbol_of);
  void add_word(std::string_view word, uint64_t count, const std::array<int32_t, 256>& symbol_of);
  void find_first_pairs();
  bool admissible(uint32_t left, uint32_t right) const;
  uint32_t new_pair(uint32_t left, uint32_t right);
  void note(uint32_t pair, uint32_t place);
  void hand_out_places();
  void queue(uint32_t pair);
  bool fill_level();
  Candidate candidate(uint32_t pair) const;
  bool comes_later(const Candidate& a, const Candidate& b) const;
  int compare_texts(uint32_t a, uint32_t b) const;
  uint32_t best_pair();
  void join(uint32_t pair);
  void join_at(uint32_t place, uint32_t pair, int32_t symbol);
  uint32_t neighbour_pair(std::vector<std::pair<int32_t, uint32_t>>& known, uint32_t other, uint32_t left,
                          uint32_t right, int32_t symbol);

  uint32_t max_piece_length_;
  bool ties_by_symbols_ = false;  // not by length and text
  std::string text_;  // of all symbols
  std::vector<Symbol> symbols_;
  std::vector<Place> places_;
  std::vector<uint64_t> weights_;  // by segment: how often it occurs
  std::vector<Pair> pairs_;
  Rows<uint32_t> rows_;                                   // the places of all pairs
  std::vector<std::pair<uint32_t, uint32_t>> noted_;      // (pair, place) of the merge going on
  uint32_t first_fresh_ = 0;                              // pairs from here on are of the merge going on
  std::vector<std::pair<int32_t, uint32_t>> before_, after_;  // by symbol: (made at symbol, pair)
  static constexpr uint64_t kBuckets = 1 << 16;
  std::vector<std::vector<uint32_t>> buckets_{kBuckets};  // by count: queued pairs
  std::vector<std::pair<uint64_t, uint32_t>> large_;      // a heap of (count, pair) for larger counts
  uint64_t level_ = ~0ull, last_count_ = 0;               // the count being worked on
  std::vector<Candidate> candidates_;                     // a heap of the pairs of that count
};

// ---- encoding

constexpr uint64_t kNeighbourBits = 1 << 20;

enum Kind { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

struct PieceRow {
  std::string text;
  int64_t rank;  // smaller joins first
  int kind;
};

// The order of a score's bits: the best is the smallest, and -0.0 comes after 0.0.
inline int64_t rank_of_score(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 31 ? static_cast<int64_t>(bits & 0x7FFFFFFF) : -static_cast<int64_t>(bits) - 1;
}

// Short texts seen and their ids; a new one takes the place of an older one. Used by one call at a time. A text is given
// as its leading spaces and the rest: indentation may be long.
class SegmentCache {
 public:
  static constexpr size_t kMostSpaces = 1 << 12, kMostBytes = 24, kMostIds = 24;
  struct alignas(64) Entry {  // two cache lines, of which the second is rarely read
    uint64_t key[3] = {};     // the rest, then zeros
    uint32_t size = 0;        // leading spaces and bytes of the rest, in one number; 0: free
    uint32_t count = 0;       // of ids; 0: to be filled
    int32_t ids[kMostIds];
  };

  // The entry of a text, taken for it now if there was none. `may_read_on`: 8 bytes after its end may be read.
  Entry& at(uint32_t spaces, std::string_view rest, bool may_read_on);

 private:
  static constexpr size_t kFewest = 1 << 10, kMost = 1 << 16;  // entries
  std::vector<Entry> table_ = std::vector<Entry>(kFewest);
  size_t taken_ = 0;
};

// The caches of an encoder that is used by several threads: each call has one to itself.
class CachePool {
 public:
  std::unique_ptr<SegmentCache> take() {
    const std::lock_guard<std::mutex> guard(lock_);
    if (idle_.empty()) return std::make_unique<SegmentCache>();
    std::unique_ptr<SegmentCache> cache = std::move(idle_.back());
    idle_.pop_back();
    return cache;
  }
  void give_back(std::unique_ptr<SegmentCache> cache) {
    const std::lock_guard<std::mutex> guard(lock_);
    idle_.push_back(std::move(cache));
  }

 private:
  std::mutex lock_;
  std::vector<std::unique_ptr<SegmentCache>> idle_;
};

// Encodes with a SentencePiece BPE vocabulary; the same ids as bpe_encoder.py. May be used by several threads at once.
class BpeEncoder {
 public:
  BpeEncoder(std::vector<PieceRow> pieces, int32_t unk_id, bool byte_fallback);

  // The ids of a text in valid UTF-8; `spaces`: ' ' stands for U+2581; `dummy_prefix`: one more stands in front.
  std::vector<int32_t> encode(std::string_view text, bool dummy_prefix, bool spaces) const;

 private:
  struct Work {  // what one call needs
    bool spaces = false;
    SegmentCache* cache = nullptr;
    std::vector<int32_t> ids;
    std::string_view text;         // the segment being joined
    std::vector<int32_t> symbols;  // of its characters
    std::vector<uint32_t> begins;  // where each begins in the text, and the end
    std::vector<uint32_t> joins;   // piece that a symbol makes with the next
    std::vector<uint32_t> next, previous;
    std::vector<uint64_t> heap;
  };
  struct Reader;
  void number_symbols();
  void rank_scores();
  void find_joins();
  void find_neighbours();
  int32_t symbol_of(uint32_t code) const { return code < symbol_of_.size() ? symbol_of_[code] : -1; }
  bool neighbours(int32_t left, int32_t right) const;
  void encode_segments(Work& work, std::string_view text, bool dummy_prefix) const;
  void encode_segment(Work& work, std::string_view text, bool may_read_on) const;
  void join(Work& work, std::string_view text) const;
  void parse(Work& work, std::string_view text) const;
  void join_few(Work& work) const;
  void join_many(Work& work) const;
  void emit(Work& work, int32_t symbol, std::string_view text) const;
  std::vector<int32_t> encode_with_unused(std::string_view text) const;

  std::vector<PieceRow> pieces_;
  int32_t unk_id_;
  bool byte_fallback_, has_unused_ = false;
  std::array<int32_t, 256> byte_ids_{};
  std::unordered_map<std::string_view, int32_t> id_of_;  // what a text can match
  PrefixSet own_;                                        // user-defined pieces
  std::vector<int32_t> symbol_of_;  // by code point: a symbol, or -1: in no piece
  std::vector<int32_t> piece_of_;   // by symbol: its id, or -1 for a character that is no piece
  std::vector<uint32_t> rank_of_;   // by id: 0 joins first
  PairMap joins_, neighbours_;          // pairs of symbols that join, and to what; characters side by side in a piece
  std::array<int32_t, 128> ascii_{};    // symbols, ' ' being U+2581
  std::array<std::array<bool, 128>, 128> ascii_neighbours_{};  // the same pairs again
  std::vector<uint64_t> maybe_neighbours_;  // bits by hash: a 0 spares looking
  mutable CachePool caches_;
};

}  // namespace minillama::bpe
