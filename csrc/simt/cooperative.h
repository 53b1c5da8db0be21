// Cooperative groups: the block, tiles of up to 32 lanes, reductions and scans over a tile.
#pragma once

#include "warp.h"

namespace cooperative_groups {

class thread_block {
 public:
  static void sync(SIMT_HERE) { simt::barrier(0, "thread_block::sync()", where); }
  static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned num_threads() { return size(); }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 dim_threads() { return blockDim; }
};

inline thread_block this_thread_block() { return {}; }

template <unsigned Size, class Parent = thread_block>
class thread_block_tile {
  static_assert(Size >= 1 && Size <= 32 && (Size & (Size - 1)) == 0, "tiles of 1, 2, 4, 8, 16 or 32 lanes");
  static uint32_t mask() { return (Size == 32 ? ~0u : (1u << Size % 32) - 1) << (simt::lane_id() & ~int(Size - 1)); }

 public:
  static unsigned thread_rank() { return simt::lane_id() & (Size - 1); }
  static constexpr unsigned size() { return Size; }
  static constexpr unsigned num_threads() { return Size; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }
  static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
  void sync(SIMT_HERE) const { __syncwarp(mask(), where); }
  template <class T> T shfl(T value, int source, SIMT_HERE) const {
    return __shfl_sync(mask(), value, source, Size, where);
  }
  template <class T> T shfl_up(T value, unsigned delta, SIMT_HERE) const {
    return __shfl_up_sync(mask(), value, delta, Size, where);
  }
  template <class T> T shfl_down(T value, unsigned delta, SIMT_HERE) const {
    return __shfl_down_sync(mask(), value, delta, Size, where);
  }
  template <class T> T shfl_xor(T value, int lanes, SIMT_HERE) const {
    return __shfl_xor_sync(mask(), value, lanes, Size, where);
  }
  int any(int predicate, SIMT_HERE) const { return __any_sync(mask(), predicate, where); }
  int all(int predicate, SIMT_HERE) const { return __all_sync(mask(), predicate, where); }
  unsigned ballot(int predicate, SIMT_HERE) const {
    return __ballot_sync(mask(), predicate, where) >> (simt::lane_id() & ~int(Size - 1));
  }
};

template <unsigned Size, class Parent>
thread_block_tile<Size, Parent> tiled_partition(const Parent&) {
  return {};
}

template <class Group>
void sync(const Group& group, SIMT_HERE) {
  group.sync(where);
}

template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T> struct bit_and { T operator()(T a, T b) const { return a & b; } };
template <class T> struct bit_or { T operator()(T a, T b) const { return a | b; } };
template <class T> struct bit_xor { T operator()(T a, T b) const { return a ^ b; } };

template <unsigned Size, class Parent, class T, class Operation>
T reduce(const thread_block_tile<Size, Parent>& tile, T value, Operation combine, SIMT_HERE) {
  for (unsigned lanes = Size / 2; lanes > 0; lanes /= 2) value = combine(value, tile.shfl_xor(value, lanes, where));
  return value;
}

template <unsigned Size, class Parent, class T, class Operation>
T inclusive_scan(const thread_block_tile<Size, Parent>& tile, T value, Operation combine, SIMT_HERE) {
  for (unsigned delta = 1; delta < Size; delta *= 2) {
    const T below = tile.shfl_up(value, delta, where);
    if (tile.thread_rank() >= delta) value = combine(below, value);
  }
  return value;
}

template <unsigned Size, class Parent, class T>
T exclusive_scan(const thread_block_tile<Size, Parent>& tile, T value, SIMT_HERE) {
  const T up_to_me = inclusive_scan(tile, value, plus<T>(), where), below = tile.shfl_up(up_to_me, 1, where);
  return tile.thread_rank() == 0 ? T(0) : below;
}

}  // namespace cooperative_groups
