// Learning byte-level BPE; the same choices as BytePairs in minillama/tokenizer/byte_bpe_training.py. Places, pairs and
// their queue are those of bpe.cpp; here words of bytes are laid out, and learning ends where no pair occurs.

#include <stdexcept>

#include "byte_bpe.h"

namespace minillama::bpe {

// Without scripts, spaces and a limit of length any two symbols may be joined.
PieceTrainer::PieceTrainer(const StringCounts& words, std::string_view bytes)
    : max_piece_length_(UINT32_MAX), ties_by_symbols_(true) {
  std::array<int32_t, 256> symbol_of;
  symbol_of.fill(-1);
  for (size_t i = 0; i < bytes.size(); ++i) {
    symbol_of[static_cast<unsigned char>(bytes[i])] = static_cast<int32_t>(i);
    add_symbol(bytes.substr(i, 1), 1, kAnyScript);
  }
  if (bytes.size() != 256 || std::count(symbol_of.begin(), symbol_of.end(), -1))
    throw std::invalid_argument("byte-level BPE begins with each of the 256 bytes once");
  places_.push_back({kBarrier, kNoPair, 0});
  for (const auto& entry : words.entries())
    if (entry.size > 1) add_word(entry.text(), entry.count, symbol_of);
  find_first_pairs();
}

void PieceTrainer::add_word(std::string_view word, uint64_t count, const std::array<int32_t, 256>& symbol_of) {
  if (places_.size() + word.size() >= kNoPair) throw std::length_error("the words have more than 4e9 different places");
  if (word.size() > INT32_MAX) throw std::length_error("a word has more than 2e9 bytes");
  for (const char byte : word)
    places_.push_back({symbol_of[static_cast<unsigned char>(byte)], kNoPair, static_cast<uint32_t>(weights_.size())});
  places_.push_back({kBarrier, kNoPair, 0});
  weights_.push_back(count);
}

std::vector<std::pair<uint32_t, uint32_t>> PieceTrainer::learn_pairs(size_t most) {
  std::vector<std::pair<uint32_t, uint32_t>> learnt;
  while (learnt.size() < most) {
    const uint32_t pair = best_pair();
    if (pair == kNoPair || pairs_[pair].count == 0) break;
    learnt.emplace_back(pairs_[pair].left, pairs_[pair].right);
    last_count_ = pairs_[pair].count;
    join(pair);
  }
  return learnt;
}

ByteBpeTrainer::ByteBpeTrainer(std::string bytes, WordSplitter splitter)
    : bytes_(std::move(bytes)), splitter_(std::move(splitter)) {}

void ByteBpeTrainer::feed(std::string_view text) {
  if (trainer_) throw std::logic_error("feed was called after learn");
  splitter_.for_each(text, [this](std::string_view word) { counts_.add(word, 1); });
}

std::vector<std::pair<uint32_t, uint32_t>> ByteBpeTrainer::learn(size_t most) {
  if (!trainer_) {
    trainer_ = std::make_unique<PieceTrainer>(counts_, bytes_);
    counts_ = StringCounts();  // its memory is free for the pairs
  }
  return trainer_->learn_pairs(most);
}

}  // namespace minillama::bpe
