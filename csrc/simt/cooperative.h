// Cooperative groups: the block, tiles of it, groups known at run time, lanes that are together by chance, and the grid.
#pragma once

#include "warp.h"

namespace cooperative_groups {

struct thread_block_scratch {};

class thread_block {
 public:
  static void sync(SIMT_HERE) { simt::barrier(0, "thread_block::sync()", where); }
  static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned num_threads() { return size(); }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 group_dim() { return blockDim; }
  static dim3 dim_threads() { return blockDim; }
};

template <unsigned Threads>
struct block_tile_memory { unsigned char unused; };
inline thread_block this_thread_block() { return {}; }
template <unsigned Threads>
thread_block this_thread_block(block_tile_memory<Threads>&) { return {}; }

// Lanes of one warp, whichever.
class coalesced_group {
 public:
  coalesced_group() = default;
  explicit coalesced_group(uint32_t mask, unsigned rank = 0, unsigned of = 1) : mask_(mask), rank_(rank), of_(of) {}
  uint32_t mask() const { return mask_; }
  unsigned size() const { return unsigned(__builtin_popcount(mask_)); }
  unsigned num_threads() const { return size(); }
  unsigned thread_rank() const { return unsigned(__builtin_popcount(mask_ & ((1u << simt::lane_id()) - 1))); }
  unsigned meta_group_rank() const { return rank_; }
  unsigned meta_group_size() const { return of_; }
  void sync(SIMT_HERE) const { __syncwarp(mask_, where); }
  template <class T> T shfl(T value, unsigned source, SIMT_HERE) const {
    return simt::shuffle(mask_, value, lane(source % size()), "coalesced_group::shfl()", where);
  }
  template <class T> T shfl_up(T value, unsigned delta, SIMT_HERE) const {
    const unsigned rank = thread_rank();
    return simt::shuffle(mask_, value, lane(rank < delta ? rank : rank - delta), "coalesced_group::shfl_up()", where);
  }
  template <class T> T shfl_down(T value, unsigned delta, SIMT_HERE) const {
    const unsigned rank = thread_rank();
    return simt::shuffle(mask_, value, lane(rank + delta < size() ? rank + delta : rank),
                         "coalesced_group::shfl_down()", where);
  }
  template <class T> T shfl_xor(T value, unsigned bits, SIMT_HERE) const {
    const unsigned rank = thread_rank() ^ bits;
    return simt::shuffle(mask_, value, lane(rank < size() ? rank : thread_rank()), "coalesced_group::shfl_xor()", where);
  }
  int any(int predicate, SIMT_HERE) const { return __any_sync(mask_, predicate, where); }
  int all(int predicate, SIMT_HERE) const { return __all_sync(mask_, predicate, where); }
  unsigned ballot(int predicate, SIMT_HERE) const { return packed(__ballot_sync(mask_, predicate, where)); }
  template <class T> unsigned match_any(T value, SIMT_HERE) const {
    return packed(__match_any_sync(mask_, value, where));
  }

 private:
  int lane(unsigned rank) const {  // the lane that has this rank
    uint32_t rest = mask_;
    while (rank--) rest &= rest - 1;
    return __builtin_ctz(rest);
  }
  unsigned packed(unsigned lanes) const {  // by ranks instead of lanes
    unsigned result = 0, rank = 0;
    for (uint32_t rest = mask_; rest; rest &= rest - 1) result |= (lanes >> __builtin_ctz(rest) & 1) << rank++;
    return result;
  }

  uint32_t mask_ = 0;
  unsigned rank_ = 0, of_ = 1;
};

// Which lanes these are is the emulator's choice, as it is a GPU's: those that come here before any other can go on.
inline coalesced_group coalesced_threads(SIMT_HERE) {
  return coalesced_group(simt::converged("coalesced_threads()", where));
}

template <unsigned Size, class Parent = thread_block, bool = (Size <= 32)>
class thread_block_tile {
  static_assert(Size >= 1 && (Size & (Size - 1)) == 0, "tiles of 1, 2, 4, 8, 16 or 32 lanes");

