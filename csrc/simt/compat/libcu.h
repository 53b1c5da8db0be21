// The parts of libcu++ that kernels use: cuda::barrier, cuda::pipeline, memcpy_async and cuda::atomic.
//
// Copies arrive as late as may be: those of a pipeline at its wait, those tied to a barrier when their thread arrives there.
#pragma once

#include "cuda_runtime.h"

namespace simt::program {

struct Phases {  // a barrier in memory; without constructors, so that it may be shared memory
  int expected, pending;
  unsigned phase;  // how often all have arrived
};
void begin_phases(Phases& at, int expected);
unsigned arrive(Phases& at, int count, bool drop, Where where);
void wait_beyond(const Phases& at, unsigned phase, Where where);  // until more than `phase` phases are over

inline void copy_pieces(void* to, const void* from, size_t bytes, size_t first, size_t step, Where where) {
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  const size_t piece = both % 16 == 0 ? 16 : both % 8 == 0 ? 8 : both % 4 == 0 ? 4 : 1;
  for (size_t at = first * piece; at < bytes; at += step * piece) {
    char* const target = static_cast<char*>(to) + at;
    const char* const source = static_cast<const char*>(from) + at;
    if (piece > 1) copy_later(target, source, int(piece), int(piece), where);
    else *target = *source;
  }
}

}  // namespace simt::program

namespace cuda {

enum thread_scope { thread_scope_system, thread_scope_device, thread_scope_block, thread_scope_thread };

template <size_t Alignment>
struct aligned_size_t {
  static constexpr size_t align = Alignment;
  size_t value;
  constexpr explicit aligned_size_t(size_t size) : value(size) {}
  constexpr operator size_t() const { return value; }
};

template <thread_scope Scope>
class barrier {
 public:
  using arrival_token = unsigned;
  arrival_token arrive(ptrdiff_t count = 1, SIMT_HERE) { return simt::program::arrive(phases_, int(count), false, where); }
  void wait(arrival_token token, SIMT_HERE) const { simt::program::wait_beyond(phases_, token, where); }
  void arrive_and_wait(SIMT_HERE) { wait(arrive(1, where), where); }
  void arrive_and_drop(SIMT_HERE) { simt::program::arrive(phases_, 1, true, where); }
  static constexpr ptrdiff_t(max)() { return (1 << 20) - 1; }
  friend void init(barrier* self, ptrdiff_t expected) { simt::program::begin_phases(self->phases_, int(expected)); }

 private:
  simt::program::Phases phases_;
};

enum class pipeline_role { producer, consumer };

template <thread_scope Scope, size_t Stages>
struct pipeline_shared_state {
  simt::program::Phases full[Stages], empty[Stages];
};

template <thread_scope Scope>
class pipeline {  // of one thread: its own copies, in groups
 public:
  static void producer_acquire() {}
  void producer_commit() { simt::commit_copies(), ++under_way_; }
  void consumer_wait() {
    if (under_way_) simt::finish_copies(--under_way_);
  }
  static void consumer_release() {}
  void quit() {}

 private:
  int under_way_ = 0;
};

template <>
class pipeline<thread_scope_block> {  // of a block: stages that all producers fill and all consumers empty
 public:
  pipeline(simt::program::Phases* full, simt::program::Phases* empty, unsigned stages)
      : full_(full), empty_(empty), stages_(stages) {}
  void producer_acquire(SIMT_HERE) {
    if (head_ >= stages_) simt::program::wait_beyond(empty_[head_ % stages_], head_ / stages_ - 1, where);
  }
  void producer_commit(SIMT_HERE) { simt::program::arrive(full_[head_++ % stages_], 1, false, where); }
  void consumer_wait(SIMT_HERE) { simt::program::wait_beyond(full_[tail_ % stages_], tail_ / stages_, where); }
  void consumer_release(SIMT_HERE) { simt::program::arrive(empty_[tail_++ % stages_], 1, false, where); }
  void quit() {}

