// CUB's scans, on what cub.h lays down.
#pragma once

#include "cub.h"

namespace simt::program {

// Where one value stands in a scan: what comes before it (if anything does), and the sum of all.
template <class T>
struct Place {
  bool first;
  T before, all;
};
template <class T, class Operator>
Place<T> place_in_warp(const T& mine, int width, Operator combine, const char* what, Where where) {
  const OfLanes<T> lanes(mine, width, what, where);
  return {lanes.rank == 0, lanes.rank ? lanes.fold(lanes.rank, combine) : mine, lanes.fold(lanes.count, combine)};
}
template <class T, class Operator>
Place<T> place_in_block(const T& mine, Operator combine, const char* what, Where where) {
  const Place<T> lane = place_in_warp(mine, 32, combine, what, where);
  const OfWarps<T> warps(lane.all, what, where);
  const int warp = rank_in_block() / 32, count = (threads_of_block() + 31) / 32;
  const T all = warps.fold(count, combine);
  if (warp == 0) return {lane.first, lane.before, all};
  const T earlier = warps.fold(warp, combine);
  return {false, lane.first ? earlier : combine(earlier, lane.before), all};
}

}  // namespace simt::program

namespace cub {

template <class T, int Width = 32, int = 0>
class WarpScan {
 public:
  using TempStorage = NoStorage;
  explicit WarpScan(TempStorage&) {}
  template <class Operator> void InclusiveScan(T in, T& out, Operator combine, SIMT_HERE) const {
    T all;
    InclusiveScan(in, out, combine, all, where);
  }
  template <class Operator> void InclusiveScan(T in, T& out, Operator combine, T& all, SIMT_HERE) const {
    const auto place = find(in, combine, where);
    out = place.first ? in : combine(place.before, in), all = place.all;
  }
  template <class Operator> void ExclusiveScan(T in, T& out, Operator combine, SIMT_HERE) const {
    T all;
    ExclusiveScan(in, out, combine, all, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, Operator combine, T& all, SIMT_HERE) const {
    const auto place = find(in, combine, where);
    out = place.before, all = place.all;  // the first lane's is undefined in CUB, and its input here
  }
  template <class Operator> void ExclusiveScan(T in, T& out, T initial, Operator combine, SIMT_HERE) const {
    T all;
    ExclusiveScan(in, out, initial, combine, all, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, T initial, Operator combine, T& all, SIMT_HERE) const {
    const auto place = find(in, combine, where);
    out = place.first ? initial : combine(initial, place.before), all = place.all;
  }
  template <class Operator> void Scan(T in, T& inclusive, T& exclusive, Operator combine, SIMT_HERE) const {
    const auto place = find(in, combine, where);
    inclusive = place.first ? in : combine(place.before, in), exclusive = place.before;
  }
  template <class Operator> void Scan(T in, T& inclusive, T& exclusive, T initial, Operator combine, SIMT_HERE) const {
    ExclusiveScan(in, exclusive, initial, combine, where);
    inclusive = combine(exclusive, in);
  }
  void InclusiveSum(T in, T& out, SIMT_HERE) const { InclusiveScan(in, out, cub::Sum(), where); }
  void InclusiveSum(T in, T& out, T& all, SIMT_HERE) const { InclusiveScan(in, out, cub::Sum(), all, where); }
  void ExclusiveSum(T in, T& out, SIMT_HERE) const { ExclusiveScan(in, out, T{}, cub::Sum(), where); }
  void ExclusiveSum(T in, T& out, T& all, SIMT_HERE) const { ExclusiveScan(in, out, T{}, cub::Sum(), all, where); }
  T Broadcast(T in, unsigned source, SIMT_HERE) const {
    return simt::program::OfLanes<T>(in, Width, "cub::WarpScan", where)[int(source)];
  }

 private:
  template <class Operator> auto find(const T& in, Operator combine, simt::Where where) const {
    return simt::program::place_in_warp(in, Width, combine, "cub::WarpScan", where);
  }
};

template <class T, int X, BlockScanAlgorithm = BLOCK_SCAN_RAKING, int Y = 1, int Z = 1, int = 0>
class BlockScan {
  template <int Items> using Many = T[Items];

 public:
  using TempStorage = NoStorage;
  BlockScan() = default;
  explicit BlockScan(TempStorage&) {}

  // ---- one value a thread; `prefix` is called by the first warp with the sum of all, and gives what comes before them
  template <class Operator> void InclusiveScan(T in, T& out, Operator combine, SIMT_HERE) {
    InclusiveScan(one(in), one(out), combine, where);
  }
  template <class Operator> void InclusiveScan(T in, T& out, Operator combine, T& all, SIMT_HERE) {
    InclusiveScan(one(in), one(out), combine, all, where);
  }
  template <class Operator, class Prefix>
  void InclusiveScan(T in, T& out, Operator combine, Prefix& prefix, SIMT_HERE) {
    InclusiveScan(one(in), one(out), combine, prefix, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, Operator combine, SIMT_HERE) {
    ExclusiveScan(one(in), one(out), combine, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, T initial, Operator combine, SIMT_HERE) {
    ExclusiveScan(one(in), one(out), initial, combine, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, Operator combine, T& all, SIMT_HERE) {
    ExclusiveScan(one(in), one(out), combine, all, where);
  }
  template <class Operator> void ExclusiveScan(T in, T& out, T initial, Operator combine, T& all, SIMT_HERE) {
    ExclusiveScan(one(in), one(out), initial, combine, all, where);
  }
  template <class Operator, class Prefix>
  void ExclusiveScan(T in, T& out, Operator combine, Prefix& prefix, SIMT_HERE) {
    ExclusiveScan(one(in), one(out), combine, prefix, where);
  }
  void InclusiveSum(T in, T& out, SIMT_HERE) { InclusiveScan(in, out, cub::Sum(), where); }
  template <class Last> void InclusiveSum(T in, T& out, Last& last, SIMT_HERE) {  // last: the sum, or a prefix
    InclusiveScan(in, out, cub::Sum(), last, where);
  }
  void ExclusiveSum(T in, T& out, SIMT_HERE) { ExclusiveScan(in, out, T{}, cub::Sum(), where); }
  void ExclusiveSum(T in, T& out, T& all, SIMT_HERE) { ExclusiveScan(in, out, T{}, cub::Sum(), all, where); }
  template <class Prefix> void ExclusiveSum(T in, T& out, Prefix& prefix, SIMT_HERE) {
    ExclusiveScan(in, out, cub::Sum(), prefix, where);
  }

  // ---- several values a thread, one thread's behind the other's
  template <int Items, class Operator>
  void InclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, SIMT_HERE) {
    T all;
    InclusiveScan(in, out, combine, all, where);
  }
  template <int Items, class Operator>
  void InclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, T& all, SIMT_HERE) {
    const auto place = find(in, combine, where);
    all = place.all;
    inclusive(in, out, combine, place);
  }
  template <int Items, class Operator, class Prefix>
  void InclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, Prefix& prefix, SIMT_HERE) {
    inclusive(in, out, combine, behind(find(in, combine, where), prefix, combine, where));
  }
  template <int Items, class Operator>
  void ExclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, SIMT_HERE) {
    T all;
    ExclusiveScan(in, out, combine, all, where);
  }
  template <int Items, class Operator>
  void ExclusiveScan(T (&in)[Items], T (&out)[Items], T initial, Operator combine, SIMT_HERE) {
    T all;
    ExclusiveScan(in, out, initial, combine, all, where);
  }
  template <int Items, class Operator>
  void ExclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, T& all, SIMT_HERE) {
    const auto place = find(in, combine, where);
    all = place.all;
    exclusive(in, out, combine, place.before);
  }
  template <int Items, class Operator>
  void ExclusiveScan(T (&in)[Items], T (&out)[Items], T initial, Operator combine, T& all, SIMT_HERE) {
    const auto place = find(in, combine, where);
    all = place.all;
    exclusive(in, out, combine, place.first ? initial : combine(initial, place.before));
  }
  template <int Items, class Operator, class Prefix>
  void ExclusiveScan(T (&in)[Items], T (&out)[Items], Operator combine, Prefix& prefix, SIMT_HERE) {
    exclusive(in, out, combine, behind(find(in, combine, where), prefix, combine, where).before);
  }
  template <int Items> void InclusiveSum(T (&in)[Items], T (&out)[Items], SIMT_HERE) {
    InclusiveScan(in, out, cub::Sum(), where);
  }
  template <int Items, class Last> void InclusiveSum(T (&in)[Items], T (&out)[Items], Last& last, SIMT_HERE) {
    InclusiveScan(in, out, cub::Sum(), last, where);
  }
  template <int Items> void ExclusiveSum(T (&in)[Items], T (&out)[Items], SIMT_HERE) {
    ExclusiveScan(in, out, T{}, cub::Sum(), where);
  }
  template <int Items> void ExclusiveSum(T (&in)[Items], T (&out)[Items], T& all, SIMT_HERE) {
    ExclusiveScan(in, out, T{}, cub::Sum(), all, where);
  }
  template <int Items, class Prefix>
  void ExclusiveSum(T (&in)[Items], T (&out)[Items], Prefix& prefix, SIMT_HERE) {
    ExclusiveScan(in, out, cub::Sum(), prefix, where);
  }

