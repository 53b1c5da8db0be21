// Which global memory somebody has written since it was allocated. What is known by name (kernels, copies, sets) is kept as
// bits. The host may write what it shares with the device by ways that nobody tells of, so bytes count as unwritten only
// while they also hold what they were filled with.

#include <utility>

#include "profiler.h"

namespace simt {

constexpr size_t kMostFreed = size_t{256} << 20;  // bytes of freed memory that are kept from being used again

// 0xff, as NaN as memory can be; or for shared memory one of 126 values, by the address, which few programs write.
static unsigned char fill_at(Fill fill, uintptr_t address) {
  return fill == Fill::ones ? 0xff : static_cast<unsigned char>(0x80 + (address * 0x9e3779b97f4a7c15u >> 40) % 126);
}

void Profiler::allocate(uintptr_t address, size_t bytes, const char* name, Fill fill) {
  buffers.push_back({address, address + bytes, name, {}, false, fill, Bits(bytes / 64 + 2, 0)});
  last_buffer = nullptr;
  if (fill != Fill::scattered) return;
  for (size_t i = 0; i < bytes; ++i) reinterpret_cast<unsigned char*>(address)[i] = fill_at(fill, address + i);
  host_matters = true;
}

static bool any_bit(const Bits& bits, size_t from, size_t count) {
  for (size_t at = from; at < from + count; ++at)
    if (bits[at / 64] >> at % 64 & 1) return true;
  return false;
}

// Whether nobody has written any of these bytes. Of shared memory the whole aligned word of 8 bytes must be as it was, since
// a single byte is easily the same by chance.
bool Profiler::is_unwritten(const Buffer& buffer, size_t at, size_t bytes) const {
  if (any_bit(buffer.written, at, bytes)) return false;
  size_t first = at, last = at + bytes;
  if (buffer.fill == Fill::scattered)
    first = at / 8 * 8, last = std::min((last + 7) / 8 * 8, size_t(buffer.end - buffer.begin));
  for (size_t i = first; i < last; ++i)
    if (*reinterpret_cast<const unsigned char*>(buffer.begin + i) != fill_at(buffer.fill, buffer.begin + i)) return false;
  return true;
}

// A struct is copied with its padding, and a union with what is not in use: only where nothing of it is written is it told.
void Profiler::note_written(Buffer& buffer, uintptr_t address, int bytes, Op op, const void* pc) {
  const size_t at = address - buffer.begin;
  if (op != Op::store && is_unwritten(buffer, at, size_t(bytes)))
    find("uninitialised", pc, nullptr, verb(op) + std::to_string(bytes) + " bytes that nobody has written, " +
         distance(address));
  if (op != Op::load) set_bits(buffer.written, at, size_t(bytes));
}

const Buffer* Profiler::freed_at(uintptr_t address) const {
  for (const Buffer& one : freed)
    if (address >= one.begin && address < one.end) return &one;
  return nullptr;
}

bool Profiler::in_heap(uintptr_t address, int bytes) const {
  auto next = heap.upper_bound(address);
  if (next == heap.begin()) return false;
  --next;
  return address + uintptr_t(bytes) <= next->first + next->second;
}

// ---- what the runtime tells

void on_allocated(const void* memory, size_t bytes, const char* name, bool filled) {
  profiler.allocate(reinterpret_cast<uintptr_t>(memory), bytes, name, filled ? Fill::ones : Fill::scattered);
}

void on_freed(const void* memory, std::vector<void*>& unused) {
  Profiler& my = profiler;
  for (size_t i = my.buffers.size(); i-- > 0;) {
    Buffer& one = my.buffers[i];
    if (one.begin != reinterpret_cast<uintptr_t>(memory)) continue;
    my.freed_bytes += one.end - one.begin;
    my.freed.push_back({one.begin, one.end, std::move(one.name), {}});
    break;
  }
  forget(memory);
  while (my.freed_bytes > kMostFreed) {
    my.freed_bytes -= my.freed[0].end - my.freed[0].begin;
    unused.push_back(reinterpret_cast<void*>(my.freed[0].begin));
    my.freed.erase(my.freed.begin());
  }
}

void on_written(const void* to, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  for (Buffer& one : profiler.buffers)
    if (one.fill != Fill::none && address >= one.begin && address < one.end)
      set_bits(one.written, address - one.begin, std::min(bytes, size_t(one.end - address)));
  profiler.forget_stale(address, address + bytes);
}

bool is_freed(const void* address) { return profiler.freed_at(reinterpret_cast<uintptr_t>(address)) != nullptr; }

void on_misuse(const char* kind, const std::string& text, const void* pc) { profiler.find(kind, pc, nullptr, text); }

}  // namespace simt
