// Random corpora, vocabularies and texts for the tokenizer's core, built with sanitizers by test_compiled.py.
// Laws: blocks and threads change no count and no piece; ids spell the text; bad input ends in an exception.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>

#include "cpu/bpe.h"

using namespace minillama::bpe;

static std::mt19937_64 rng(1);

static size_t below(size_t n) { return rng() % n; }

static void demand(bool holds, const char* law) {
  if (holds) return;
  std::fprintf(stderr, "broken: %s\n", law);
  std::exit(1);
}

static std::string random_text(size_t most, bool broken) {
  static const char* const parts[] = {"a", "b", "ab", " ", "  ", "1", "\xC3\xA9", "\xE4\xBD\xA0", "\xF0\x9F\xA6\x99",
                                      "\xE2\x96\x81", "<s>", "\n", "\xE2\x96\x85", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
  std::string text;
  for (size_t left = below(most); left > 0; --left) {
    if (broken && below(9) == 0) text.push_back(static_cast<char>(below(256)));
    else text += parts[below(sizeof parts / sizeof *parts)];
  }
  return text;
}

struct Learnt {
  std::vector<std::string> pieces;
  std::vector<uint32_t> alphabet;
  uint64_t lines, long_lines;
  bool operator==(const Learnt& other) const {
    return pieces == other.pieces && alphabet == other.alphabet && lines == other.lines &&
           long_lines == other.long_lines;
  }
};

static Learnt learn(const std::string& text, size_t block, unsigned threads, uint32_t length) {
  const std::vector<std::array<uint32_t, 3>> classes = {
      {'a', 'z', 2}, {0x4E00, 0x9FFF, 3}, {0x300, 0x36F, 0}, {'0', '9', kDigit}, {kSpace, kSpace, kSpaceClass}};
  SegmentCounter counter({"<s>", "ab1", "a"}, classes, 1, 200, threads);
  for (size_t at = 0; at < text.size(); at += block) counter.feed(std::string_view(text).substr(at, block), false);
  counter.feed("", true);
  const ReadingReport report = counter.report();
  StringCounts counts = counter.take_counts();
  const Alphabet alphabet = choose_alphabet(counts, 0.999f);
  PieceTrainer trainer(std::move(counts), alphabet.characters, counter.classes(), length);
  return {trainer.learn(400), alphabet.characters, report.lines, report.long_lines};
}

static void check_encoding() {
  std::vector<PieceRow> pieces = {{"<unk>", 0, kUnknown}};
  const char hex[] = "0123456789ABCDEF";
  for (int i = 0; i < 256; ++i) pieces.push_back({std::string("<0x") + hex[i / 16] + hex[i % 16] + ">", 0, kByte});
  std::unordered_map<std::string, int> seen;
  for (size_t i = below(40); i > 0; --i) {
    std::string text;
    for (size_t j = below(6) + 1; j > 0; --j) text += below(3) ? "a" : below(2) ? "b" : below(2) ? "\xE2\x96\x81" : "\xC3\xA9";
    const int kinds[] = {kNormal, kNormal, kNormal, kNormal, kUserDefined, kUnused};
    if (seen.emplace(text, 1).second) pieces.push_back({text, static_cast<int64_t>(below(9)), kinds[below(6)]});
  }
  const BpeEncoder encoder(pieces, 0, true);
  for (int round = 0; round < 10; ++round) {
    const std::string text = random_text(round == 0 ? 3000 : 40, false);
    const bool prefix = below(2);
    std::string wanted = prefix && !text.empty() ? "\xE2\x96\x81" : "", spelt;
    for (const char byte : text) byte == ' ' ? wanted += "\xE2\x96\x81" : wanted += byte;
    for (const int32_t id : encoder.encode(text, prefix, true)) {
      const PieceRow& piece = pieces.at(id);
      if (piece.kind == kByte) spelt.push_back(static_cast<char>(id - 1));
      else spelt += piece.text;
    }
    demand(spelt == wanted, "ids spell the text");
  }
  try {
    encoder.encode("a\xFF" + random_text(30, true), false, true);
  } catch (const std::invalid_argument&) {  // vocabularies with unused pieces spell bad bytes instead
  }
}

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 100;
  for (int round = 0; round < rounds; ++round) {
    const std::string text = random_text(600, true);
    const uint32_t length = static_cast<uint32_t>(1 + below(16));
    const Learnt whole = learn(text, text.size() + 1, 1, length);
    demand(learn(text, 1 + below(50), static_cast<unsigned>(1 + below(4)), length) == whole, "blocks and threads");
    check_encoding();
  }
  std::string large;  // over the size from which threads share the lines
  for (int i = 0; i < 20000; ++i) large += random_text(12, true) + "\n";
  demand(learn(large, 1 << 20, 4, 16) == learn(large, 5000, 1, 16), "threads on a large text");
  std::puts("all laws hold");
}
