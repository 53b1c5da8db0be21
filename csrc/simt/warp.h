// Operations of a warp. One primitive carries them all: everybody lays something down, all wait for each other, then
// anybody may look at what anybody laid down.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace simt {

// What the lanes of `mask` hold in `value`; reading a lane that did not take part is an error.
template <class T>
class Gathered {
 public:
  Gathered(uint32_t mask, const T& value, const char* what, Where where)
      : slot_(exchange(mask, &value, sizeof(T), what, where)), what_(what), where_(where) {
    static_assert(sizeof(T) <= 32 && std::is_trivially_copyable<T>::value, "a lane lays down at most 32 plain bytes");
  }

  SIMT_UNSEEN T operator[](int lane) const {
    if (!(slot_.took_part >> lane & 1)) fail_absent(lane, what_, where_);
    T value;
    std::memcpy(&value, slot_.lane[lane], sizeof(T));
    return value;
  }
  SIMT_UNSEEN uint32_t took_part() const { return slot_.took_part; }

 private:
  const Slot& slot_;
  const char* what_;
  Where where_;
};

template <class T>
T shuffle(uint32_t mask, T value, int source, const char* what, Where where) {
  return Gathered<T>(mask, value, what, where)[source];
}

template <class T, class Combine>
T reduce(uint32_t mask, T value, const char* what, Where where, Combine combine) {
  const Gathered<T> all(mask, value, what, where);
  const uint32_t lanes = all.took_part();
  T result = all[__builtin_ctz(lanes)];
  for (uint32_t rest = lanes & (lanes - 1); rest; rest &= rest - 1) result = combine(result, all[__builtin_ctz(rest)]);
  return result;
}

}  // namespace simt

#define SIMT_HERE simt::Where where = simt::Where::here()

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::exchange(mask, &mask, 0, "__syncwarp()", where);
}
// Nobody runs in lockstep here: these are the lanes that come to this place before any other of the warp can go on.
inline unsigned __activemask(SIMT_HERE) { return simt::converged("__activemask()", where); }

// Shuffles. A width below 32 makes sections; a source outside the section is the lane itself. Of a distance only the lower 5
// bits count (PTX ISA, shfl.sync): -1 is 31, and a source of an earlier section may be named by xor.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_HERE) {
  const int first = simt::lane_id() & ~(width - 1);
  return simt::shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync()", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const int lane = simt::lane_id(), place = lane & (width - 1), by = int(delta & 31);
  return simt::shuffle(mask, value, place < by ? lane : lane - by, "__shfl_up_sync()", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const int lane = simt::lane_id(), place = lane & (width - 1), by = int(delta & 31);
  return simt::shuffle(mask, value, place + by >= width ? lane : lane + by, "__shfl_down_sync()", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_HERE) {
  const int lane = simt::lane_id(), source = lane ^ (lanes & 31), first = lane & ~(width - 1);
  return simt::shuffle(mask, value, source >= first + width ? lane : source, "__shfl_xor_sync()", where);
}

// Votes.
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  const simt::Gathered<int> all(mask, predicate, "__ballot_sync()", where);
  unsigned votes = 0;
  for (uint32_t rest = all.took_part(); rest; rest &= rest - 1)
    votes |= unsigned(all[__builtin_ctz(rest)] != 0) << __builtin_ctz(rest);
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::reduce(mask, int(predicate != 0), "__any_sync()", where, [](int a, int b) { return a | b; });
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::reduce(mask, int(predicate != 0), "__all_sync()", where, [](int a, int b) { return a & b; });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
  const simt::Gathered<T> all(mask, value, "__match_any_sync()", where);
  unsigned equal = 0;
  for (uint32_t rest = all.took_part(); rest; rest &= rest - 1)
    if (all[__builtin_ctz(rest)] == value) equal |= rest & -rest;
  return equal;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, SIMT_HERE) {
  const simt::Gathered<T> all(mask, value, "__match_all_sync()", where);
  *all_equal = 1;
  for (uint32_t rest = all.took_part(); rest; rest &= rest - 1)
    if (!(all[__builtin_ctz(rest)] == value)) *all_equal = 0;
  return *all_equal ? all.took_part() : 0;
}

// Reductions.
#define SIMT_REDUCE(name, expression)                                                            \
  template <class T>                                                                             \
  T name(unsigned mask, T value, SIMT_HERE) {                                                    \
    return simt::reduce(mask, value, #name "()", where, [](T a, T b) { return T(expression); }); \
  }
SIMT_REDUCE(__reduce_add_sync, a + b)
SIMT_REDUCE(__reduce_min_sync, b < a ? b : a)
SIMT_REDUCE(__reduce_max_sync, a < b ? b : a)
SIMT_REDUCE(__reduce_and_sync, a& b)
SIMT_REDUCE(__reduce_or_sync, a | b)
SIMT_REDUCE(__reduce_xor_sync, a ^ b)
#undef SIMT_REDUCE
