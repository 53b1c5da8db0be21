// The pieces that unigram training begins with: what the text repeats. See unigram.h and unigram_training.py.

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "unigram.h"

namespace minillama::unigram {

namespace {

constexpr uint32_t kSpace = 0x2581;
constexpr uint8_t kOutside = 255;         // no character of the alphabet
constexpr size_t kMostSeeds = 1'000'000;  // of several characters; as in unigram_training.py

bool begins_character(char byte) { return (byte & 0xC0) != 0x80; }

size_t length_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

// The first `length` characters, or all where there are fewer.
std::string_view beginning(std::string_view text, size_t length) {
  size_t end = 0;
  for (; end < text.size(); ++end)
    if (begins_character(text[end]) && length-- == 0) break;
  return text.substr(0, end);
}

// Bytes of the characters that two texts begin with.
size_t shared_beginning(std::string_view a, std::string_view b) {
  const auto differ = std::mismatch(a.begin(), a.begin() + static_cast<long>(std::min(a.size(), b.size())), b.begin());
  auto shared = static_cast<size_t>(differ.first - a.begin());
  while (shared > 0 && ((shared < a.size() && !begins_character(a[shared])) ||
                        (shared < b.size() && !begins_character(b[shared])))) --shared;
  return shared;
}

// Strings with counts, in the order in which they were first added.
class OrderedCounts {
 public:
  uint64_t& of(std::string_view text) {
    const auto [entry, is_new] = place_of_.try_emplace(text, rows_.size());
    if (is_new) rows_.push_back({text, 0});
    return rows_[entry->second].value;
  }
  const Counts& rows() const { return rows_; }

 private:
  std::unordered_map<std::string_view, size_t> place_of_;
  Counts rows_;
};

// The beginnings, `most` characters and what follows them, of all words' ends, sorted; equal ones are one.
Counts sorted_suffixes(const Counts& words, size_t most) {
  Counts suffixes;
  for (const auto& [word, count] : words) {
    std::string_view rest = word;
    for (size_t left = length_of(word); left > 1; --left) {
      suffixes.push_back({beginning(rest, most + 1), count});
      rest.remove_prefix(beginning(rest, 1).size());
    }
  }
  std::sort(suffixes.begin(), suffixes.end(), [](const auto& a, const auto& b) { return a.text < b.text; });
  size_t kept = 0;
  for (size_t i = 0; i < suffixes.size(); ++i) {
    if (kept && suffixes[kept - 1].text == suffixes[i].text) suffixes[kept - 1].value += suffixes[i].value;
    else suffixes[kept++] = suffixes[i];
  }
  suffixes.resize(kept);
  return suffixes;
}

// Add the strings that at least two different characters follow: the beginnings that neighbours share.
void find_repeated(const Counts& suffixes, OrderedCounts& found) {
  std::vector<std::pair<size_t, uint64_t>> opened;  // (bytes, count) of the strings that `previous` begins with
  Row<uint64_t> previous{"", 0};
  const auto close_to = [&](const Row<uint64_t>& next) {
    const size_t shared = shared_beginning(previous.text, next.text);
    uint64_t count = previous.value;
    while (!opened.empty() && opened.back().first > shared) {
      count += opened.back().second;
      found.of(previous.text.substr(0, opened.back().first)) = count;
      opened.pop_back();
    }
    if (!opened.empty() && opened.back().first == shared) opened.back().second += count;
    else if (shared) opened.emplace_back(shared, count);
    previous = next;
  };
  for (const auto& suffix : suffixes) close_to(suffix);
  close_to({"", 0});
}

// Whether a string of several characters may be a piece: of the alphabet, no digits that stay single, U+2581 only in
// front or alone, letters of one script.
bool valid_piece(std::string_view text, const std::vector<uint8_t>& class_of) {
  uint8_t script = kAnyClass;
  bool inner_space = false, other = false;
  for (size_t at = 0; at < text.size();) {
    const Character character = character_at(text, at);
    const uint8_t kind = class_of[character.code];
    if (kind == kOutside || kind == kDigitClass) return false;
    if (character.code == kSpace) inner_space |= at > 0;
    else other = true;
    if (kind != kAnyClass && script != kAnyClass && kind != script) return false;
    if (kind != kAnyClass) script = kind;
    at += character.size;
  }
  return !(inner_space && other);
}

}  // namespace

Pieces seed_pieces(const Counts& words, const Counts& alphabet, const std::vector<uint8_t>& classes,
                   const SeedRules& rules) {
  std::vector<uint8_t> class_of(kCodePoints, kOutside);
  for (size_t i = 0; i < alphabet.size(); ++i) class_of[character_at(alphabet[i].text, 0).code] = classes[i];
  OrderedCounts found;
  if (rules.whole_words) {
    OrderedCounts whole;
    for (const auto& [word, count] : words) {
      const size_t length = length_of(word);
      if (length && length <= rules.max_piece_length + 1) whole.of(beginning(word, length - 1)) += count;
    }
    for (const auto& [word, count] : whole.rows())
      if (count > 1) found.of(word) = count;
  }
  find_repeated(sorted_suffixes(words, rules.max_piece_length), found);

  Counts weights;
  for (const auto& [text, count] : found.rows()) {
    const size_t length = length_of(text);
    if (length > 1 && valid_piece(text, class_of)) weights.push_back({text, count * length});
  }
  std::stable_sort(weights.begin(), weights.end(), [](const auto& a, const auto& b) { return a.value > b.value; });
  weights.resize(std::min(weights.size(), kMostSeeds));
  weights.insert(weights.begin(), alphabet.begin(), alphabet.end());
  uint64_t sum = 0;
  for (const auto& row : weights) sum += row.value;
  const double total = std::log(static_cast<double>(sum));
  Pieces pieces;
  for (const auto& [text, weight] : weights) pieces.push_back({text, std::log(static_cast<double>(weight)) - total});
  return pieces;
}

}  // namespace minillama::unigram
