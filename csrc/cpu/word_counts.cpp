// From text to counted segments and the alphabet. The rules are those of minillama/tokenizer/word_counts.py and bpe.py;
// here a line is normalised into a buffer and cut in one pass. Threads count; sums do not depend on their number.

#include <algorithm>
#include <future>
#include <stdexcept>

#include "bpe.h"

namespace minillama::bpe {

constexpr size_t kLinesPerThread = 1 << 16;  // bytes; fewer are not worth waking a thread

// ---- StringCounts

void StringCounts::add(std::string_view text, uint64_t count) {
  const uint32_t hash = static_cast<uint32_t>(hash_bytes(text.data(), text.size()));
  const size_t mask = table_.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    Entry& entry = table_[at];
    if (!entry.data) {
      char* copy = texts_.take(text.size());
      std::memcpy(copy, text.data(), text.size());
      entry = {copy, count, static_cast<uint32_t>(text.size()), hash};
      if (++used_ * 5 > table_.size() * 3) grow();
      return;
    }
    if (entry.hash == hash && entry.text() == text) {
      entry.count += count;
      return;
    }
  }
}

void StringCounts::add_all(const StringCounts& other) {
  for (const Entry& entry : other.table_)
    if (entry.data) add(entry.text(), entry.count);
}

void StringCounts::grow() {
  std::vector<Entry> old(table_.size() * 2);
  old.swap(table_);
  const size_t mask = table_.size() - 1;
  for (const Entry& entry : old) {
    if (!entry.data) continue;
    size_t at = entry.hash & mask;
    while (table_[at].data) at = (at + 1) & mask;
    table_[at] = entry;
  }
}

// ---- SegmentCounter

SegmentCounter::SegmentCounter(const std::vector<std::string>& meta_pieces,
                               const std::vector<std::array<uint32_t, 3>>& classes, uint8_t common,
                               uint64_t max_line_bytes, unsigned threads)
    : class_of_(kCodePoints, common), max_line_bytes_(max_line_bytes), shards_(std::max(1u, threads)) {
  for (const auto& [first, last, value] : classes) {
    if (first > last || last >= kCodePoints) throw std::invalid_argument("a range of characters is out of bounds");
    std::fill(class_of_.begin() + first, class_of_.begin() + last + 1, static_cast<uint8_t>(value));
  }
  for (size_t byte = 0; byte < 256; ++byte) class_of_byte_[byte] = byte < 128 ? class_of_[byte] : kNotAscii;
  class_of_byte_[' '] = class_of_[kSpace];
  std::vector<std::string> kept;
  for (std::string piece : meta_pieces) {
    if (piece.empty()) throw std::invalid_argument("a meta piece is empty");
    if (piece.find(' ') != std::string::npos) continue;  // occurs in no normalised text
    for (size_t at; (at = piece.find(kSpaceText)) != std::string::npos;) piece.replace(at, kSpaceText.size(), " ");
    const auto first = static_cast<unsigned char>(piece[0]);
    if (first < 128) class_of_byte_[first] = kMaybeMeta;
    kept.push_back(std::move(piece));
  }
  meta_ = PrefixSet(std::move(kept));
}

// A block of the text in order; the end of a line may come with the next block unless this one is its source's last.
void SegmentCounter::feed(std::string_view block, bool is_last) {
  block.remove_prefix(finish_rest(block, is_last));
  const size_t whole = is_last ? block.size() : block.rfind('\n') + 1;  // npos + 1 is 0
  share_lines(block.substr(0, whole));
  rest_.append(block.substr(whole));
  if (rest_.size() > max_line_bytes_) {  // it will be skipped: only that it was there needs to be remembered
    rest_.clear();
    too_long_ = true;
  }
}

// Complete the line that the block before left over; returns how much of the block that took.
size_t SegmentCounter::finish_rest(std::string_view block, bool is_last) {
  if (rest_.empty() && !too_long_) return 0;
  const size_t end = block.find('\n');
  if (!too_long_) rest_.append(block.substr(0, end));
  if (end == std::string_view::npos && !is_last) {
    if (rest_.size() > max_line_bytes_) {
      rest_.clear();
      too_long_ = true;
    }
    return block.size();
  }
  if (too_long_) ++shards_[0].report.long_lines;
  else take_line(shards_[0], rest_);
  rest_.clear();
  too_long_ = false;
  return end == std::string_view::npos ? block.size() : end + 1;
}

// Give each shard an equal share of whole lines; this thread takes the last one.
void SegmentCounter::share_lines(std::string_view lines) {
  std::vector<std::future<void>> others;  // their destructors wait, their exceptions arrive by get()
  for (size_t i = shards_.size() - 1; i > 0 && lines.size() > kLinesPerThread; --i) {
    const size_t end = lines.find('\n', lines.size() / (i + 1));
    if (end == std::string_view::npos) break;
    const std::string_view share = lines.substr(0, end + 1);
    others.push_back(std::async(std::launch::async, [this, i, share] { take_lines(shards_[i], share); }));
    lines.remove_prefix(end + 1);
  }
  take_lines(shards_[0], lines);
  for (auto& other : others) other.get();
}

void SegmentCounter::take_lines(Shard& shard, std::string_view lines) const {
  while (!lines.empty()) {
    const size_t end = lines.find('\n');
    take_line(shard, lines.substr(0, end));
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 1);
  }
}

