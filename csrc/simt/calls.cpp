// The functions that emulated kernels call, and asynchronous copies.

#include "scheduler.h"

namespace simt {

void run(const LaunchConfig& config, void (*body)(void*), void* argument) {
  scheduler().run_grid(config, body, argument);
}

int barrier(int value, const char* what, Where where) { return scheduler().barrier(value, what, where); }

const Slot& exchange(uint32_t mask, const void* value, size_t bytes, const char* what, Where where) {
  return scheduler().exchange(mask, value, bytes, what, where);
}

void* dynamic_shared() { return scheduler().shared.data(); }

int lane_id() {
  return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp);
}

void fail(const std::string& message, Where where) {
  if (!scheduler().running) throw Error(message + " at " + text(where));
  scheduler().fail(message, where);
}

void atomic_point(Where where) {
  Scheduler& self = scheduler();
  if (self.running && ++self.atomics_in_a_row >= 256) self.pass_turn(where);
}

// ---- cp.async: a copy is done as late as the rules allow, and until then its target holds NaNs

void copy_later(void* to, const void* from, int bytes, int wanted, Where where) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("cp.async of " + std::to_string(bytes) + " bytes: both addresses must be multiples of that", where);
  if (wanted < 0 || wanted > bytes) fail("cp.async wants " + std::to_string(wanted) + " bytes of fewer", where);
  auto& groups = scheduler().me().copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back({to, from, bytes, wanted});
  std::memset(to, 0xff, size_t(bytes));
}

void commit_copies() {
  auto& groups = scheduler().me().copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();  // the next open group
}

void finish_copies(int groups_in_flight) {
  auto& groups = scheduler().me().copies;
  const size_t committed = groups.empty() ? 0 : groups.size() - 1;
  const size_t done = committed > size_t(groups_in_flight) ? committed - size_t(groups_in_flight) : 0;
  for (size_t g = 0; g < done; ++g)
    for (const AsyncCopy& copy : groups[g]) {
      std::memcpy(copy.to, copy.from, size_t(copy.wanted));
      std::memset(static_cast<char*>(copy.to) + copy.wanted, 0, size_t(copy.bytes - copy.wanted));
    }
  groups.erase(groups.begin(), groups.begin() + long(done));
}

}  // namespace simt
