// Functions by which a library of emulated kernels is driven from other languages; nothing here throws.

#include "../scheduler.h"
#ifdef SIMT_PROFILE
#include "profiler.h"
#endif

namespace simt {
static const char* kept(std::string text) {  // until the next call
  static thread_local std::string last;
  return (last = std::move(text)).c_str();
}
}  // namespace simt

#define SIMT_EXPORT extern "C" __attribute__((visibility("default")))

SIMT_EXPORT void simt_keep_errors(int keep) { simt::options().keep_errors = keep != 0; }

SIMT_EXPORT const char* simt_take_error() {  // "" if there was none; valid until the next call
  return simt::kept(simt::take_error());
}

SIMT_EXPORT const char* simt_set_schedule(const char* order) {
  try {
    simt::set_schedule(order);
    return "";
  } catch (const simt::Error& error) {
    return simt::kept(error.what());
  }
}

SIMT_EXPORT void simt_watch(const void* address, size_t bytes, const char* name) { simt::watch(address, bytes, name); }
SIMT_EXPORT void simt_forget(const void* address) { simt::forget(address); }

#ifdef SIMT_PROFILE

SIMT_EXPORT void simt_start() {
  simt::profiler.kernels.clear();
  simt::profiler.findings.clear();
  simt::profiler.wanted = true;
}

SIMT_EXPORT void simt_strict(int strict) { simt::options().strict = strict != 0; }
SIMT_EXPORT void simt_stop() { simt::profiler.wanted = false; }

SIMT_EXPORT const char* simt_json() {  // valid until the next call
  static std::string text;
  return (text = simt::profiler.json()).c_str();
}

#endif
