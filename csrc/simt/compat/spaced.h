// Memory with room on both sides. A GPU gives out memory in pages of 2 MiB, so a kernel that leaves an array by a little
// goes on there; here it must not hit what malloc keeps beside its blocks, or the program ends far from its mistake.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace simt::program {

constexpr size_t kSpace = 64 << 10;  // bytes in front and behind; they cost addresses, not memory, until they are touched

inline void* spaced_alloc(size_t bytes) {
  if (bytes > SIZE_MAX - 2 * kSpace - 256) return nullptr;
  void* const all = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 2 * kSpace);
  return all ? static_cast<char*>(all) + kSpace : nullptr;
}
inline void spaced_free(void* pointer) { std::free(static_cast<char*>(pointer) - kSpace); }

}  // namespace simt::program
