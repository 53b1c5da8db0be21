// Order that fences and atomics make. A fence after writes, an atomic that another thread's atomic on the same word comes
// after, and a fence before reads: what was written before the first is seen behind the last (PTX memory model, "Release and
// Acquire Patterns"). What a thread so knows of another is a number of meetings of its warp, as in `met`; a fence counts as a
// meeting with nobody. All of it is forgotten at a barrier, which orders more.

#include <utility>

#include "profiler.h"

namespace simt {

static void join(std::vector<uint32_t>& known, const std::vector<uint32_t>& more) {
  if (known.size() < more.size()) known.resize(more.size());
  for (size_t i = 0; i < more.size(); ++i) known[i] = std::max(known[i], more[i]);
}

void Fences::forget() {
  if (!used) return;
  used = false;
  word.clear();
  for (auto& one : thread) one = {};
}

void Profiler::fence() {
  if (!active) return;
  settle();
  Fenced& mine = fences.thread[thread];
  fences.used = true;
  ++clock[warp];
  join(mine.known, std::exchange(mine.seen, {}));
  mine.released = mine.known;
  if (mine.released.size() < kMaxThreads) mine.released.resize(kMaxThreads);
  for (int i = 0; i < kWarp; ++i) {  // and what lanes of this warp did before it met them
    uint32_t& of_lane = mine.released[size_t(warp * kWarp + i)];
    of_lane = std::max(of_lane, i == lane ? clock[warp] : std::max(all_met[warp], met_in_part[warp] ? met[warp][lane][i] : 0));
  }
}

void Profiler::sync_by(const void* address) {
  if (!active || !fences.used) return;
  std::vector<uint32_t>& word = fences.word[address];
  Fenced& mine = fences.thread[thread];
  join(mine.seen, word);
  join(word, mine.released);
}

// Lanes of a warp have met: what one knows of other warps, all know.
void Profiler::share_known(int w, uint32_t lanes) {
  if (!fences.used) return;
  std::vector<uint32_t> all;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) join(all, fences.thread[w * kWarp + __builtin_ctz(rest)].known);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) fences.thread[w * kWarp + __builtin_ctz(rest)].known = all;
}

bool Profiler::knows_of(const Mark& mark) const {
  const std::vector<uint32_t>& known = fences.thread[thread].known;
  return mark.thread < known.size() && known[mark.thread] > mark.clock;
}

}  // namespace simt
