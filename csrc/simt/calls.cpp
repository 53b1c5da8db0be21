// The functions that emulated kernels call, asynchronous copies, and memory for stacks.

#include "scheduler.h"
#include "symbols.h"

#include <sys/mman.h>
#include <unistd.h>

#ifdef __linux__
#include <link.h>
#endif

#include <map>
#include <mutex>
#include <new>
#include <utility>

namespace simt {

static thread_local std::string failed;  // where errors are kept instead of thrown

static void run_now(const LaunchConfig& config, void (*body)(void*), void* argument) {
  try {
    scheduler().run_grid(config, body, argument);
  } catch (const std::bad_alloc&) {
    throw Error(std::string("launch of ") + config.kernel + " at " + text(config.where) + ": out of memory");
  }
}

void run(const LaunchConfig& config, void (*body)(void*), void* argument) {
  if (!options().keep_errors) return run_now(config, body, argument);
  if (!failed.empty()) return;  // as on a GPU: after an error nothing is launched until somebody has asked for it
  try {
    run_now(config, body, argument);
  } catch (const Error& error) {
    failed = error.what();
  }
}

void keep_error(const char* message) {
  if (failed.empty()) failed = message;
}

std::string take_error() { return std::exchange(failed, {}); }

#ifndef SIMT_PROFILE
void look_away(bool) {}

static std::mutex watching;
static std::map<const void*, size_t> watched;

void watch(const void* address, size_t bytes, const char*) {
  const std::lock_guard<std::mutex> alone(watching);
  watched[address] = bytes;
}

void forget(const void* address) {
  const std::lock_guard<std::mutex> alone(watching);
  watched.erase(address);
}

uint64_t hash_of_watched(uint64_t hash) {  // in a signal: a kernel runs, and nobody is watching more
  for (const auto& [address, bytes] : watched) hash = hash_of(hash, address, bytes);
  for (const Variable& one : variables()) hash = hash_of(hash, one.address, one.bytes);
  return watched.empty() ? 0 : hash | 1;
}

// Static shared memory; the profiler knows more closely.
std::pair<unsigned char*, size_t> static_shared() {
  static thread_local std::pair<unsigned char*, size_t> found = {nullptr, 0};
  if (found.second) return found;
#ifdef __linux__
  *const_cast<volatile unsigned*>(&threadIdx.x);  // touched, so that this OS thread has its thread-local memory
  dl_iterate_phdr([](dl_phdr_info* info, size_t, void* result) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& part = info->dlpi_phdr[i];
      const size_t offset = size_t(reinterpret_cast<char*>(&threadIdx) - static_cast<char*>(info->dlpi_tls_data));
      if (part.p_type != PT_TLS || !info->dlpi_tls_data || offset >= part.p_memsz) continue;
      *static_cast<std::pair<unsigned char*, size_t>*>(result) = {
          static_cast<unsigned char*>(info->dlpi_tls_data), part.p_memsz};
      return 1;
    }
    return 0;
  }, &found);
#endif
  return found;
}
#endif

int barrier(int value, const char* what, Where where) { return scheduler().barrier(value, what, where); }

const Slot& exchange(uint32_t mask, const void* value, size_t bytes, const char* what, Where where) {
  return scheduler().exchange(mask, value, bytes, what, where);
}

const unsigned char* exchange_wide(int first, int threads, const void* value, size_t bytes, const char* what,
                                   Where where) {
  return scheduler().exchange_wide(first, threads, value, bytes, what, where);
}

uint32_t converged(const char* what, Where where) { return scheduler().converged(what, where); }
void grid_barrier(Where where) {
  if (!scheduler().all_together())
    fail("grid_group::sync() in a kernel that cudaLaunchCooperativeKernel did not launch", where);
  scheduler().barrier(0, kGridBarrier, where);
}

void phase_ends(Where where) {
  ++scheduler().progress;
  on_barrier(where, 1);
}

void yield(Where where) { scheduler().pass_turn(where); }
bool in_kernel() { return scheduler().running; }
void launch_later(Later* launch) { scheduler().later.push_back(launch); }

void* dynamic_shared() { return scheduler().shared(); }

// Dynamic shared memory lies at 16 MiB, static memory 2 GiB above the page of its first known variable; the low bits stay.
constexpr unsigned kDynamicAt = 1u << 24, kStaticAt = 1u << 31;
static uintptr_t static_page() { return reinterpret_cast<uintptr_t>(&threadIdx) & ~uintptr_t{4095}; }

static bool is_dynamic(const void* pointer) {
  const uintptr_t distance = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(dynamic_shared());
  return scheduler().shared_bytes() && distance <= scheduler().shared_bytes();
}

bool is_shared_memory(const void* pointer) {
  const auto [statics, bytes] = static_shared();
  return is_dynamic(pointer) || reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(statics) <= bytes;
}

unsigned shared_address(const void* pointer, Where where) {
  if (is_dynamic(pointer))
    return kDynamicAt + unsigned(static_cast<const unsigned char*>(pointer) - scheduler().shared());
  if (!is_shared_memory(pointer)) fail("a pointer to shared memory is wanted, this one is not", where);
  return kStaticAt + unsigned(int(reinterpret_cast<intptr_t>(pointer) - intptr_t(static_page())));
}

void* from_shared_address(unsigned address) {
  if (address < kStaticAt / 2) return static_cast<char*>(dynamic_shared()) + (address - kDynamicAt);
  return reinterpret_cast<void*>(static_page() + uintptr_t(intptr_t(int(address - kStaticAt))));
}

int lane_id() {
  return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kWarp);
}

void fail(const std::string& message, Where where) {
  if (!scheduler().running) throw Error(message + " at " + text(where));
  scheduler().fail(message, where);
}

void fail_absent(int lane, const char* what, Where where) {
  fail(std::string(what) + " reads lane " + std::to_string(lane) +
       ", which does not take part: it returned, does not exist or is not in the mask", where);
}

void atomic_access(const void* address, int bytes, Where where) {
  on_access(address, bytes, Op::atomic, where);
  atomic_point(where);
}

void fence() { on_fence(); }

void matrix_row(const void* row, const char* what, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail(std::string(what) + " of a row that is not 16-byte aligned", where);
  on_access(row, 16, Op::load, where);
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
  on_copy(groups.back().back(), where);
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
      on_copy_arrives(copy);
    }
  groups.erase(groups.begin(), groups.begin() + long(done));
}

// ---- stacks

char* Stacks::take() {
  if (free.empty()) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), each = kStackBytes + page, count = 32;
    void* memory = mmap(nullptr, each * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) throw Error("no memory for the stacks of the emulated threads");
    mapped.push_back({static_cast<char*>(memory), each * count});
    for (size_t i = count; i-- > 0;) {
      char* guard = static_cast<char*>(memory) + i * each;
      mprotect(guard, page, PROT_NONE);
      free.push_back(guard + page);
    }
  }
  char* stack = free.back();
  free.pop_back();
  return stack;
}

Stacks::~Stacks() {
  for (auto& [memory, bytes] : mapped) munmap(memory, bytes);
}

}  // namespace simt
