// Every load and store of a kernel arrives here: with -fsanitize=thread the compiler calls __tsan_read4(address) and its
// like before each, and this file stands in for the sanitizer's own library. Kernels need no change.

#include <algorithm>
#include <utility>

#include "profiler.h"

namespace simt {

Profiler profiler;
volatile bool noting = false, end_when_noted = false;

static void end_noting(const void* pc) {
  noting = false;
  if (!end_when_noted) return;
  end_when_noted = false;
  scheduler().endless_at = const_cast<char*>(static_cast<const char*>(pc) - 1);
  scheduler().leave();
}

// ---- where an address lies

// Whether a float becomes an integer just behind a load: F3 or F2, perhaps a REX byte, 0F 2C, or the same in a VEX form.
static bool converts_behind([[maybe_unused]] const void* pc) {
#ifdef __x86_64__
  const auto* code = static_cast<const unsigned char*>(pc);
  for (const auto* end = code + 48; code < end; ++code) {
    const bool plain = code[0] == 0xf2 || code[0] == 0xf3, rex = (code[1] & 0xf0) == 0x40;
    if (plain && code[1 + rex] == 0x0f && code[2 + rex] == 0x2c) return true;
    if (code[0] == 0xc5 && (code[1] & 3) >= 2 && code[2] == 0x2c) return true;
    if (code[0] == 0xc4 && (code[1] & 0x1f) == 1 && (code[2] & 3) >= 2 && code[3] == 0x2c) return true;
  }
#endif
  return false;
}

std::string verb(Op op) { return op == Op::load ? "reads " : op == Op::store ? "writes " : "updates "; }

template <Op op>
inline void Profiler::note(const void* pointer, int bytes, bool aligned, const void* pc) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (!active) {
    if (host_matters && !kernel) note_host(address, bytes, op, pc);
    return;
  }
  if (address - stack < kStackBytes) {
    if (!local_variables[thread].empty()) note_local(address, bytes, op, pc);
    return;
  }
  if (doubt.address) settle();
  const uintptr_t local = address - locals;
  if (local < locals_bytes && room[local] == kEmulators) return;
  if (++patience > kPatience) {
    patience = 0;
    noting = false;
    scheduler().give_way();
    noting = true;
  }
  if (aligned && (address & uintptr_t(bytes - 1)))
    stop("misaligned", pc, std::string(op == Op::load ? "reads " : "writes ") + std::to_string(bytes) +
         " bytes at an address that is no multiple of that (" + distance(address) + ")");
  const uintptr_t now = op == Op::load ? address ^ uintptr_t(bytes) << 56 : 0, before = std::exchange(last_load, now);
  if (now && before == now && converts_behind(pc)) return;  // a checked conversion reads its operand twice, see casts.cpp
  const size_t offset = shared_offset(address, bytes);
  if (offset != kNotShared) note_shared(address, offset, bytes, op, pc);
  else note_global(address, bytes, op, pc);
}

inline void Profiler::note_shared(uintptr_t address, size_t offset, int bytes, Op op, const void* pc) {
  Site& site = site_of(pc, op, kShared, bytes);
  shadow(offset, bytes, site, address);
  group(site, address);
}

inline void Profiler::note_global(uintptr_t address, int bytes, Op op, const void* pc) {
  const bool nobodys = address - locals < locals_bytes || address - dynamic + kGuard < dynamic_bytes + 2 * kGuard;
  if (!nobodys && address - host_stack < host_stack_bytes) return;  // the kernel's parameters
  if (!nobodys && address - constants < constants_end - constants) return;
  Buffer* const buffer = nobodys || !bounded ? nullptr : buffer_of(address, bytes);
  if (nobodys || (bounded && !buffer && !in_heap(address, bytes)))
    stop(freed_at(address) ? "use after free" : "out of bounds", pc, verb(op) + std::to_string(bytes) + " bytes, " +
         distance(address));
  if (buffer && buffer->fill != Fill::none) note_written(*buffer, address, bytes, op, pc);
  Site& site = site_of(pc, op, kGlobal, bytes);
  site.is_volatile = is_volatile;
  if (!rivals.empty()) note_rivals(address, bytes, op, pc);
  if (buffer) note_history(*buffer, address, bytes, site);
  if (is_volatile) order_blocks(reinterpret_cast<const void*>(address), op != Op::load);
  group(site, address);
}

