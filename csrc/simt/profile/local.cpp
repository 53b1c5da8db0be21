// Local variables without a first value. `simt run --profile` marks each where it is declared, so that the compiler keeps it
// in memory and tells of its accesses, as of all others; here it is remembered which bytes were written. An index beyond a
// local array is told by the compiler's own check (-fsanitize=bounds), whose messages arrive here too.

#include "profiler.h"

namespace simt {

// What a variable holds before it is written; not one value, since functions that nobody tells of may write any.
static unsigned char fill_at(uintptr_t address) {
  return static_cast<unsigned char>(0x80 + (address * 0x9e3779b97f4a7c15u >> 40) % 126);
}

void Profiler::begin_local(uintptr_t address, size_t bytes, const char* name) {
  if (!active || address - stack >= kStackBytes) return;
  end_local(address);
  for (size_t i = 0; i < bytes; ++i) reinterpret_cast<unsigned char*>(address)[i] = fill_at(address + i);
  local_variables[thread].push_back({address, address + bytes, name, Bits(bytes / 64 + 2, 0)});
}

void Profiler::end_local(uintptr_t address) {
  auto& all = local_variables[thread];
  for (size_t i = all.size(); i-- > 0;)
    if (all[i].begin == address) return void(all.erase(all.begin() + long(i)));
}

void Profiler::note_local(uintptr_t address, int bytes, Op op, const void* pc) {
  for (size_t i = local_variables[thread].size(); i-- > 0;) {
    Local& one = local_variables[thread][i];
    if (address < one.begin || address >= one.end) continue;
    const size_t at = address - one.begin, count = std::min(size_t(bytes), size_t(one.end - address));
    bool written = op == Op::store;
    for (size_t b = at; b < at + count && !written; ++b)
      written = (one.written[b / 64] >> b % 64 & 1) || *reinterpret_cast<unsigned char*>(one.begin + b) != fill_at(one.begin + b);
    if (written) set_bits(one.written, at, count);
    else find("uninitialised", pc, nullptr, "reads " + std::to_string(bytes) + " bytes at byte " + std::to_string(at) +
              " of local variable " + one.name + " (" + std::to_string(one.end - one.begin) + " bytes) before they are written");
    return;
  }
}

}  // namespace simt

extern "C" void simt_local_begins(const volatile void* variable, size_t bytes, const char* name) {
  simt::profiler.begin_local(reinterpret_cast<uintptr_t>(variable), bytes, name);
}

extern "C" void simt_local_ends(const volatile void* variable) {
  if (simt::profiler.active) simt::profiler.end_local(reinterpret_cast<uintptr_t>(variable));
}

// Two pointers that are __restrict__, one of them to write to, and are the same.
extern "C" void simt_distinct(const char* names, const void* const* pointers, const bool* are_read, int count) {
  for (int i = 0; i < count; ++i)
    for (int j = 0; j < i; ++j)
      if (pointers[i] && pointers[i] == pointers[j] && !(are_read[i] && are_read[j]))
        simt::profiler.find("aliased restrict", __builtin_return_address(0), nullptr,
                            std::string("two of its pointers ") + names + " are the same: __restrict__ promises that nothing "
                            "written through one is accessed through another");
}

// ---- the compiler's check of indices

struct BoundsType {
  uint16_t kind, info;
  char name[1];
};
struct BoundsData {
  const char* file;
  uint32_t line, column;
  const BoundsType *array, *index;
};

extern "C" void __ubsan_handle_out_of_bounds(void* data_, uintptr_t index) {
  const BoundsData& data = *static_cast<const BoundsData*>(data_);
  if (!simt::profiler.active) return;
  const bool is_signed = data.index->info & 1;
  simt::profiler.find("out of bounds", __builtin_return_address(0), nullptr,
                      "index " + (is_signed ? std::to_string(intptr_t(index)) : std::to_string(index)) +
                      " in an array of type " + data.array->name);
}
