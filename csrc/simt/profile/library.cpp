// Functions by which a library of emulated kernels is driven from other languages; nothing here throws.

#include <utility>

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

namespace simt {

struct Profile {  // that waits for one within it
  bool wanted;
  std::map<std::string, Kernel> kernels;
  std::vector<Finding> findings;
};
static std::vector<Profile> outer;
static std::string last_profile;

static void add(Kernel& sum, Kernel& more) {
  if (sum.name.empty()) return void(sum = std::move(more));
  sum.launches += more.launches;
  for (auto& [number, counted] : more.sites) {
    auto& [counters, pattern] = sum.sites[number];
    if (!pattern.mask) pattern = counted.second;
    counters.add(counted.first);
  }
  for (auto& [place, events] : more.events)
    for (auto& [what, event] : events) {
      Event& all = sum.events[place][what];
      all.times += event.times, all.lanes += event.lanes;
    }
  if (sum.timeline.empty()) sum.timeline = std::move(more.timeline);
}

static void add(std::vector<Finding>& all, const Finding& finding) {
  for (Finding& one : all)
    if (one.pc == finding.pc && one.other_pc == finding.other_pc && one.kind == finding.kind &&
        one.kernel == finding.kernel)
      return void(one.times += finding.times);
  all.push_back(finding);
}

}  // namespace simt

SIMT_EXPORT void simt_start() {  // may be called again before simt_stop: what then comes counts for both
  auto& now = simt::profiler;
  simt::outer.push_back({now.wanted, std::exchange(now.kernels, {}), std::exchange(now.findings, {})});
  now.wanted = true;
}

SIMT_EXPORT void simt_strict(int strict) { simt::options().strict = strict != 0; }

SIMT_EXPORT void simt_stop() {
  auto& now = simt::profiler;
  simt::last_profile = now.json();
  if (simt::outer.empty()) return;
  auto& before = simt::outer.back();
  for (auto& [name, kernel] : now.kernels) simt::add(before.kernels[name], kernel);
  for (const auto& finding : now.findings) simt::add(before.findings, finding);
  now.wanted = before.wanted, now.kernels = std::move(before.kernels), now.findings = std::move(before.findings);
  simt::outer.pop_back();
}

SIMT_EXPORT const char* simt_json() { return simt::last_profile.c_str(); }  // of the profile that stopped last

#endif