Buffer* Profiler::buffer_of(uintptr_t address, int bytes) {
  if (last_buffer && address >= last_buffer->begin && address + uintptr_t(bytes) <= last_buffer->end)
    return last_buffer;
  for (Buffer& buffer : buffers)
    if (address >= buffer.begin && address + uintptr_t(bytes) <= buffer.end) return last_buffer = &buffer;
  return nullptr;
}

// ---- the life of a launch

void on_launch(const LaunchConfig& config, const unsigned char* shared) {
  Profiler& my = profiler;
  if (!my.wanted) return;
  if (!thread_locals().known) throw Error("the profiler cannot read the symbols of its own library");
  my.one_at_a_time.lock();
  std::string name = config.kernel;
  if (name.size() > 1 && name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
  my.find_memory();
  my.begin_history();
  my.dynamic = reinterpret_cast<uintptr_t>(shared), my.dynamic_bytes = config.shared_bytes;
  my.dynamic_offset = (my.statics_bytes + 127) / 128 * 128;
  my.make_shadow(my.dynamic_offset + my.dynamic_bytes + 128);
  my.last_buffer = nullptr;
  for (Buffer& buffer : my.buffers)
    for (auto& bits : buffer.touched) bits.assign((buffer.end - buffer.begin) / 64 + 2, 0);
  my.enqueue(config.stream, "kernel " + name);
  my.config = &config;
  my.kernel = &my.kernels[name];
  my.timed = my.kernel->launches++ == 0;
  my.kernel->name = name;
  my.kernel->grid = config.grid, my.kernel->block = config.block, my.kernel->shared_bytes = config.shared_bytes;
}

void on_launch_end() {
  Profiler& my = profiler;
  if (!my.kernel) return;
  my.fold();
  my.launched();
  my.kernel = nullptr;
  my.one_at_a_time.unlock();
}

void on_block(int threads, const unsigned char* shared, bool resumed) {
  Profiler& my = profiler;
  if (!my.kernel) return;
  noting = end_when_noted = false;
  my.block_epoch = ++my.epoch;
  my.begin_turn();
  my.fences.forget();
  if (resumed) my.block_epoch = 1;  // what it wrote before it waited for the grid is written, and ordered
  my.dynamic = reinterpret_cast<uintptr_t>(shared);
  my.patience = 0;
  for (int w = 0; w < kMaxWarps; ++w) {
    const int lanes = std::max(0, std::min(kWarp, threads - w * kWarp));
    my.gone[w] = lanes == kWarp ? 0 : ~0u << lanes;
    my.clock[w] = my.all_met[w] = 0;
    if (my.met_in_part[w]) std::memset(my.met[w], 0, sizeof my.met[w]);
    my.met_in_part[w] = false;
  }
  std::memset(my.steps, 0, sizeof my.steps);
  my.active = true;
}

void on_block_end() {
  Profiler& my = profiler;
  if (!my.active) return;
  my.settle();
  my.report_suspects();
  for (int w = 0; w < kMaxWarps; ++w) my.flush(w);
  my.active = my.timed = false;
  if (!my.config->together)
    for (auto& one : my.local_variables) one.clear();
}

void on_turn(int thread, const char* stack) {
  Profiler& my = profiler;
  if (my.doubt.address) my.settle();
  my.thread = thread, my.warp = thread / kWarp, my.lane = thread % kWarp;
  my.stack = reinterpret_cast<uintptr_t>(stack);
  my.last_load = 0;
  my.patience = 0;
}

void on_gone(int thread) {
  if (profiler.active) profiler.gone[thread / kWarp] |= 1u << thread % kWarp;
  profiler.local_variables[thread].clear();
}

void on_barrier(Where where, int threads) {
  Profiler& my = profiler;
  if (!my.active) return;
  my.last_load = 0;
  my.settle();
  my.report_suspects();
  for (int w = 0; w * kWarp < int(my.config->block.x * my.config->block.y * my.config->block.z); ++w) my.flush(w);
  ++my.epoch;
  my.fences.forget();
  Event& event = my.kernel->events[{where.file, where.line}]["barrier"];
  ++event.times;
  event.lanes += uint64_t(threads);
}

void on_meeting(int warp, uint32_t lanes, const char* what, Where where) {
  Profiler& my = profiler;
  if (!my.active) return;
  my.last_load = 0;
  my.settle();
  if (!options().strict || std::strcmp(what, "__syncwarp()") == 0) my.meet(warp, lanes);
  if (lanes == ~my.gone[warp]) my.flush(warp);
  if (std::strcmp(what, "end of ldmatrix") == 0) return;
  Event& event = my.kernel->events[{where.file, where.line}][what];
  ++event.times;
  event.lanes += uint64_t(__builtin_popcount(lanes));
}

void on_access(const void* address, int bytes, Op op, Where where) {
  noting = true;
  const void* pc = stand_in(where);
  if (op == Op::load) profiler.note<Op::load>(address, bytes, true, pc);
  if (op == Op::store) profiler.note<Op::store>(address, bytes, true, pc);
  if (op == Op::atomic) {
    profiler.note<Op::atomic>(address, bytes, true, pc);
    profiler.sync_by(address);
    if (profiler.active) profiler.order_blocks(address, true);
  }
  noting = end_when_noted = false;  // a thread that waits by atomics gives way soon
}

void on_fence() {
  profiler.fenced = profiler.epoch;
  profiler.fence();
}

void on_phase() { profiler.launch_epoch = ++profiler.epoch; }

void on_copy(const AsyncCopy& copy, Where where) {
  const void* pc = stand_in(where);
  if (copy.wanted > 0) profiler.note<Op::load>(copy.from, copy.wanted, false, pc);
  profiler.note<Op::store>(copy.to, copy.bytes, true, pc);
  profiler.fly(copy, true);
}

void look_away(bool away) {
  if (profiler.kernel) profiler.active = !away;
}

void on_copy_arrives(const AsyncCopy& copy) { profiler.fly(copy, false); }

}  // namespace simt

