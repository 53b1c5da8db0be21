// Blocks one after another, blocks that wait for each other, threads of several warps that do, and kernels that launch.

#include <algorithm>
#include <utility>

#include "scheduler.h"

namespace simt {

const char* const kGridBarrier = "grid_group::sync()";

// ---- lanes that are together by chance, and threads of several warps

uint32_t Scheduler::converged(const char* what, Where where) {
  Thread& mine = me();
  seen_at(where);
  mine.waits_at = what;
  mine.mask = 0;
  warp_[current_ / kWarp].gathering |= 1u << current_ % kWarp;
  clear_ready(current_);
  gather(current_ / kWarp);
  go_on(0);
  mine.waits_at = nullptr;
  return mine.mask;
}

// Once no lane of the warp can go on, those that ask at the same place are together.
void Scheduler::gather(int w, bool at_once) {
  Warp& warp = warp_[w];
  if (!warp.gathering) return;
  for (int lane = 0, i = w * kWarp; lane < kWarp && i < threads_ && !at_once; ++lane, ++i)
    if (ready_[position_[i] / 64] >> position_[i] % 64 & 1) return;
  const Thread& first = thread_[w * kWarp + __builtin_ctz(warp.gathering)];
  uint32_t lanes = 0;
  for (uint32_t rest = warp.gathering; rest; rest &= rest - 1) {
    const Thread& other = thread_[w * kWarp + __builtin_ctz(rest)];
    if (other.seen.line == first.seen.line && !std::strcmp(other.seen.file, first.seen.file)) lanes |= rest & -rest;
  }
  warp.gathering &= ~lanes;
  ++progress;
  for (uint32_t rest = lanes; rest; rest &= rest - 1) {
    const int thread = w * kWarp + __builtin_ctz(rest);
    thread_[thread].mask = lanes;
    set_ready(thread);
  }
}

const unsigned char* Scheduler::exchange_wide(int first, int threads, const void* value, size_t bytes,
                                              const char* what, Where where) {
  Thread& mine = me();
  seen_at(where);
  mine.waits_at = what;
  mine.mask = 0;
  Wide* wide = nullptr;
  for (auto& one : wide_)
    if (one->first == first && one->threads == threads) wide = one.get();
  if (!wide) {
    wide_.push_back(std::make_unique<Wide>(Wide{first, threads, 0, 0, what, where, {}}));
    wide = wide_.back().get();
    for (auto& slot : wide->slot) slot.resize(size_t(threads) * 16);
  }
  wide->what = what, wide->where = where;
  unsigned char* const slot = wide->slot[wide->generation & 1].data();
  std::memcpy(slot + 16 * (current_ - first), value, bytes);
  ++wide->arrived;
  clear_ready(current_);
  gather(current_ / kWarp);
  complete_wide(*wide);
  go_on(0);
  mine.waits_at = nullptr;
  return slot;
}

void Scheduler::complete_wide(Wide& wide) {
  int live = 0;
  const auto is_gone = [&](int i) { return warp_[i / kWarp].gone >> i % kWarp & 1; };
  const int end = std::min(wide.first + wide.threads, threads_);
  for (int i = wide.first; i < end; ++i) live += !is_gone(i);
  if (wide.arrived == 0 || wide.arrived != live) return;
  ++progress;
  on_barrier(wide.where, live);
  for (int i = wide.first; i < end; ++i)
    if (!is_gone(i)) set_ready(i);
  wide.arrived = 0;
  ++wide.generation;
}

// ---- one block

void Scheduler::set_index(uint64_t number) {
  blockIdx = {unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
              unsigned(number / gridDim.x / gridDim.y)};
  random_ = options().seed * 0x2545f4914f6cdd1du + number;
  if (options().order == Order::shuffle) new_order(0);
  for (uint64_t& word : ready_) word = 0;
  barrier_arrived_ = barrier_sum_ = 0, wide_.clear();
  for (Warp& warp : warp_) warp.in_use = 0, warp.gathering = 0;
}

void Scheduler::run_block(uint64_t number) {
  set_index(number);
  live_ = threads_;
  uint3 index = {0, 0, 0};
  for (int i = 0; i < threads_; ++i) {
    Thread& thread = thread_[i];
    thread.index = index;
    if (++index.x == blockDim.x) {
      index.x = 0;
      if (++index.y == blockDim.y) index.y = 0, ++index.z;
    }
    thread.started = false;
    thread.stack = nullptr;
    thread.waits_at = nullptr;
    thread.seen = config_->where;
    set_ready(i);
  }
  for (int w = 0; w * kWarp < threads_; ++w) {
    const int lanes = std::min(kWarp, threads_ - w * kWarp);
    warp_[w].gone = lanes == kWarp ? 0 : ~0u << lanes;
  }
  std::fill_n(shared(), shared_bytes(), 0xff);  // as bytes of every narrow or wide float: NaN
  on_block(threads_, shared(), false);
  Thread& first = thread_[pick(0)];
  first.started = true;
  first.stack = stacks_.take();
  fiber_prepare(first.fiber, first.stack, kStackBytes, &Scheduler::fiber_main);
  activate(int(&first - thread_));
  running = true;
  fiber_switch(main_, first.fiber);
  running = false;
  on_block_end();
}

// What went wrong in the block that has just been left, if anything did.
void Scheduler::after_block() {
  if (!parked_)
    for (int t = 0; t < threads_; ++t)  // the last thread's, and after an error those of all that were given up
      if (thread_[t].stack) stacks_.free.push_back(std::exchange(thread_[t].stack, nullptr));
  if (endless_at) {
    error_ = endless_text();
    on_failure("endless: no progress since that line", me().seen);
  } else if (fault.signal) {
    error_ = fault_text();
    on_failure(error_.c_str() + error_.rfind(": ") + 2, me().seen);
  }
  ++ended_blocks;
  if (!error_.empty())
    for (int t = 0; t < threads_; ++t) thread_[t].copies.clear();
}

// ---- blocks that wait for each other

void Scheduler::park() {
  on_barrier(barrier_where_, live_);
  barrier_result_ = barrier_arrived_ = barrier_sum_ = 0;
  ++progress;
  parked_ = true;
}

void Scheduler::resume_block(uint64_t number, const Block& block) {
  set_index(number);
  live_ = block.live;
  for (int w = 0; w < kMaxWarps; ++w) warp_[w].gone = block.gone[w];
  for (int i = 0; i < threads_; ++i)
    if (!(warp_[i / kWarp].gone >> i % kWarp & 1)) set_ready(i);
  on_block(threads_, shared(), true);
  for (int i = 0; i < threads_; ++i)
    if (warp_[i / kWarp].gone >> i % kWarp & 1) on_gone(i);
  const int first = pick(0);
  activate(first);
  running = true;
  fiber_switch(main_, thread_[first].fiber);
  running = false;
  on_block_end();
}

// Blocks in the order that the schedule gives: call(number) until it returns false.
template <class Call>
static void in_order(uint64_t blocks, Call call) {
  uint64_t stride = 1, start = 0;
  if (options().order == Order::reverse) stride = blocks - 1, start = blocks - 1;
  if (options().order == Order::shuffle) {
    uint64_t random = options().seed, a, b;
    start = next_random(random) % blocks;
    do {  // a step without common divisor visits every block once
      stride = 1 + next_random(random) % blocks;
      for (a = stride, b = blocks; b; std::swap(a, b)) a %= b;
    } while (a != 1);
  }
  for (uint64_t i = 0, block = start; i < blocks; ++i, block = (block + stride) % blocks)
    if (!call(block)) return;
}

void Scheduler::run_blocks() {
  in_order(uint64_t(gridDim.x) * gridDim.y * gridDim.z, [&](uint64_t number) {
    run_block(number);
    after_block();
    return error_.empty();
  });
}

// Every block runs until all its threads have ended or wait for the grid. Shared memory, of which a thread of the host has
// one, is put aside with the block.
void Scheduler::run_together() {
  std::vector<Block> blocks(uint64_t(gridDim.x) * gridDim.y * gridDim.z);
  const auto [statics, bytes] = static_shared();
  size_t waiting = 0, ended = 0;
  const auto turn = [&, statics = statics, bytes = bytes](uint64_t number) {
    Block& block = blocks[number];
    if (block.ended) return true;
    if (!block.begun) block.thread = std::make_unique<Thread[]>(size_t(threads_));
    thread_ = block.thread.get();
    std::copy(block.statics.begin(), block.statics.end(), statics);
    std::copy(block.shared.begin(), block.shared.end(), shared());
    if (std::exchange(block.begun, true)) resume_block(number, block);
    else run_block(number);
    block.statics.assign(statics, statics + bytes);
    block.shared.assign(shared(), shared() + shared_bytes());
    block.live = live_;
    for (int w = 0; w < kMaxWarps; ++w) block.gone[w] = warp_[w].gone;
    block.ended = !std::exchange(parked_, false);
    if (block.ended) after_block(), ++ended;
    else ++waiting;
    if (error_.empty() && ended && waiting) {
      current_ = 0;
      me().seen = block.ended ? me().seen : barrier_where_;
      error_ = title() + "deadlock: blocks have ended, and others wait for them in " + kGridBarrier + " at " +
               text(barrier_where_);
      on_failure("deadlock: blocks have ended, and others wait for them", barrier_where_);
    }
    return error_.empty();
  };
  do {
    waiting = 0;
    on_phase();
    in_order(blocks.size(), turn);
  } while (waiting && error_.empty());
  for (const Block& block : blocks)
    for (int t = 0; block.thread && t < threads_; ++t)
      if (block.thread[size_t(t)].stack) stacks_.free.push_back(block.thread[size_t(t)].stack);
  thread_ = own_.get();
}

// ---- the grid

void Scheduler::run_grid(const LaunchConfig& config, void (*body)(void*), void* argument) {
  check_limits(config);
  {
    config_ = &config;
    last_launch = config;
    body_ = body;
    argument_ = argument;
    gridDim = config.grid;
    blockDim = config.block;
    threads_ = int(config.block.x * config.block.y * config.block.z);
    shared_.resize(config.shared_bytes + kSharedAlign + 2 * kGuard);
    new_order(0);
    endless_at = nullptr, waits_for_nothing = false;
    fault = {}, ended_blocks = 0;
    const Listening listening(config, shared());
    Watchdog watchdog;
    if (config.together) run_together();
    else run_blocks();
  }
  const auto launches = std::exchange(later, {});
  std::string first_error = std::exchange(error_, {});
  for (Later* launch : launches) {
    const std::unique_ptr<Later> own(launch);
    if (!first_error.empty()) continue;
    try {
      if (++depth_ > 24) throw Error("launch of a kernel by a kernel, more than 24 deep");
      launch->go();
    } catch (const Error& error) {
      first_error = error.what();
    }
    --depth_;
  }
  if (!first_error.empty()) throw Error(first_error);
}

}  // namespace simt
