// CUB's reductions and scans of a warp and of a block, on the emulator's own: each lane lays its value down, then all look.
//
// Values are combined in the order of the threads, so an operator need not be commutative. What CUB leaves undefined (the
// result of a reduction in threads other than the first) is the thread's own input here. TempStorage holds nothing: that it
// is used again without a barrier is not seen.
// One-dimensional, two- and three-dimensional blocks; the threads of a block number x first. No device-wide algorithms.
#pragma once

#include "cuda_runtime.h"

namespace cub {

struct NullType {};
struct Sum {
  template <class T> T operator()(const T& a, const T& b) const { return a + b; }
};
struct Max {
  template <class T> T operator()(const T& a, const T& b) const { return a < b ? b : a; }
};
struct Min {
  template <class T> T operator()(const T& a, const T& b) const { return b < a ? b : a; }
};
template <class Key, class Value>
struct KeyValuePair {
  using Key_ = Key;
  Key key;
  Value value;
};
struct ArgMax {  // of equal values the smaller key
  template <class K, class V>
  KeyValuePair<K, V> operator()(const KeyValuePair<K, V>& a, const KeyValuePair<K, V>& b) const {
    return b.value > a.value || (b.value == a.value && b.key < a.key) ? b : a;
  }
};
struct ArgMin {
  template <class K, class V>
  KeyValuePair<K, V> operator()(const KeyValuePair<K, V>& a, const KeyValuePair<K, V>& b) const {
    return b.value < a.value || (b.value == a.value && b.key < a.key) ? b : a;
  }
};
struct Equality {
  template <class T> bool operator()(const T& a, const T& b) const { return a == b; }
};

enum BlockReduceAlgorithm { BLOCK_REDUCE_RAKING_COMMUTATIVE_ONLY, BLOCK_REDUCE_RAKING, BLOCK_REDUCE_WARP_REDUCTIONS };
enum BlockScanAlgorithm { BLOCK_SCAN_RAKING, BLOCK_SCAN_RAKING_MEMOIZE, BLOCK_SCAN_WARP_SCANS };
template <class T>
struct Uninitialized {  // storage without a constructor
  alignas(alignof(void*)) unsigned char unused[sizeof(void*)];
  T& Alias() { return reinterpret_cast<T&>(*this); }
};

inline unsigned LaneId() { return unsigned(simt::lane_id()); }
inline int RowMajorTid(int x, int y, int) { return int(threadIdx.x) + x * (int(threadIdx.y) + y * int(threadIdx.z)); }

template <int Items, class T, class Operator>
T ThreadReduce(const T (&items)[Items], Operator combine) {
  T sum = items[0];
  for (int i = 1; i < Items; ++i) sum = combine(sum, items[i]);
  return sum;
}

}  // namespace cub

namespace simt::program {

inline int rank_in_block() { return int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)); }
inline int threads_of_block() { return int(blockDim.x * blockDim.y * blockDim.z); }

template <class T>
class Values {  // of up to 32 threads; written piece by piece, as they are laid down
 public:
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 256, "CUB here: a value of at most 256 plain bytes");
  const T& operator[](int rank) const { return reinterpret_cast<const T*>(bytes_)[rank]; }
  template <class Operator> T fold(int count, Operator combine) const {  // of the first `count` >= 1
    T sum = (*this)[0];
    for (int rank = 1; rank < count; ++rank) sum = combine(sum, (*this)[rank]);
    return sum;
  }

 protected:
  alignas(T) unsigned char bytes_[32 * sizeof(T)];
};

// The values of a warp's lanes in groups of `width`: mine is the group of the calling lane.
template <class T>
struct OfLanes : Values<T> {
  int rank, count;
  SIMT_UNSEEN OfLanes(const T& mine, int width, const char* what, Where where) {
    const int lane = lane_id(), first = lane / width * width;
    const int in_warp = std::min(32, threads_of_block() - (rank_in_block() - lane));  // a block may end within a warp
    rank = lane - first, count = std::min(width, in_warp - first);
    const uint32_t mask = (count == 32 ? ~0u : (1u << count) - 1) << first;
    for (size_t at = 0; at < sizeof(T); at += 32) {
      const size_t bytes = std::min<size_t>(32, sizeof(T) - at);
      const Slot& slot = exchange(mask, reinterpret_cast<const char*>(&mine) + at, bytes, what, where);
      for (int i = 0; i < count; ++i) {
        if (!(slot.took_part >> (first + i) & 1)) fail_absent(first + i, what, where);
        std::memcpy(this->bytes_ + size_t(i) * sizeof(T) + at, slot.lane[first + i], bytes);
      }
    }
  }
};