// ---- the compiler's calls

#define SIMT_NOTE(op, bytes, aligned)                                                              \
  const bool casting = std::exchange(simt::casting, false);                                          \
  simt::noting = true;                                                                               \
  simt::profiler.note<simt::Op::op>(p, bytes, aligned, __builtin_return_address(0));                 \
  simt::end_noting(__builtin_return_address(0));                                                     \
  if (casting) simt::go_on_casting();
#define SIMT_VOLATILE(op, bytes)   \
  simt::profiler.last_load = 0;    \
  simt::profiler.is_volatile = true; \
  SIMT_NOTE(op, bytes, true)       \
  simt::profiler.is_volatile = false; \
  simt::profiler.last_load = 0;
#define SIMT_SIZE(n)                                                                 \
  void __tsan_read##n(void* p) { SIMT_NOTE(load, n, true); }                         \
  void __tsan_write##n(void* p) { SIMT_NOTE(store, n, true); }                       \
  void __tsan_volatile_read##n(void* p) { SIMT_VOLATILE(load, n); }                  \
  void __tsan_volatile_write##n(void* p) { SIMT_VOLATILE(store, n); }                \
  void __tsan_unaligned_read##n(void* p) { SIMT_NOTE(load, n, false); }              \
  void __tsan_unaligned_write##n(void* p) { SIMT_NOTE(store, n, false); }
extern "C" {
SIMT_SIZE(1)
SIMT_SIZE(2)
SIMT_SIZE(4)
SIMT_SIZE(8)
SIMT_SIZE(16)
void __tsan_read_range(void* p, size_t bytes) { SIMT_NOTE(load, int(bytes), false); }
void __tsan_write_range(void* p, size_t bytes) { SIMT_NOTE(store, int(bytes), false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
