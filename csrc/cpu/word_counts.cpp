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

SegmentCounter::SegmentCounter(std::vector<std::string> meta_pieces,
                               const std::vector<std::array<uint32_t, 3>>& classes, uint8_t common,
                               uint64_t max_line_bytes, unsigned threads)
    : class_of_(kCodePoints, common),
      meta_(std::move(meta_pieces)),
      max_line_bytes_(max_line_bytes),
      shards_(std::max(1u, threads)) {
  for (const auto& [first, last, value] : classes) {
    if (first > last || last >= kCodePoints) throw std::invalid_argument("a range of characters is out of bounds");
    std::fill(class_of_.begin() + first, class_of_.begin() + last + 1, static_cast<uint8_t>(value));
  }
  for (const std::string& piece : meta_) {
    if (piece.empty()) throw std::invalid_argument("a meta piece is empty");
    meta_set_[piece] = 1;
    meta_first_[static_cast<unsigned char>(piece[0])] = true;
    meta_lengths_.push_back(piece.size());
  }
  std::sort(meta_lengths_.rbegin(), meta_lengths_.rend());
  meta_lengths_.erase(std::unique(meta_lengths_.begin(), meta_lengths_.end()), meta_lengths_.end());
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

// Write the line with U+2581 in front and for each space, U+FFFD for each bad byte; false if U+2585 is in it.
bool SegmentCounter::normalise(Shard& shard, std::string_view line, uint64_t& characters) const {
  std::string& out = shard.line;
  out.assign(kSpaceText);
  characters = 1;
  for (size_t at = 0; at < line.size(); ++characters) {
    const char byte = line[at];
    if (byte == ' ') {
      out.append(kSpaceText);
      ++at;
    } else if (static_cast<unsigned char>(byte) < 0x80) {
      out.push_back(byte);
      ++at;
    } else {
      const Character character = character_at(line, at);
      if (character.code == kReserved) return false;
      out.append(character.size ? line.substr(at, character.size) : kBadText);
      at += std::max(1u, character.size);
    }
  }
  return true;
}

size_t SegmentCounter::meta_length(std::string_view rest) const {
  for (const size_t length : meta_lengths_)
    if (length <= rest.size() && meta_set_.count(rest.substr(0, length))) return length;
  return 0;
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
  const std::string_view text = shard.line;
  size_t start = 0;
  uint8_t left = 0;
  const auto flush = [&](size_t end) {
    if (end > start) shard.counts.add(text.substr(start, end - start), 1);
  };
  for (size_t at = 0; at < text.size();) {
    if (meta_first_[static_cast<unsigned char>(text[at])]) {
      if (const size_t length = meta_length(text.substr(at))) {
        flush(at);
        shard.counts.add(kBoundaryText, 1);
        start = at += length;
        continue;
      }
    }
    const Character character = character_at(text, at);
    const uint8_t right = class_of_[character.code];
    if (at > start && !touch(left, right)) {
      flush(at);
      start = at;
    }
    left = right;
    at += character.size;
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
      count_of[character.code] += entry.count;
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