 private:
  simt::program::Phases *full_, *empty_;
  unsigned stages_, head_ = 0, tail_ = 0;
};

inline pipeline<thread_scope_thread> make_pipeline() { return {}; }
template <class Group, size_t Stages>
pipeline<thread_scope_block> simt_make_pipeline(const Group&, pipeline_shared_state<thread_scope_block, Stages>* state,
                                                bool produces, bool consumes, simt::Where where) {
  const int producers = simt::barrier(produces, "make_pipeline()", where);
  const int consumers = simt::barrier(consumes, "make_pipeline()", where);
  if (threadIdx.x + threadIdx.y + threadIdx.z == 0)
    for (size_t i = 0; i < Stages; ++i) {
      simt::program::begin_phases(state->full[i], producers);
      simt::program::begin_phases(state->empty[i], consumers);
    }
  simt::barrier(0, "make_pipeline()", where);
  return {state->full, state->empty, unsigned(Stages)};
}
template <class Group, size_t Stages>
auto make_pipeline(const Group& group, pipeline_shared_state<thread_scope_block, Stages>* state, SIMT_HERE) {
  return simt_make_pipeline(group, state, true, true, where);
}
template <class Group, size_t Stages>
auto make_pipeline(const Group& group, pipeline_shared_state<thread_scope_block, Stages>* state, pipeline_role role,
                   SIMT_HERE) {
  return simt_make_pipeline(group, state, role == pipeline_role::producer, role == pipeline_role::consumer, where);
}
template <unsigned InFlight, thread_scope Scope>
void pipeline_consumer_wait_prior(pipeline<Scope>&) {
  simt::finish_copies(InFlight);
}

template <class Size, class Sync>
void memcpy_async(void* to, const void* from, const Size& bytes, Sync&, SIMT_HERE) {
  simt::program::copy_pieces(to, from, size_t(bytes), 0, 1, where);
}
template <class Group, class Size, class Sync>
void memcpy_async(const Group& group, void* to, const void* from, const Size& bytes, Sync&, SIMT_HERE) {
  simt::program::copy_pieces(to, from, size_t(bytes), group.thread_rank(), group.size(), where);
}

// ---- atomics: every order is sequential here

namespace std = ::std;
enum memory_order { memory_order_relaxed, memory_order_consume, memory_order_acquire, memory_order_release,
                    memory_order_acq_rel, memory_order_seq_cst };

// An operation with an order other than relaxed stands between two fences.
struct simt_ordered {
  memory_order order;
  explicit simt_ordered(memory_order wanted) : order(wanted) { fence(); }
  ~simt_ordered() { fence(); }
  void fence() const { if (order != memory_order_relaxed) simt::fence(); }
};

template <class T, thread_scope Scope = thread_scope_system>
class atomic_ref {
 public:
  explicit atomic_ref(T& there) : at_(&there) {}
#define SIMT_ORDERED(name, operand, ...)                                                      \
  T name(operand memory_order order = memory_order_seq_cst, SIMT_HERE) const {                \
    const simt_ordered between(order);                                                        \
    return __VA_ARGS__;                                                                       \
  }
#define SIMT_VALUE T value,
  SIMT_ORDERED(load, , atomicAdd(at_, T(0), where))
  SIMT_ORDERED(exchange, SIMT_VALUE, atomicExch(at_, value, where))
  SIMT_ORDERED(fetch_add, SIMT_VALUE, atomicAdd(at_, value, where))
  SIMT_ORDERED(fetch_sub, SIMT_VALUE, atomicSub(at_, value, where))
  SIMT_ORDERED(fetch_and, SIMT_VALUE, atomicAnd(at_, value, where))
  SIMT_ORDERED(fetch_or, SIMT_VALUE, atomicOr(at_, value, where))
  SIMT_ORDERED(fetch_max, SIMT_VALUE, atomicMax(at_, value, where))
  SIMT_ORDERED(fetch_min, SIMT_VALUE, atomicMin(at_, value, where))
#undef SIMT_VALUE
#undef SIMT_ORDERED
  void store(T value, memory_order order = memory_order_seq_cst, SIMT_HERE) const { exchange(value, order, where); }
  bool compare_exchange_strong(T& expected, T wanted, memory_order order = memory_order_seq_cst,
                               memory_order = memory_order_seq_cst, SIMT_HERE) const {
    const simt_ordered between(order);
    const T old = atomicCAS(at_, expected, wanted, where);
    return old == expected || (expected = old, false);
  }
  bool compare_exchange_weak(T& expected, T wanted, memory_order order = memory_order_seq_cst,
                             memory_order = memory_order_seq_cst, SIMT_HERE) const {
    return compare_exchange_strong(expected, wanted, order, order, where);
  }
  operator T() const { return load(); }
  T operator++(int) const { return fetch_add(1); }
  T operator+=(T value) const { return fetch_add(value) + value; }

 protected:
  T* at_;
};

template <class T, thread_scope Scope = thread_scope_system>
class atomic {
 public:
  atomic() = default;
  constexpr atomic(T value) : value_(value) {}
  atomic_ref<T, Scope> ref() { return atomic_ref<T, Scope>(value_); }
  T load(memory_order order = memory_order_seq_cst, SIMT_HERE) { return ref().load(order, where); }
  void store(T value, memory_order order = memory_order_seq_cst, SIMT_HERE) { ref().store(value, order, where); }
  T exchange(T value, memory_order order = memory_order_seq_cst, SIMT_HERE) { return ref().exchange(value, order, where); }
  T fetch_add(T value, memory_order order = memory_order_seq_cst, SIMT_HERE) { return ref().fetch_add(value, order, where); }
  T fetch_sub(T value, memory_order order = memory_order_seq_cst, SIMT_HERE) { return ref().fetch_sub(value, order, where); }
  operator T() { return load(); }
  T operator=(T value) { return store(value), value; }
  T operator++(int) { return fetch_add(1); }

 private:
  T value_;
};

template <thread_scope Scope = thread_scope_system>
void atomic_thread_fence(memory_order, thread_scope = Scope) { simt::fence(); }

}  // namespace cuda

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0, SIMT_HERE) {
  simt::copy_later(to, from, int(bytes), int(bytes - zeros), where);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(unsigned groups) { simt::finish_copies(int(groups)); }