// One value of each warp of the block: that of its first lane.
template <class T>
struct OfWarps : Values<T> {
  SIMT_UNSEEN OfWarps(const T& mine, const char* what, Where where) {
    const int threads = threads_of_block();
    for (size_t at = 0; at < sizeof(T); at += 16) {
      const size_t bytes = std::min<size_t>(16, sizeof(T) - at);
      const unsigned char* const laid =
          exchange_wide(0, threads, reinterpret_cast<const char*>(&mine) + at, bytes, what, where);
      for (int warp = 0; 32 * warp < threads; ++warp)
        std::memcpy(this->bytes_ + size_t(warp) * sizeof(T) + at, laid + 16 * 32 * warp, bytes);
    }
  }
};

struct NoPrefix {};  // where a scan has nothing before its first value

}  // namespace simt::program

namespace cub {

struct NoStorage { unsigned char unused; };

template <class T, int Width = 32, int = 0>
class WarpReduce {
 public:
  using TempStorage = NoStorage;
  explicit WarpReduce(TempStorage&) {}
  template <class Operator> T Reduce(T input, Operator combine, int valid = Width, SIMT_HERE) const {
    const simt::program::OfLanes<T> all(input, Width, "cub::WarpReduce", where);
    return all.rank == 0 && valid > 0 ? all.fold(std::min(valid, all.count), combine) : input;
  }
  T Sum(T input, int valid = Width, SIMT_HERE) const { return Reduce(input, cub::Sum(), valid, where); }
  T Max(T input, int valid = Width, SIMT_HERE) const { return Reduce(input, cub::Max(), valid, where); }
  T Min(T input, int valid = Width, SIMT_HERE) const { return Reduce(input, cub::Min(), valid, where); }
  // The first lane of each segment gets the segment's; a head flag begins one, a tail flag ends one.
  template <class Flag, class Operator>
  T HeadSegmentedReduce(T input, Flag head, Operator combine, SIMT_HERE) const {
    const simt::program::OfLanes<int> heads(head != 0, Width, "cub::WarpReduce", where);
    return segmented(input, combine, where, [&](int rank) { return heads[rank] != 0; });
  }
  template <class Flag, class Operator>
  T TailSegmentedReduce(T input, Flag tail, Operator combine, SIMT_HERE) const {
    const simt::program::OfLanes<int> tails(tail != 0, Width, "cub::WarpReduce", where);
    return segmented(input, combine, where, [&](int rank) { return tails[rank - 1] != 0; });
  }
  template <class Flag> T HeadSegmentedSum(T input, Flag head, SIMT_HERE) const {
    return HeadSegmentedReduce(input, head, cub::Sum(), where);
  }
  template <class Flag> T TailSegmentedSum(T input, Flag tail, SIMT_HERE) const {
    return TailSegmentedReduce(input, tail, cub::Sum(), where);
  }

 private:
  template <class Operator, class Begins>
  T segmented(T input, Operator combine, simt::Where where, Begins begins) const {
    const simt::program::OfLanes<T> all(input, Width, "cub::WarpReduce", where);
    if (all.rank > 0 && !begins(all.rank)) return input;
    T sum = input;
    for (int rank = all.rank + 1; rank < all.count && !begins(rank); ++rank) sum = combine(sum, all[rank]);
    return sum;
  }
};

template <class T, int X, BlockReduceAlgorithm = BLOCK_REDUCE_WARP_REDUCTIONS, int Y = 1, int Z = 1, int = 0>
class BlockReduce {
 public:
  using TempStorage = NoStorage;
  BlockReduce() = default;
  explicit BlockReduce(TempStorage&) {}
  template <class Operator> T Reduce(T input, Operator combine, int valid = X * Y * Z, SIMT_HERE) const {
    const int rank = simt::program::rank_in_block(), first = rank / 32 * 32;
    const simt::program::OfLanes<T> lanes(input, 32, "cub::BlockReduce", where);
    const T of_warp = first < valid ? lanes.fold(std::min(valid - first, lanes.count), combine) : input;
    const simt::program::OfWarps<T> warps(of_warp, "cub::BlockReduce", where);
    const int threads = std::min(valid, simt::program::threads_of_block());
    return rank == 0 && threads > 0 ? warps.fold((threads + 31) / 32, combine) : input;
  }
  template <int Items, class Operator> T Reduce(T (&inputs)[Items], Operator combine, SIMT_HERE) const {
    return Reduce(ThreadReduce(inputs, combine), combine, X * Y * Z, where);
  }
  T Sum(T input, int valid = X * Y * Z, SIMT_HERE) const { return Reduce(input, cub::Sum(), valid, where); }
  template <int Items> T Sum(T (&inputs)[Items], SIMT_HERE) const { return Reduce(inputs, cub::Sum(), where); }
};

}  // namespace cub

#include "cub_scan.h"
