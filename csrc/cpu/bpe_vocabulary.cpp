// Loading a vocabulary for bpe_encoder.cpp: symbols as numbers, which of them join and to what, where to cut.

#include <algorithm>
#include <stdexcept>

#include "bpe.h"

namespace minillama::bpe {

BpeEncoder::BpeEncoder(std::vector<PieceRow> pieces, int32_t unk_id, bool byte_fallback)
    : pieces_(std::move(pieces)), unk_id_(unk_id), byte_fallback_(byte_fallback) {
  std::vector<std::string> own;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const auto& [text, rank, kind] = pieces_[i];
    if (kind == kByte) byte_ids_[std::stoul(text.substr(3, 2), nullptr, 16)] = static_cast<int32_t>(i);
    if ((kind != kNormal && kind != kUserDefined && kind != kUnused) || text == std::string_view("\0", 1)) continue;
    id_of_[text] = static_cast<int32_t>(i);
    has_unused_ |= kind == kUnused;
    if (kind == kUserDefined) own.push_back(text);
  }
  own_ = PrefixSet(std::move(own));
  number_symbols();
  rank_scores();
  find_joins();
  find_neighbours();
}

// Symbols are the pieces, by id, then the characters that occur in pieces without being one.
void BpeEncoder::number_symbols() {
  piece_of_.assign(pieces_.size(), -1);
  for (const auto& [text, id] : id_of_) piece_of_[id] = id;
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (piece_of_[id] < 0) continue;
    const std::string& text = pieces_[id].text;
    int32_t before = -1;
    for (size_t at = 0; at < text.size();) {
      const Character character = character_at(text, at);
      if (!character.size) throw std::invalid_argument("a piece is not UTF-8");
      if (symbol_of_.size() <= character.code) symbol_of_.resize(character.code + 1, -1);
      int32_t& symbol = symbol_of_[character.code];
      if (symbol < 0) {
        const auto known = id_of_.find(std::string_view(text).substr(at, character.size));
        symbol = known != id_of_.end() ? known->second : static_cast<int32_t>(piece_of_.size());
        if (known == id_of_.end()) piece_of_.push_back(-1);
      }
      if (before >= 0) neighbours_.insert(PairMap::key(before, symbol), 1);
      before = symbol;
      at += character.size;
    }
  }
}

// Faster ways to ask whether two characters are side by side in a piece.
void BpeEncoder::find_neighbours() {
  for (uint32_t code = 0; code < 128; ++code) ascii_[code] = symbol_of(code == ' ' ? kSpace : code);
  for (size_t left = 0; left < 128; ++left)
    for (size_t right = 0; right < 128; ++right)
      ascii_neighbours_[left][right] =
          ascii_[left] >= 0 && ascii_[right] >= 0 &&
          neighbours_.find(PairMap::key(ascii_[left], ascii_[right])) != PairMap::kAbsent;
  maybe_neighbours_.assign(kNeighbourBits / 64, 0);
  neighbours_.for_each([&](uint64_t key) {
    const uint64_t bit = mix(key) % kNeighbourBits;
    maybe_neighbours_[bit / 64] |= 1ull << bit % 64;
  });
}

void BpeEncoder::rank_scores() {
  std::vector<int64_t> sorted;
  for (const PieceRow& piece : pieces_) sorted.push_back(piece.rank);
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  for (const PieceRow& piece : pieces_) {
    const auto place = std::lower_bound(sorted.begin(), sorted.end(), piece.rank) - sorted.begin();
    rank_of_.push_back(static_cast<uint32_t>(place));
  }
}

// A polynomial hash, modulo 2^31 - 1 to two bases: that of each prefix or suffix of a text costs one step more.
class Polynomial {
 public:
  // The hash of text + byte from that of text.
  static Polynomial append(Polynomial hash, char byte) {
    return {reduce(hash.a_ * kBaseA + value(byte)), reduce(hash.b_ * kBaseB + value(byte))};
  }
  // The hash of byte + text; `power` is that of the text's length.
  static Polynomial prepend(Polynomial hash, char byte, Polynomial power) {
    return {reduce(value(byte) * power.a_ + hash.a_), reduce(value(byte) * power.b_ + hash.b_)};
  }
  static Polynomial power_after(Polynomial power) { return {reduce(power.a_ * kBaseA), reduce(power.b_ * kBaseB)}; }
  static Polynomial zero() { return {0, 0}; }
  static Polynomial one() { return {1, 1}; }
  uint64_t key() const { return a_ << 31 | b_; }

 private:
  static constexpr uint64_t kPrime = (1ull << 31) - 1, kBaseA = 0x4F1BBCDC, kBaseB = 0x6A09E667;
  Polynomial(uint64_t a, uint64_t b) : a_(a), b_(b) {}
  static uint64_t value(char byte) { return static_cast<unsigned char>(byte) + 1; }
  static uint64_t reduce(uint64_t x) {  // x < 2^62 + 2^31: a remainder without a division
    x = (x & kPrime) + (x >> 31);
    x = (x & kPrime) + (x >> 31);
    return x >= kPrime ? x - kPrime : x;
  }
  uint64_t a_, b_;
};

// For each piece and each place inside it: do the two sides exist as symbols?
void BpeEncoder::find_joins() {
  PairMap by_hash(id_of_.size() + 1);
  joins_ = PairMap(id_of_.size() * 4);  // a piece of n characters has n - 1 insides, most of them no joins
  std::vector<Polynomial> prefixes, suffixes;
  const auto hash_sides = [&](const std::string& text) {
    prefixes.assign(1, Polynomial::zero());
    for (const char byte : text) prefixes.push_back(Polynomial::append(prefixes.back(), byte));
    suffixes.assign(text.size() + 1, Polynomial::zero());
    Polynomial power = Polynomial::one();
    for (size_t at = text.size(); at-- > 0; power = Polynomial::power_after(power))
      suffixes[at] = Polynomial::prepend(suffixes[at + 1], text[at], power);
  };
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (piece_of_[id] < 0) continue;
    hash_sides(pieces_[id].text);
    if (by_hash.insert(prefixes.back().key(), static_cast<uint32_t>(id)) != id)
      throw std::invalid_argument("two pieces are the same, or made to have the same hash");
  }
  const auto side = [&](std::string_view text, Polynomial hash) -> int32_t {
    const Character character = character_at(text, 0);
    if (character.size == text.size()) return symbol_of(character.code);
    const uint32_t id = by_hash.find(hash.key());
    return id != PairMap::kAbsent && pieces_[id].text == text ? static_cast<int32_t>(id) : -1;
  };
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (piece_of_[id] < 0) continue;
    const std::string_view text = pieces_[id].text;
    hash_sides(pieces_[id].text);
    for (size_t at = character_at(text, 0).size; at < text.size(); at += character_at(text, at).size) {
      const int32_t left = side(text.substr(0, at), prefixes[at]), right = side(text.substr(at), suffixes[at]);
      if (left >= 0 && right >= 0) joins_.insert(PairMap::key(left, right), static_cast<uint32_t>(id));
    }
  }
}

}  // namespace minillama::bpe
