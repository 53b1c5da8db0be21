// Learning BPE pieces; the same choices as PieceTrainer in minillama/tokenizer/bpe.py, which explains them.
//
// The segments lie in one row of places, a barrier at each end. A symbol of n characters owns n places: the first holds
// its id, the last one minus n, so that both neighbours of a symbol are found in one step. Each place also names the
// pair that begins there: whether an occurrence is still one is a single comparison, and a neighbour's count is
// reduced without searching. A pair is only ever found while the newer of its symbols is made, so its places are known
// at the end of that merge and are stored in one row.
//
// Counts never grow, so the best count only falls: pairs wait in buckets by count, and only those of the current count
// are ordered by length and text.

#include "bpe.h"

#include <algorithm>
#include <stdexcept>

namespace minillama::bpe {

uint32_t PairMap::insert(uint64_t key, uint32_t value) {
  for (size_t at = mix(key) & mask_;; at = (at + 1) & mask_) {
    if (slots_[at].key == key) return slots_[at].value;
    if (slots_[at].key == kFree) {
      slots_[at] = {key, value};
      if (++used_ * 2 > slots_.size()) resize(slots_.size() * 2);
      return value;
    }
  }
}

void PairMap::resize(size_t least) {
  size_t size = 16;
  while (size < least) size *= 2;
  std::vector<Slot> old(size);
  old.swap(slots_);
  mask_ = size - 1;
  for (const Slot& slot : old) {
    if (slot.key == kFree) continue;
    size_t at = mix(slot.key) & mask_;
    while (slots_[at].key != kFree) at = (at + 1) & mask_;
    slots_[at] = slot;
  }
}

PieceTrainer::PieceTrainer(StringCounts counts, const std::vector<uint32_t>& alphabet,
                           const std::vector<uint8_t>& class_of, uint32_t max_piece_length)
    : max_piece_length_(max_piece_length) {
  for (const uint32_t code : alphabet) {
    char bytes[4];
    const uint8_t character_class = class_of[code];
    const bool plain = character_class != kDigit && character_class != kSpaceClass;
    add_symbol({bytes, write_utf8(code, bytes)}, 1, plain ? character_class : kAnyScript);
    symbols_.back().starts_with_space = symbols_.back().ends_with_space = character_class == kSpaceClass;
  }
  lay_out(counts, alphabet);
  counts = StringCounts();  // its memory is free for the pairs
  find_first_pairs();
}

void PieceTrainer::add_symbol(std::string_view text, uint32_t length, uint8_t script) {
  symbols_.push_back({text_.size(), static_cast<uint32_t>(text.size()), length, script, false, false});
  text_.append(text);
  before_.emplace_back(-1, 0);
  after_.emplace_back(-1, 0);
}

// Put all segments into the row of places; a character outside the alphabet divides a segment.
void PieceTrainer::lay_out(StringCounts& counts, const std::vector<uint32_t>& alphabet) {
  std::vector<int32_t> symbol_of(kCodePoints, -1);
  for (size_t i = 0; i < alphabet.size(); ++i) symbol_of[alphabet[i]] = static_cast<int32_t>(i);
  symbol_of[' '] = symbol_of[kSpace];
  StringCounts parts;  // of divided segments: they may be segments already
  for (auto& entry : counts.entries()) {
    const std::string_view text = entry.data ? entry.text() : std::string_view();
    size_t start = 0;
    bool divided = false;
    for (size_t at = 0; at < text.size();) {
      const Character character = character_at(text, at);
      if (symbol_of[character.code] < 0) {
        if (at > start) parts.add(text.substr(start, at - start), entry.count);
        start = at + character.size;
        divided = true;
      }
      at += character.size;
    }
    if (!divided) continue;
    if (text.size() > start) parts.add(text.substr(start), entry.count);
    entry.count = 0;
  }
  counts.add_all(parts);
  places_.push_back({kBarrier, kNoPair, 0});
  for (const auto& entry : counts.entries())
    if (entry.data && entry.count) add_segment(entry.text(), entry.count, symbol_of);
}

void PieceTrainer::add_segment(std::string_view text, uint64_t count, const std::vector<int32_t>& symbol_of) {
  const Character first = character_at(text, 0);
  if (first.size == text.size()) return;  // one character: nothing to join
  if (places_.size() + text.size() >= kNoPair) throw std::length_error("the corpus has more than 4e9 different places");
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    places_.push_back({symbol_of[character.code], kNoPair, static_cast<uint32_t>(weights_.size())});
    at += character.size;
  }
  places_.push_back({kBarrier, kNoPair, 0});
  weights_.push_back(count);
}