 public:
  thread_block_tile() = default;
  template <class Other> thread_block_tile(const thread_block_tile<Size, Other>&) {}
  static uint32_t mask() {
    const uint32_t all = (Size == 32 ? ~0u : (1u << Size % 32) - 1) << (simt::lane_id() & ~int(Size - 1));
    const unsigned left = thread_block::size() - (thread_block::thread_rank() & ~31u);  // a block may end within a warp
    return left < 32 ? all & ((1u << left) - 1) : all;
  }
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
  template <class T> unsigned match_any(T value, SIMT_HERE) const {
    return __match_any_sync(mask(), value, where) >> (simt::lane_id() & ~int(Size - 1));
  }
};

// A tile of several warps: its threads meet as those of a block do.
template <unsigned Size, class Parent>
class thread_block_tile<Size, Parent, false> {
  static_assert(Size <= 1024 && (Size & (Size - 1)) == 0, "tiles of up to 1024 threads, a power of 2");

 public:
  static unsigned first() { return thread_block::thread_rank() / Size * Size; }
  static unsigned thread_rank() { return thread_block::thread_rank() % Size; }
  static constexpr unsigned size() { return Size; }
  static constexpr unsigned num_threads() { return Size; }
  static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }
  static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
  void sync(SIMT_HERE) const { simt::exchange_wide(int(first()), Size, nullptr, 0, "thread_block_tile::sync()", where); }
  template <class T> T shfl(T value, unsigned source, SIMT_HERE) const {
    return read<T>(gather(value, "thread_block_tile::shfl()", where), source % Size);
  }
  int any(int predicate, SIMT_HERE) const {
    return reduced(int(predicate != 0), [](int a, int b) { return a | b; }, where);
  }
  int all(int predicate, SIMT_HERE) const {
    return reduced(int(predicate != 0), [](int a, int b) { return a & b; }, where);
  }
  template <class T, class Combine> T reduced(T value, Combine combine, simt::Where where) const {
    const unsigned char* all = gather(value, "reduce of a thread_block_tile", where);
    T result = read<T>(all, 0);
    for (unsigned i = 1; i < Size; ++i) result = combine(result, read<T>(all, i));
    return result;
  }

 private:
  template <class T> SIMT_UNSEEN static T read(const unsigned char* all, unsigned rank) {
    T value;
    std::memcpy(&value, all + 16 * rank, sizeof value);
    return value;
  }
  template <class T> static const unsigned char* gather(const T& value, const char* what, simt::Where where) {
    static_assert(sizeof(T) <= 16, "a thread of a tile of several warps lays down at most 16 bytes");
    return simt::exchange_wide(int(first()), Size, &value, sizeof value, what, where);
  }
};

template <unsigned Size, class Parent>
thread_block_tile<Size, Parent> tiled_partition(const Parent&) {
  return {};
}

class grid_group {
 public:
  static bool is_valid() { return true; }
  static void sync(SIMT_HERE) { simt::grid_barrier(where); }
  static unsigned long long size() { return num_blocks() * thread_block::size(); }
  static unsigned long long num_threads() { return size(); }
  static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  static unsigned long long block_rank() {
    return blockIdx.x + 1ull * gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
  }
  static unsigned long long thread_rank() { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
  static dim3 group_dim() { return gridDim; }
  static dim3 dim_blocks() { return gridDim; }
  static dim3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
};

inline grid_group this_grid() { return {}; }

// Any of the groups above within a block, known at run time only.
class thread_group {
 public:
  thread_group() = default;
  thread_group(const thread_block&) : threads_(thread_block::size()) {}
  thread_group(const coalesced_group& group) : lanes_(group) {}
  template <unsigned Size, class Parent>
  thread_group(const thread_block_tile<Size, Parent, true>& tile) : lanes_(tile.mask()) {}
  template <unsigned Size, class Parent>
  thread_group(const thread_block_tile<Size, Parent, false>& tile) : first_(tile.first()), threads_(Size) {}
  unsigned size() const { return threads_ ? threads_ : lanes_.size(); }
  unsigned num_threads() const { return size(); }
  unsigned thread_rank() const { return threads_ ? thread_block::thread_rank() - first_ : lanes_.thread_rank(); }
  bool is_whole_block() const { return threads_ == thread_block::size(); }
  const coalesced_group& lanes() const { return lanes_; }
  void sync(SIMT_HERE) const {
    if (!threads_) lanes_.sync(where);
    else if (is_whole_block()) thread_block::sync(where);
    else simt::exchange_wide(int(first_), int(threads_), nullptr, 0, "thread_group::sync()", where);
  }

 private:
  coalesced_group lanes_;
  unsigned first_ = 0, threads_ = 0;  // or so many threads of several warps
};

}  // namespace cooperative_groups

#include "group_algorithms.h"
