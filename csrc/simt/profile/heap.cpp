// Memory that kernels ask for themselves, by new and malloc: theirs to use until they give it back. The emulator's own code
// and the standard library's ask for memory too while a kernel runs, so it is looked at who calls. For whole programs only.
#ifdef SIMT_PROFILE

#include <cstdlib>
#include <new>
#include <unordered_map>

#include "../symbols.h"
#include "profiler.h"

#undef malloc  // in programs they are the functions below
#undef free

namespace simt {

static bool is_kernels(const void* pc) {
  static auto& known = *new std::unordered_map<const void*, bool>;
  const auto found = known.find(pc);
  if (found != known.end()) return found->second;
  const std::string name = function_at(pc);
  bool own = is_emulators_own(name);
  for (const char* standard : {"_ZNSt", "_ZNKSt", "_ZSt", "_ZN9__gnu_cxx"}) own |= name.rfind(standard, 0) == 0;
  return known[pc] = !own;
}

void Profiler::asked_for(void* memory, size_t bytes, const void* pc) {
  if (!active || noting || !memory) return;
  const bool now = std::exchange(active, false);  // what follows asks for memory as well
  if (is_kernels(pc)) heap[reinterpret_cast<uintptr_t>(memory)] = bytes;
  active = now;
}

void Profiler::given_back(void* memory) {
  if (!heap.empty() && !noting) heap.erase(reinterpret_cast<uintptr_t>(memory));
}

}  // namespace simt

void* operator new(size_t bytes) {
  for (;;) {
    if (void* const memory = std::malloc(bytes ? bytes : 1)) {
      simt::profiler.asked_for(memory, bytes, __builtin_return_address(0));
      return memory;
    }
    const std::new_handler handler = std::get_new_handler();
    if (!handler) throw std::bad_alloc();
    handler();
  }
}
void* operator new[](size_t bytes) {
  void* const memory = operator new(bytes);
  simt::profiler.asked_for(memory, bytes, __builtin_return_address(0));
  return memory;
}
void operator delete(void* memory) noexcept {
  simt::profiler.given_back(memory);
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete[](void* memory, size_t) noexcept { operator delete(memory); }

extern "C" void* simt_malloc(size_t bytes) noexcept {
  void* const memory = std::malloc(bytes);
  simt::profiler.asked_for(memory, bytes, __builtin_return_address(0));
  return memory;
}
extern "C" void simt_free(void* memory) noexcept {
  simt::profiler.given_back(memory);
  std::free(memory);
}
#endif