void PieceTrainer::find_first_pairs() {
  PairMap known;
  int32_t right = kBarrier;
  for (const Place& place : places_) {
    const int32_t left = std::exchange(right, place.slot);
    if (left < 0 || right < 0) continue;
    uint32_t pair = known.find(PairMap::key(left, right));
    if (pair == PairMap::kAbsent) pair = known.insert(PairMap::key(left, right), new_pair(left, right));
    if (pair != kNoPair) note(pair, static_cast<uint32_t>(&place - places_.data() - 1));
  }
  hand_out_places();
  noted_ = {};  // it was large this once
}

// A digit that stands alone has no neighbour: the counter has cut there.
bool PieceTrainer::admissible(uint32_t left, uint32_t right) const {
  const Symbol &a = symbols_[left], &b = symbols_[right];
  if (a.length + b.length > max_piece_length_) return false;
  if (b.starts_with_space) return a.ends_with_space && b.ends_with_space;
  if (a.ends_with_space && a.length > 1) return false;
  return a.script == kAnyScript || b.script == kAnyScript || a.script == b.script;
}

// A pair not seen before, or kNoPair if it may not be joined.
uint32_t PieceTrainer::new_pair(uint32_t left, uint32_t right) {
  if (!admissible(left, right)) return kNoPair;
  if (pairs_.size() >= kNoPair) throw std::length_error("the corpus has more than 4e9 different pairs");
  pairs_.push_back({left, right});
  return static_cast<uint32_t>(pairs_.size() - 1);
}

// One occurrence of a pair, its left symbol at `place`.
void PieceTrainer::note(uint32_t pair, uint32_t place) {
  places_[place].pair = pair;
  pairs_[pair].count += weights_[places_[place].segment];
  ++pairs_[pair].size;
  noted_.emplace_back(pair, place);
}

// Store the places of the pairs found last, each pair's in one row, and queue the pairs.
void PieceTrainer::hand_out_places() {
  for (uint32_t pair = first_fresh_; pair < pairs_.size(); ++pair)
    pairs_[pair].places = rows_.take(std::exchange(pairs_[pair].size, 0));
  for (const auto& [pair, place] : noted_) pairs_[pair].places[pairs_[pair].size++] = place;
  noted_.clear();
  for (; first_fresh_ < pairs_.size(); ++first_fresh_) queue(first_fresh_);
}

// ---- the queue

void PieceTrainer::queue(uint32_t pair) {
  const uint64_t count = pairs_[pair].count;
  if (count == level_) {
    candidates_.push_back(candidate(pair));
    std::push_heap(candidates_.begin(), candidates_.end(),
                   [this](const Candidate& a, const Candidate& b) { return comes_later(a, b); });
  } else if (count < kBuckets) {
    buckets_[count].push_back(pair);
  } else {
    large_.emplace_back(count, pair);
    std::push_heap(large_.begin(), large_.end());
  }
}

// Go down to the next count that has waiting pairs, and order those that still have it; false: there are none at all.
bool PieceTrainer::fill_level() {
  std::vector<uint32_t> waiting;
  if (!large_.empty()) {
    level_ = large_.front().first;
    while (!large_.empty() && large_.front().first == level_) {
      waiting.push_back(large_.front().second);
      std::pop_heap(large_.begin(), large_.end());
      large_.pop_back();
    }
  } else {
    uint64_t count = std::min(level_, kBuckets - 1);
    while (count > 0 && buckets_[count].empty()) --count;
    level_ = count;
    waiting.swap(buckets_[count]);
  }
  if (waiting.empty()) return false;
  for (const uint32_t pair : waiting) {
    if (pairs_[pair].count == level_) candidates_.push_back(candidate(pair));
    else queue(pair);  // its count has fallen
  }
  std::make_heap(candidates_.begin(), candidates_.end(),
                 [this](const Candidate& a, const Candidate& b) { return comes_later(a, b); });
  return true;
}

PieceTrainer::Candidate PieceTrainer::candidate(uint32_t pair) const {
  if (ties_by_symbols_) return {PairMap::key(pairs_[pair].left, pairs_[pair].right), pair};
  const Symbol &left = symbols_[pairs_[pair].left], &right = symbols_[pairs_[pair].right];
  uint64_t key = left.length + right.length;  // at most 512
  for (uint32_t i = 0; i < 6; ++i) {
    const uint32_t j = i - left.bytes;
    const char byte = i < left.bytes ? text_[left.text + i] : j < right.bytes ? text_[right.text + j] : '\0';
    key = key << 8 | static_cast<unsigned char>(byte);
  }
  return {key, pair};
}