// Write the line with a space in front, U+2581 as a space, U+FFFD for each bad byte; false if U+2585 is in it.
bool SegmentCounter::normalise(Shard& shard, std::string_view line, uint64_t& characters) const {
  std::string& out = shard.line;
  out.assign(1, ' ');
  out.append(line);
  characters = out.size();
  unsigned char any = 0;
  for (const char byte : line) any |= static_cast<unsigned char>(byte);
  if (any < 0x80) return true;
  out.resize(1);
  characters = 1;
  for (size_t at = 0; at < line.size(); ++characters) {
    const Character character = character_at(line, at);
    if (character.code == kReserved) return false;
    if (character.code == kSpace) out.push_back(' ');
    else out.append(character.size ? line.substr(at, character.size) : kBadText);
    at += std::max(1u, character.size);
  }
  return true;
}

// Two characters touch if a piece may hold them side by side.
static inline bool touch(uint8_t left, uint8_t right) {
  if (right == kSpaceClass) return left == kSpaceClass;
  if (left == kDigit || right == kDigit) return false;
  return left == kSpaceClass || left == kAnyScript || right == kAnyScript || left == right;
}

void SegmentCounter::take_line(Shard& shard, std::string_view line) const {
  uint64_t characters = 0;
  if (line.size() > max_line_bytes_) {
    ++shard.report.long_lines;
    return;
  }
  if (!normalise(shard, line, characters)) {
    ++shard.report.reserved_lines;
    return;
  }
  if (line.empty()) return;
  ++shard.report.lines;
  shard.report.bytes += line.size();
  shard.report.characters += characters;
  count_segments(shard);
}

void SegmentCounter::count_segments(Shard& shard) const {
  const std::string_view text = shard.line;
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  size_t start = 0, at = 0;
  const auto flush = [&](size_t end) {
    if (end == start + 1) ++shard.single[bytes[start]];
    else if (end > start) shard.counts.add(text.substr(start, end - start), 1);
    start = end;
  };
  for (uint8_t left = kSpaceClass; at < text.size();) {
    uint8_t right = class_of_byte_[bytes[at]];
    size_t width = 1;
    if (right == kMaybeMeta || (right == kNotAscii && meta_.may_begin_with(bytes[at]))) {
      if (const size_t length = meta_.longest(text.substr(at))) {
        flush(at);
        ++shard.single[static_cast<size_t>(kBoundaryText[0])];
        start = at += length;
        continue;
      }
      right = right == kMaybeMeta ? class_of_[bytes[at] == ' ' ? kSpace : bytes[at]] : right;
    }
    if (right == kNotAscii) {
      const Character character = character_at(text, at);
      right = class_of_[character.code];
      width = character.size;
    }
    if (at > start && !touch(left, right)) flush(at);
    left = right;
    at += width;
    if (left < kNotAscii)  // the rest of a run of letters
      while (at < text.size() && class_of_byte_[bytes[at]] == left) ++at;
  }
  flush(text.size());
}

ReadingReport SegmentCounter::report() const {
  ReadingReport sum;
  for (const Shard& shard : shards_) {
    sum.lines += shard.report.lines;
    sum.long_lines += shard.report.long_lines;
    sum.reserved_lines += shard.report.reserved_lines;
    sum.bytes += shard.report.bytes;
    sum.characters += shard.report.characters;
  }
  return sum;
}

StringCounts SegmentCounter::take_counts() {
  StringCounts sum = std::move(shards_[0].counts);
  for (size_t i = 1; i < shards_.size(); ++i) {
    sum.add_all(shards_[i].counts);
    shards_[i].counts = StringCounts();
  }
  for (const Shard& shard : shards_) {
    for (size_t byte = 0; byte < 128; ++byte) {
      const char text = static_cast<char>(byte);
      if (shard.single[byte]) sum.add({&text, 1}, shard.single[byte]);
    }
  }
  shards_[0].counts = StringCounts();
  return sum;
}

// ---- alphabet

Alphabet choose_alphabet(const StringCounts& counts, float coverage) {
  std::vector<uint64_t> count_of(kCodePoints);
  for (const auto& entry : counts.entries()) {
    const std::string_view text = entry.data ? entry.text() : std::string_view();
    for (size_t at = 0; at < text.size();) {
      const Character character = character_at(text, at);
      count_of[character.code == ' ' ? kSpace : character.code] += entry.count;
      at += character.size;
    }
  }
  std::vector<uint32_t> characters;
  uint64_t total = 0, covered = 0;
  for (uint32_t code = 1; code < kCodePoints; ++code) {  // NUL is not counted
    if (count_of[code]) characters.push_back(code);
    total += count_of[code];
  }
  std::stable_sort(characters.begin(), characters.end(),
                   [&](uint32_t a, uint32_t b) { return count_of[a] > count_of[b]; });
  Alphabet alphabet;
  for (const uint32_t code : characters) {
    const float share = static_cast<float>(1.0 * static_cast<double>(covered) / static_cast<double>(total));
    if (share >= coverage) break;
    covered += count_of[code];
    if (code != 0x1F) alphabet.characters.push_back(code);
  }
  alphabet.uncovered = total - covered;
  return alphabet;
}

}  // namespace minillama::bpe
