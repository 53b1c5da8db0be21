// The history of shared memory: for every word its last writer and two readers, each with the barriers its block and the
// meetings its warp had behind them. Two threads of which nothing put one before the other, one of them writing: a race.

#include <cstdlib>

#include "profiler.h"

namespace simt {

void Profiler::make_shadow(size_t bytes) {
  if (bytes / 4 + 1 <= words) return;
  words = bytes / 4 + 1;  // zeros: an epoch before all others. Cells of bytes are touched where they are needed
  cells = {static_cast<Cell*>(std::calloc(5 * words, sizeof(Cell))), std::free};
  if (!cells) throw Error("no memory for the history of shared memory");
}

void Profiler::shadow(size_t offset, int bytes, const Site& site, uintptr_t address) {
  const size_t end = offset + size_t(bytes);
  for (size_t word = offset / 4; word * 4 < end; ++word) {
    Cell& whole = cells[word];
    const bool covered = offset <= word * 4 && word * 4 + 4 <= end;
    if (covered && !whole.split) {
      look(whole, site, address, bytes);
      continue;
    }
    Cell* const of_bytes = &cells[words + 4 * word];
    if (!whole.split) {
      for (int i = 0; i < 4; ++i) of_bytes[i] = whole;
      whole.split = true;
    }
    for (size_t at = std::max(offset, word * 4); at < std::min(end, word * 4 + 4); ++at)
      look(of_bytes[at % 4], site, address, bytes);
  }
}

// Nothing makes what `mark` stands for happen before, or after, what the running thread does now.
bool Profiler::unordered(const Mark& mark) const {
  if (mark.epoch != epoch || mark.thread == thread || (fences.used && knows_of(mark))) return false;
  if (mark.thread / kWarp != warp) return true;
  const uint32_t in_part = met_in_part[warp] ? met[warp][lane][mark.thread % kWarp] : 0;
  return mark.clock >= std::max(all_met[warp], in_part);
}

void Profiler::look(Cell& cell, const Site& site, uintptr_t address, int bytes) {
  const Mark now{epoch, clock[warp], uint16_t(thread), site.number};
  Mark& writer = cell.writer;
  const bool unwritten = writer.epoch < block_epoch;
  if (cell.in_flight == block_epoch && (site.op == Op::load || !unwritten))
    find("asynchronous copy", site.pc, unwritten ? nullptr : sites[writer.site]->pc,
         std::string(site.op == Op::load ? "reads" : "writes") + " shared memory to which a cp_async is still under way"
         " (issued at %1): cp_async_wait comes first");
  if (site.op == Op::load) {
    if (unwritten) {
      find("uninitialised", site.pc, nullptr, "reads shared memory that no thread of the block has written");
    } else if (unordered(writer)) {
      const char* const how = "reads shared memory that thread %t wrote at %1";
      if (sites[writer.site]->op == Op::atomic) suspect(thread, cell, site, writer, how);
      else race(how, writer, site);
    }
    Mark *latest = &cell.reader[0], *other = &cell.reader[1];  // the other: of another warp, if there was one
    if (latest->thread != now.thread) {
      const bool other_warp = latest->thread / kWarp != warp;
      if (other_warp || other->epoch != epoch || other->thread / kWarp == warp) *other = *latest;
    }
    *latest = now;
    return;
  }
  if (site.op == Op::atomic) {
    suspects.erase({thread, &cell});
    for (Mark& reader : cell.reader)
      if (reader.thread == thread) reader.epoch = 0;
  }
  if (!unwritten && unordered(writer) && !(site.op == Op::atomic && sites[writer.site]->op == Op::atomic)) {
    if (writer.site != site.number || bytes > 16) {
      race("writes shared memory that thread %t wrote at %1", writer, site);
    } else if (!doubt.address) {
      doubt = {reinterpret_cast<const void*>(address), bytes, {}, writer, &site, thread,
               "writes another value to shared memory that thread %t wrote at %1"};
      std::memcpy(doubt.old, doubt.address, size_t(bytes));
    }
  }
  for (const Mark& reader : cell.reader)
    if (reader.epoch >= block_epoch && unordered(reader)) {
      const char* const how = "writes shared memory that thread %t read at %1";
      if (site.op == Op::atomic) suspect(reader.thread, cell, site, reader, how);
      else race(how, reader, site);
    }
  writer = now;
}

// A loop of atomicCAS begins with a plain load, whose result it does not trust. So a load beside other threads' atomics is
// told only where the thread that loads does not go on with an atomic of its own on that word before the next barrier.
void Profiler::suspect(int reader, const Cell& cell, const Site& site, const Mark& earlier, const char* how) {
  suspects.insert({{reader, &cell}, {thread, &site, earlier, how}});
}

void Profiler::report_suspects() {
  const int now = thread;
  for (const auto& [key, one] : suspects) {
    thread = one.thread, warp = thread / kWarp;
    race(one.how, one.earlier, *one.site);
  }
  suspects.clear();
  thread = now, warp = now / kWarp;
}

void Profiler::race(const char* how, const Mark& earlier, const Site& site) {
  std::string text = how;
  const bool other_block = site.space == kGlobal && earlier.epoch < turn_epoch;
  text.replace(text.find("%t"), 2, text_of(index_of(earlier.thread)) + (other_block ? " of another block" : ""));
  if (other_block) return void(find("race", site.pc, sites[earlier.site]->pc, text + ", with no launch between"));
  const bool same_warp = earlier.thread / kWarp == warp;
  find("race", site.pc, sites[earlier.site]->pc, text + (same_warp ? ", with no barrier or __syncwarp between"
                                                                   : ", with no barrier between"));
}

void Profiler::settle() {
  if (!doubt.address) return;
  const bool same = std::memcmp(doubt.address, doubt.old, size_t(doubt.bytes)) == 0;
  doubt.address = nullptr;
  if (same) return;
  const int now = thread;
  thread = doubt.thread, warp = thread / kWarp;
  race(doubt.how, doubt.earlier, *doubt.site);
  thread = now, warp = now / kWarp;
}

// Lanes of a warp have met: each now knows of all that any of them knew of.
void Profiler::meet(int w, uint32_t lanes) {
  share_known(w, lanes);
  const uint32_t now = ++clock[w];
  if (lanes == ~gone[w]) {
    all_met[w] = now;
    return;
  }
  met_in_part[w] = true;
  uint32_t known[kWarp] = {};
  for (uint32_t rest = lanes; rest; rest &= rest - 1)
    for (int i = 0; i < kWarp; ++i) known[i] = std::max(known[i], met[w][__builtin_ctz(rest)][i]);
  for (uint32_t rest = lanes; rest; rest &= rest - 1) known[__builtin_ctz(rest)] = now;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) std::memcpy(met[w][__builtin_ctz(rest)], known, sizeof known);
}

// A cp.async begins or has arrived: in between its target belongs to nobody, afterwards to the thread that waited.
void Profiler::fly(const AsyncCopy& copy, bool begins) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(copy.to);
  if (!active) return;
  const size_t offset = shared_offset(address, copy.bytes);
  if (offset / 4 >= words) return;  // not shared memory at all
  for (size_t at = offset; at < offset + size_t(copy.bytes); ++at) {
    Cell& whole = cells[at / 4];
    Cell& cell = whole.split ? cells[words + 4 * (at / 4) + at % 4] : whole;
    cell.in_flight = begins ? block_epoch : 0;
    if (!begins) cell.writer = {epoch, clock[warp], uint16_t(thread), cell.writer.site};
  }
}

}  // namespace simt