// Order of a heap: the front is the candidate that comes later than none, shortest and lowest text first.
bool PieceTrainer::comes_later(const Candidate& a, const Candidate& b) const {
  return a.key != b.key ? a.key > b.key : compare_texts(a.pair, b.pair) > 0;
}

int PieceTrainer::compare_texts(uint32_t a, uint32_t b) const {
  const auto joined = [this](uint32_t pair) {
    const Symbol &left = symbols_[pairs_[pair].left], &right = symbols_[pairs_[pair].right];
    return text_.substr(left.text, left.bytes).append(text_, right.text, right.bytes);
  };
  return joined(a).compare(joined(b));
}

// The pair to join next, or kNoPair.
uint32_t PieceTrainer::best_pair() {
  for (;;) {
    while (candidates_.empty())
      if (!fill_level()) return kNoPair;
    std::pop_heap(candidates_.begin(), candidates_.end(),
                  [this](const Candidate& a, const Candidate& b) { return comes_later(a, b); });
    const uint32_t pair = candidates_.back().pair;
    candidates_.pop_back();
    if (pairs_[pair].count == level_) return pair;
    queue(pair);
  }
}

// ---- joining

std::vector<std::string> PieceTrainer::learn(size_t most) {
  std::vector<std::string> pieces;
  while (pieces.size() < most) {
    const uint32_t pair = best_pair();
    if (pair == kNoPair) break;
    last_count_ = pairs_[pair].count;
    join(pair);
    pieces.emplace_back(text_, symbols_.back().text, symbols_.back().bytes);
  }
  return pieces;
}

void PieceTrainer::join(uint32_t pair) {
  const Pair best = pairs_[pair];
  const Symbol left = symbols_[best.left], right = symbols_[best.right];
  const std::string text = text_.substr(left.text, left.bytes).append(text_, right.text, right.bytes);
  const auto symbol = static_cast<int32_t>(symbols_.size());
  add_symbol(text, left.length + right.length, left.script == kAnyScript ? right.script : left.script);
  symbols_.back().starts_with_space = left.starts_with_space;
  symbols_.back().ends_with_space = right.ends_with_space;
  for (uint32_t i = 0; i < best.size; ++i)
    if (places_[best.places[i]].pair == pair) join_at(best.places[i], pair, symbol);
  hand_out_places();
}

void PieceTrainer::join_at(uint32_t place, uint32_t pair, int32_t symbol) {
  const auto [left, right] = std::pair(pairs_[pair].left, pairs_[pair].right);
  const uint32_t middle = place + symbols_[left].length, end = middle + symbols_[right].length;
  const uint64_t weight = weights_[places_[place].segment];
  const int32_t mark = places_[place - 1].slot, other_after = places_[end].slot;
  const uint32_t before = mark < 0 && mark != kBarrier ? place + mark : place - 1;
  const int32_t other_before = places_[before].slot;
  if (other_before >= 0 && places_[before].pair != kNoPair) pairs_[places_[before].pair].count -= weight;
  if (places_[middle].pair != kNoPair) pairs_[places_[middle].pair].count -= weight;
  places_[middle].slot = -1;
  places_[middle].pair = places_[place].pair = kNoPair;
  places_[end - 1].slot = -static_cast<int32_t>(symbols_[symbol].length);
  places_[place].slot = symbol;
  if (other_before >= 0) {
    places_[before].pair = kNoPair;
    const uint32_t made = neighbour_pair(before_, other_before, other_before, symbol, symbol);
    if (made != kNoPair) note(made, before);
  }
  if (other_after >= 0) {
    const uint32_t made = neighbour_pair(after_, other_after, symbol, other_after, symbol);
    if (made != kNoPair) note(made, place);
  }
}

// The pair of the new symbol with a neighbour; `known` remembers it for the rest of this merge.
uint32_t PieceTrainer::neighbour_pair(std::vector<std::pair<int32_t, uint32_t>>& known, uint32_t other, uint32_t left,
                                      uint32_t right, int32_t symbol) {
  auto& [made_at, pair] = known[other];
  if (made_at != symbol) {
    made_at = symbol;
    pair = new_pair(left, right);
  }
  return pair;
}

}  // namespace minillama::bpe
