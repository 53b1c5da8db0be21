// What a launch is held to, what an error says, and the functions that kernels call.

#include <algorithm>
#include <cstdlib>
#include <map>

#include "scheduler.h"
#include "symbols.h"

namespace simt {

// ---- options

static const Device kDevices[] = {  // CUDA programming guide, technical specifications per compute capability
    {"sm_80", 48 * 1024, 163 * 1024},  {"sm_86", 48 * 1024, 99 * 1024},   {"sm_89", 48 * 1024, 99 * 1024},
    {"sm_90", 48 * 1024, 227 * 1024},  {"sm_100", 48 * 1024, 227 * 1024}, {"sm_120", 48 * 1024, 99 * 1024}};

static void read_schedule(Options& all, const std::string& text) {
  if (text == "forward") {
    all.order = Order::forward;
  } else if (text == "reverse") {
    all.order = Order::reverse;
  } else if (text.rfind("shuffle:", 0) == 0 && text.find_first_not_of("0123456789", 8) == std::string::npos &&
             text.size() > 8) {
    all.order = Order::shuffle;
    all.seed = std::strtoull(text.c_str() + 8, nullptr, 10);
  } else {
    throw Error("schedule '" + text + "' is not known: use forward, reverse or shuffle:SEED");
  }
}

static void read_device(Options& all, const std::string& name) {
  std::string known;
  for (const Device& device : kDevices) {
    if (name == device.name) {
      all.device = device;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + device.name;
  }
  throw Error("device '" + name + "' is not known: use one of " + known);
}

Options& options() {
  static Options all = [] {
    Options read;
    if (const char* text = std::getenv("SIMT_SCHEDULE")) read_schedule(read, text);
    if (const char* text = std::getenv("SIMT_DEVICE")) read_device(read, text);
    if (const char* text = std::getenv("SIMT_SECONDS")) read.seconds = std::atof(text);
    if (const char* text = std::getenv("SIMT_STRICT")) read.strict = std::atoi(text) != 0;
    return read;
  }();
  return all;
}

void set_schedule(const std::string& text) { read_schedule(options(), text); }
void set_device(const std::string& name) { read_device(options(), name); }

// ---- limits of a launch

static std::map<const void*, size_t>& opted_in() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}

void allow_shared(const void* function, size_t bytes) {  // throws at once, also under keep_errors
  const Device& device = options().device;
  if (bytes > device.shared_opt_in_bytes)
    throw Error("cudaFuncSetAttribute asks for " + std::to_string(bytes) + " bytes of shared memory, and a block on " +
                device.name + " has at most " + std::to_string(device.shared_opt_in_bytes));
  opted_in()[function] = bytes;
}

static std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z) + ")";
}

static std::string text(uint3 i) { return text(dim3(i.x, i.y, i.z)); }

std::string text(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }

void check_limits(const LaunchConfig& config) {
  const dim3 g = config.grid, b = config.block;
  const Device& device = options().device;
  const auto refuse = [&](const std::string& why) {
    throw Error(std::string("launch of ") + config.kernel + " at " + text(config.where) + ": " + why);
  };
  if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z)
    refuse("grid " + text(g) + " and block " + text(b) + " must not have a 0: launch nothing where there is nothing");
  if (b.x > 1024 || b.y > 1024 || b.z > 64 || uint64_t{b.x} * b.y * b.z > kMaxThreads)
    refuse("block " + text(b) + " is too large: at most (1024,1024,64) and 1024 threads in all");
  if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
    refuse("grid " + text(g) + " is too large: at most (2147483647,65535,65535)");
  const size_t opted = allowed_shared(config.function);
  const size_t fixed = static_shared_of(config.function), both = fixed + config.shared_bytes;
  if (fixed > device.shared_bytes)
    refuse(std::to_string(fixed) + " bytes of static shared memory: a kernel may have " +
           std::to_string(device.shared_bytes) + ", and more only as dynamic shared memory");
  if (fixed && both > std::max(device.shared_bytes, opted ? device.shared_opt_in_bytes : 0))
    refuse(std::to_string(fixed) + " bytes of static and " + std::to_string(config.shared_bytes) +
           " of dynamic shared memory: together a block has " +
           std::to_string(opted ? device.shared_opt_in_bytes : device.shared_bytes) + " on " + device.name +
           (opted ? "" : ", and more where cudaFuncSetAttribute allowed the kernel to"));
  if (config.shared_bytes > device.shared_bytes && config.shared_bytes > opted)
    refuse(std::to_string(config.shared_bytes) + " bytes of dynamic shared memory: over " +
           std::to_string(device.shared_bytes) + " a kernel must first be allowed to, up to " +
           std::to_string(device.shared_opt_in_bytes) + " on " + device.name +
           ", by cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)");
}

size_t allowed_shared(const void* function) {
  const auto found = opted_in().find(function);
  return found == opted_in().end() ? 0 : found->second;
}

// ---- what an error says

std::string Scheduler::title() {
  std::string name = config_->kernel;
  if (name.size() > 1 && name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
  return "kernel " + name + ", block " + text(blockIdx) + ", thread " + text(me().index) + ", " + text(me().seen) + ": ";
}

static std::string lanes(uint32_t mask) {
  std::string all;
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    int last = i;
    while (last < 31 && mask >> (last + 1) & 1) ++last;
    all += (all.empty() ? "" : ",") + std::to_string(i) + (last > i ? "-" + std::to_string(last) : "");
    i = last;
  }
  return all;
}

void Scheduler::fail_deadlocked() {
  std::map<std::string, std::pair<int, int>> groups;  // what is waited for -> how many threads, the first of them
  int first = -1;
  for (int i = 0; i < threads_; ++i) {
    const Thread& thread = thread_[i];
    if (!thread.started || !thread.waits_at) continue;
    if (first < 0) first = i;
    std::string what = std::string(thread.waits_at) + " at " + text(thread.seen);
    if (thread.mask) {
      uint32_t here = 0;  // lanes that have come to this meeting
      for (size_t m = 0; m < warp_[i / kWarp].in_use; ++m)
        if (warp_[i / kWarp].meetings[m]->mask == thread.mask) here = warp_[i / kWarp].meetings[m]->arrived;
      what += " for lanes " + lanes(thread.mask & ~warp_[i / kWarp].gone & ~here) + " of warp " +
              std::to_string(i / kWarp);
    }
    auto [group, fresh] = groups.insert({what, {0, i}});
    ++group->second.first;
  }
  std::string message = "deadlock:";
  for (const auto& [what, group] : groups)
    message += (message.back() == ':' ? " " : "; ") + std::to_string(group.first) + " thread(s), the first " +
               text(thread_[group.second].index) + ", wait in " + what;
  current_ = first;
  fail(message, thread_[first].seen);
}

}  // namespace simt
