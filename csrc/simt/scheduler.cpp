// Who runs and who waits: the threads of a block as fibers, barriers, meetings of warp lanes.
//
// One rule decides: of all threads that can run, the first in the schedule's order does, until it must wait. A fiber
// whose thread has ended runs the next unstarted thread on its own stack: a kernel without barriers never switches.

#define SIMT_FIBER_ASSEMBLY
#include "scheduler.h"

#include <algorithm>
#include <utility>

namespace simt {

Scheduler& scheduler() {
  static thread_local Scheduler* known;  // a plain pointer needs no check of whether it was constructed
  if (known) return *known;
  static thread_local std::unique_ptr<Scheduler> own = std::make_unique<Scheduler>();
  return *(known = own.get());
}

// ---- the order

uint64_t next_random(uint64_t& state) {  // SplitMix64
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Only where all living threads may run next, so that no ready bit gets lost.
void Scheduler::new_order(uint64_t number) {
  const Order order = options().order;
  if (number == 0 || order == Order::shuffle)
    for (int i = 0; i < threads_; ++i) thread_at_[i] = order == Order::reverse ? threads_ - 1 - i : i;
  if (order == Order::shuffle)
    for (int i = threads_ - 1; i > 0; --i) std::swap(thread_at_[i], thread_at_[next_random(random_) % (i + 1)]);
  for (int i = 0; i < threads_; ++i) position_[thread_at_[i]] = i;
}

int Scheduler::pick(int from) const {  // the first ready thread at or after this position, cyclically; -1: none
  const int words = (threads_ + 63) / 64;
  if (from >= threads_) from = 0;
  uint64_t bits = ready_[from / 64] & (~uint64_t{0} << from % 64);
  for (int i = 0, word = from / 64; i <= words; ++i) {
    if (bits) return thread_at_[word * 64 + __builtin_ctzll(bits)];
    word = word + 1 == words ? 0 : word + 1;
    bits = ready_[word];
  }
  return -1;
}

// ---- turns

void Scheduler::activate(int next) {
  current_ = next;
  threadIdx = thread_[next].index;
  atomics_in_a_row = 0;
  on_turn(next, thread_[next].stack);
}

void Scheduler::go_on(int from) {
  const int next = pick(from);
  if (next < 0) fail_deadlocked();
  if (next == current_) return;
  Thread &mine = me(), &other = thread_[next];
  if (!other.started) {
    other.started = true;
    other.stack = stacks_.take();
    // stacks at equal distances would share cache sets: stagger their tops
    fiber_prepare(other.fiber, other.stack, kStackBytes - size_t(next % 16) * 128, &Scheduler::fiber_main);
  }
  activate(next);
  fiber_switch(mine.fiber, other.fiber);
}

void Scheduler::pass_turn(Where where) {
  seen_at(where);
  gather(current_ / kWarp, true);
  give_way();
}

void Scheduler::fiber_main() {
  Scheduler& self = scheduler();
  do {
    try {
      self.body_(self.argument_);
    } catch (const std::bad_alloc&) {
      self.fail("out of memory", self.me().seen);
    } catch (const std::exception& error) {
      self.fail(error.what(), self.me().seen);
    } catch (...) {
      self.fail("throws an exception, which kernels cannot", self.me().seen);
    }
  } while (self.finish());
  __builtin_unreachable();
}

bool Scheduler::finish() {
  Thread& mine = me();
  const int warp = current_ / kWarp;
  mine.waits_at = nullptr;
  mine.copies.clear();
  clear_ready(current_);
  --live_;
  ++progress;
  on_gone(current_);
  warp_[warp].gone |= 1u << current_ % kWarp;
  for (size_t i = 0; i < warp_[warp].in_use; ++i) try_to_complete(warp, *warp_[warp].meetings[i]);
  for (auto& wide : wide_) complete_wide(*wide);
  gather(warp);
  if (live_ == 0) leave();
  if (barrier_arrived_ == live_) {
    if (barrier_what_ == kGridBarrier) park(), leave();
    release_barrier();
  }
  const int next = pick(0);
  if (next < 0) fail_deadlocked();
  Thread& other = thread_[next];
  char* stack = mine.stack;
  mine.stack = nullptr;
  if (!other.started) {
    other.started = true;
    other.stack = stack;
    activate(next);
    return true;
  }
  stacks_.free.push_back(stack);  // nothing takes it before we have left it
  activate(next);
  fiber_switch(mine.fiber, other.fiber);
  return false;
}

void Scheduler::leave() {
  fiber_switch(me().fiber, main_);
  __builtin_unreachable();
}

void Scheduler::fail(const std::string& message, Where where) {
  me().seen = where;
  error_ = title() + message;
  on_failure(message.c_str(), where);
  leave();
}

// ---- the barrier of the block

int Scheduler::barrier(int value, const char* what, Where where) {
  Thread& mine = me();
  seen_at(where);
  mine.waits_at = what;
  mine.mask = 0;
  if (barrier_arrived_ == 0) barrier_where_ = where, barrier_what_ = what;
  const bool same_file = barrier_where_.file == where.file || std::strcmp(barrier_where_.file, where.file) == 0;
  if (barrier_where_.line != where.line || !same_file)
    fail("threads of one block wait at different barriers, here and at " + text(barrier_where_), where);
  barrier_sum_ += value;
  clear_ready(current_);
  gather(current_ / kWarp);
  if (++barrier_arrived_ < live_) go_on(0);
  else if (what == kGridBarrier) park(), fiber_switch(mine.fiber, main_);
  else release_barrier(), go_on(0);
  mine.waits_at = nullptr;
  return barrier_result_;
}

void Scheduler::release_barrier() {
  on_barrier(barrier_where_, live_);
  barrier_result_ = barrier_sum_;
  barrier_arrived_ = barrier_sum_ = 0;
  ++progress;
  if (options().order == Order::shuffle) new_order(1);
  for (uint64_t& word : ready_) word = 0;
  for (int i = 0; i < threads_; ++i)
    if (!(warp_[i / kWarp].gone >> i % kWarp & 1)) set_ready(i);
}

// ---- meetings of lanes

Rendezvous& Scheduler::meeting(Warp& warp, uint32_t mask, const char* what, Where where) {
  Rendezvous* found = nullptr;
  for (size_t i = 0; i < warp.in_use && !found; ++i)
    if (warp.meetings[i]->mask == mask) found = warp.meetings[i].get();
  if (!found) {
    if (warp.in_use == warp.meetings.size()) warp.meetings.push_back(std::make_unique<Rendezvous>());
    found = warp.meetings[warp.in_use++].get();
    found->mask = mask;
    found->arrived = 0;
    found->generation = 0;
  }
  if (found->arrived == 0) found->what = what, found->where = where;
  if (found->what != what && std::strcmp(found->what, what) != 0)
    fail(std::string("lanes of one warp meet in different operations, ") + what + " and " + found->what, where);
  return *found;
}

const Slot& Scheduler::exchange(uint32_t mask, const void* value, size_t bytes, const char* what, Where where) {
  Thread& mine = me();
  seen_at(where);
  const int lane = current_ % kWarp;
  if (!(mask >> lane & 1)) fail(std::string(what) + " by a lane that its own mask leaves out", where);
  Rendezvous& together = meeting(warp_[current_ / kWarp], mask, what, where);
  Slot& slot = together.slot[together.generation & 1];
  std::memcpy(slot.lane[lane], value, bytes);
  together.arrived |= 1u << lane;
  mine.waits_at = what;
  mine.mask = mask;
  clear_ready(current_);
  try_to_complete(current_ / kWarp, together);
  gather(current_ / kWarp);
  go_on(0);
  mine.waits_at = nullptr;
  return slot;
}

void Scheduler::try_to_complete(int warp, Rendezvous& together) {
  if (together.arrived == 0 || together.arrived != (together.mask & ~warp_[warp].gone)) return;
  together.slot[together.generation & 1].took_part = together.arrived;
  ++progress;
  on_meeting(warp, together.arrived, together.what, together.where);
  for (uint32_t lanes = together.arrived; lanes; lanes &= lanes - 1) set_ready(warp * kWarp + __builtin_ctz(lanes));
  together.arrived = 0;
  ++together.generation;
}

}  // namespace simt
