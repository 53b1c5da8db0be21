// The patterns of minillama/tokenizer/byte_bpe.py by hand: at each place the alternatives are tried in their order, and
// each takes as much as it can.

#include "byte_bpe.h"

#include <stdexcept>

namespace minillama::bpe {

using Class = CharacterClass;

WordSplitter::WordSplitter(const std::vector<std::array<uint32_t, 3>>& classes, std::vector<Pattern> patterns)
    : class_of_(kCodePoints, Class::kOther), patterns_(std::move(patterns)) {
  for (const auto& [first, last, kind] : classes) {
    if (last >= kCodePoints || first > last || kind > 3) throw std::invalid_argument("a range of characters is wrong");
    std::fill(class_of_.begin() + first, class_of_.begin() + last + 1, static_cast<Class>(kind));
  }
}

WordSplitter::Next WordSplitter::next(std::string_view text, size_t at) const {
  if (at == text.size()) return {};
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) return {class_of_[byte], 1};
  const Character character = character_at(text, at);
  if (!character.size) throw std::invalid_argument("the text is not UTF-8");
  return {class_of_[character.code], character.size};
}

// Behind at most `most` characters of this class.
size_t WordSplitter::skip(Class kind, std::string_view text, size_t at, size_t most) const {
  for (; most > 0; --most) {
    const Next character = next(text, at);
    if (!character.size || character.kind != kind) break;
    at += character.size;
  }
  return at;
}

size_t WordSplitter::word_end(Pattern pattern, std::string_view text, size_t at) const {
  switch (pattern) {
    case Pattern::kLlama3: return llama3_end(text, at);
    case Pattern::kGpt2: return gpt2_end(text, at);
    case Pattern::kSingleDigits: return digit_end(text, at);
  }
  throw std::logic_error("a pattern without a function");
}

// Bytes of 's, 't, 're, 've, 'm, 'll or 'd at a place, 0 if none stands there. In any case U+017F is an s, too.
static size_t contraction(std::string_view text, size_t at, bool any_case) {
  if (text[at] != '\'') return 0;
  const auto letter = [&](size_t i) {
    const char byte = at + i < text.size() ? text[at + i] : '\0';
    return any_case && byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + 32) : byte;
  };
  const char first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((second == 'e' && (first == 'r' || first == 'v')) || (first == 'l' && second == 'l')) return 3;
  return any_case && text.substr(at + 1, 2) == "\xC5\xBF" ? 3 : 0;
}

static bool is_line_end(char byte) { return byte == '\r' || byte == '\n'; }

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t WordSplitter::llama3_end(std::string_view text, size_t at) const {
  if (const size_t size = contraction(text, at, true)) return at + size;
  const Next first = next(text, at);
  if (first.kind == Class::kLetter) return skip(Class::kLetter, text, at);
  if (first.kind == Class::kNumber) return skip(Class::kNumber, text, at, 3);
  const size_t second = at + first.size;
  const Next following = next(text, second);
  if (!is_line_end(text[at]) && following.size && following.kind == Class::kLetter)
    return skip(Class::kLetter, text, second);
  const bool after_space = text[at] == ' ' && following.size && following.kind == Class::kOther;
  if (first.kind == Class::kSpace && !after_space) return space_end(text, at, true);
  size_t end = skip(Class::kOther, text, after_space ? second : at);
  while (end < text.size() && is_line_end(text[end])) ++end;
  return end;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t WordSplitter::gpt2_end(std::string_view text, size_t at) const {
  if (const size_t size = contraction(text, at, false)) return at + size;
  const size_t begin = text[at] == ' ' ? at + 1 : at;
  const Next first = next(text, begin);
  if (!first.size || first.kind == Class::kSpace) return space_end(text, at, false);
  return skip(first.kind, text, begin);
}

// \s*[\r\n]+ if by_line, then \s+(?!\S), then \s+: up to the last end of a line, else all spaces but the last, which
// goes to the word behind it.
size_t WordSplitter::space_end(std::string_view text, size_t at, bool by_line) const {
  size_t line_end = 0, last = at, end = at;
  for (Next character = next(text, end); character.size && character.kind == Class::kSpace;
       character = next(text, end)) {
    last = end;
    end += character.size;
    if (is_line_end(text[last])) line_end = end;
  }
  if (by_line && line_end) return line_end;
  return end == text.size() || last == at ? end : last;
}

// \p{N}, and what lies between such characters.
size_t WordSplitter::digit_end(std::string_view text, size_t at) const {
  Next character = next(text, at);
  if (character.kind == Class::kNumber) return at + character.size;
  while (character.size && character.kind != Class::kNumber) {
    at += character.size;
    character = next(text, at);
  }
  return at;
}

}  // namespace minillama::bpe