 private:
  using Place = simt::program::Place<T>;
  static Many<1>& one(T& value) { return reinterpret_cast<Many<1>&>(value); }
  template <int Items, class Operator> Place find(T (&in)[Items], Operator combine, simt::Where where) {
    return simt::program::place_in_block(ThreadReduce(in, combine), combine, "cub::BlockScan", where);
  }
  template <class Prefix, class Operator>
  Place behind(const Place& place, Prefix& prefix, Operator combine, simt::Where where) {
    const T given = simt::program::rank_in_block() < 32 ? T(prefix(place.all)) : place.all;
    const T start = simt::program::OfWarps<T>(given, "cub::BlockScan", where)[0];
    return {false, place.first ? start : combine(start, place.before), place.all};
  }
  template <int Items, class Operator>
  void inclusive(T (&in)[Items], T (&out)[Items], Operator combine, const Place& place) {
    out[0] = place.first ? in[0] : combine(place.before, in[0]);
    for (int i = 1; i < Items; ++i) out[i] = combine(out[i - 1], in[i]);
  }
  template <int Items, class Operator>
  void exclusive(T (&in)[Items], T (&out)[Items], Operator combine, T before) {
    for (int i = 0; i < Items; ++i) {
      const T mine = in[i];  // in and out may be one array
      out[i] = before;
      before = combine(before, mine);
    }
  }
};

}  // namespace cub
