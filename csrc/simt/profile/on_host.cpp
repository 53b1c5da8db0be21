// What the host reads: memory that it shares with the device where nobody has written it, and copies of such memory.

#include "profiler.h"

namespace simt {

constexpr size_t kMostStale = 4096;  // pieces that are remembered

void Profiler::forget_stale(uintptr_t begin, uintptr_t end) {
  const std::lock_guard<std::mutex> alone(host_alone);
  for (size_t i = 0; i < stale.size(); ++i) {
    Range& one = stale[i];
    if (one.end <= begin || one.begin >= end) continue;
    const Range rest{end, one.end};
    one.end = std::max(one.begin, begin);
    if (one.begin == one.end) one = stale.back(), stale.pop_back(), --i;
    if (rest.begin < rest.end) stale.push_back(rest);
  }
}

// What was copied is as written as what it was copied from. Of memory that is the host's alone, what was copied from where
// nobody had written is remembered until somebody writes it.
void Profiler::copied(uintptr_t to, uintptr_t from, size_t bytes) {
  on_written(reinterpret_cast<const void*>(to), bytes);
  const Buffer* const source = buffer_of(from, 1);
  if (!source || source->fill == Fill::none) return;
  Buffer* const target = buffer_of(to, 1);
  const size_t at = from - source->begin;
  for (size_t i = 0; i < bytes; ++i) {
    size_t end = i;
    while (end < bytes && is_unwritten(*source, at + end, 1)) ++end;
    if (end == i) continue;
    if (target && target->fill != Fill::none) {
      for (; i < end; ++i) target->written[(to - target->begin + i) / 64] &= ~(uint64_t{1} << (to - target->begin + i) % 64);
    } else if (!target && source->fill == Fill::ones && stale.size() < kMostStale) {
      const std::lock_guard<std::mutex> alone(host_alone);
      stale.push_back({to + i, to + end});
      host_matters = true;
    }
    i = end;
  }
}

void Profiler::note_host(uintptr_t address, int bytes, Op op, const void* pc) {
  const std::lock_guard<std::mutex> alone(one_at_a_time);
  Buffer* const buffer = buffer_of(address, bytes);
  if (buffer && !operations.empty()) note_running(address, bytes, op, pc);
  if (buffer && buffer->fill == Fill::scattered) return note_written(*buffer, address, bytes, op, pc);
  const uintptr_t end = address + uintptr_t(bytes);
  if (op != Op::load) return forget_stale(address, end);
  for (const Range& one : stale) {
    if (address < one.begin || end > one.end) continue;
    for (uintptr_t at = address; at < end; ++at)
      if (*reinterpret_cast<const unsigned char*>(at) != 0xff) return;  // written by ways that nobody tells of
    find("uninitialised", pc, nullptr, "reads " + std::to_string(bytes) + " bytes that nobody has written: they were copied "
         "from memory of the device that no kernel wrote");
    return;
  }
}

void on_copied(const void* to, const void* from, size_t bytes) {
  profiler.copied(reinterpret_cast<uintptr_t>(to), reinterpret_cast<uintptr_t>(from), bytes);
}

}  // namespace simt
