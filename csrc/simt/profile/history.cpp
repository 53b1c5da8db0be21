// The history of global memory during a launch: for every word its last writer and two readers, as for shared memory
// (shadow.cpp), in pages that exist once they are touched. Within a block the same things order two accesses. Threads of two
// blocks are ordered by a launch or a grid's barrier between them; or where the first block passed a fence and then changed
// a word by an atomic operation (or a volatile store), and the second used that word in the same way before.
//
// Told are two accesses of which one is a store that changes the value. Not: two atomics or volatile accesses; a load beside
// atomics, since a loop of atomicCAS begins with one.

#include <utility>

#include "profiler.h"

namespace simt {

constexpr size_t kPageBytes = 1024, kMostPages = 40000;  // of the latter each takes 14 KiB

struct Page {
  Cell word[kPageBytes / 4];
  std::unique_ptr<Cell[]> byte;
};
static size_t pages = 0;

void Histories::clear() {
  for (Page* page : at) delete page, pages -= page != nullptr;
  at.clear();
}

void Profiler::begin_history() {
  launch_epoch = ++epoch;
  turns.clear();
  releases.clear();
  if (2 * pages < kMostPages) return;
  for (Buffer& buffer : buffers) buffer.history.clear();
}

void Profiler::begin_turn() {
  turn_epoch = epoch;
  turns.push_back({epoch, blockIdx});
  used_words.clear();
  fenced = 0;
}

// A release of what came before the last fence of this block; and what others released by this word is known from now on.
void Profiler::order_blocks(const void* word, bool changes) {
  if (changes && fenced) releases[word][turn_epoch] = fenced;
  used_words.insert(word);
}

bool Profiler::released(const Mark& mark) const {
  const auto next = std::upper_bound(turns.begin(), turns.end(), mark.epoch,
                                     [](uint32_t at, const Turn& turn) { return at < turn.epoch; });
  const uint32_t turn = (next - 1)->epoch;
  for (const void* word : used_words) {
    const auto found = releases.find(word);
    if (found == releases.end()) continue;
    const auto of_turn = found->second.find(turn);
    if (of_turn != found->second.end() && of_turn->second >= mark.epoch) return true;
  }
  return false;
}

bool Profiler::is_conflict(const Mark& mark, const Site& site) const {
  if (mark.epoch < launch_epoch) return false;
  const Site& other = *sites[mark.site];
  const bool mine = site.op == Op::atomic || site.is_volatile, others = other.op == Op::atomic || other.is_volatile;
  if (mine && others) return false;
  if ((other.op == Op::atomic && site.op == Op::load) || (site.op == Op::atomic && other.op == Op::load)) return false;
  return mark.epoch >= turn_epoch ? unordered(mark) : !released(mark);
}

void Profiler::note_history(Buffer& buffer, uintptr_t address, int bytes, const Site& site) {
  auto& all = buffer.history.at;
  if (all.empty()) all.resize((buffer.end - buffer.begin) / kPageBytes + 1, nullptr);
  const size_t begin = address - buffer.begin, end = begin + size_t(bytes);
  for (size_t word = begin / 4; word * 4 < end; ++word) {
    Page*& page = all[word * 4 / kPageBytes];
    if (!page) {
      if (pages >= kMostPages) return;
      page = new Page(), ++pages;
    }
    const size_t at = word % (kPageBytes / 4);
    Cell& whole = page->word[at];
    if (begin <= word * 4 && word * 4 + 4 <= end && !whole.split) {
      look_global(whole, site, address, bytes);
      continue;
    }
    if (!page->byte) page->byte = std::make_unique<Cell[]>(kPageBytes);
    if (!std::exchange(whole.split, true))
      for (size_t i = 0; i < 4; ++i) page->byte[4 * at + i] = whole;
    for (size_t i = std::max(begin, word * 4); i < std::min(end, word * 4 + 4); ++i)
      look_global(page->byte[4 * at + i % 4], site, address, bytes);
  }
}

void Profiler::look_global(Cell& cell, const Site& site, uintptr_t address, int bytes) {
  const Mark now{epoch, clock[warp], uint16_t(thread), site.number};
  const auto is_mine = [&](const Mark& mark) { return mark.thread == thread && mark.epoch >= turn_epoch; };
  if (site.op == Op::load) {
    if (!is_mine(cell.writer) && is_conflict(cell.writer, site))
      race("reads global memory that thread %t wrote at %1", cell.writer, site);
    Mark *latest = &cell.reader[0], *other = &cell.reader[1];  // the other: of another thread, rather of another block
    if (!is_mine(*latest) && (other->epoch >= turn_epoch || other->epoch < launch_epoch)) *other = *latest;
    *latest = now;
    return;
  }
  const auto doubt_it = [&](const Mark& mark, const char* how) {
    if (is_mine(mark) || doubt.address || !is_conflict(mark, site)) return;
    if (bytes > 16 || site.op == Op::atomic) return race(how, mark, site);
    doubt = {reinterpret_cast<const void*>(address), bytes, {}, mark, &site, thread, how};
    std::memcpy(doubt.old, doubt.address, size_t(bytes));
  };
  doubt_it(cell.writer, "writes another value to global memory that thread %t wrote at %1");
  for (const Mark& reader : cell.reader) doubt_it(reader, "writes global memory that thread %t read at %1");
  cell.writer = now;
}

}  // namespace simt
