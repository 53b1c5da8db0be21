// What cooperative groups do together: partitions, reductions, scans, and copies into shared memory.
#pragma once

#include "cooperative.h"

namespace cooperative_groups {

// Groups of `size` neighbours by rank.
inline coalesced_group tiled_partition(const coalesced_group& group, unsigned size) {
  uint32_t lanes = 0;
  unsigned rank = 0;
  for (uint32_t rest = group.mask(); rest; rest &= rest - 1, ++rank)
    if (rank / size == group.thread_rank() / size) lanes |= rest & -rest;
  return coalesced_group(lanes, group.thread_rank() / size, (group.size() + size - 1) / size);
}
template <unsigned Size>
coalesced_group tiled_partition(const coalesced_group& group) {
  return tiled_partition(group, Size);
}
inline thread_group tiled_partition(const thread_group& group, unsigned size, SIMT_HERE) {
  if (size == 0 || size > 32 || size & (size - 1))
    simt::fail("tiled_partition() into " + std::to_string(size) + " threads: 1, 2, 4, 8, 16 or 32 are possible", where);
  if (!group.is_whole_block()) return tiled_partition(group.lanes(), size);
  const unsigned rank = thread_block::thread_rank(), left = thread_block::size() - (rank & ~31u);
  const uint32_t all = (size == 32 ? ~0u : (1u << size) - 1) << (rank % 32 / size * size);
  return coalesced_group(left < 32 ? all & ((1u << left) - 1) : all, rank / size);
}

template <class Group>
uint32_t lanes_of(const Group& group) { return group.mask(); }
// Groups of lanes that give the same label.
template <class Group, class Label>
coalesced_group labeled_partition(const Group& group, Label label, SIMT_HERE) {
  return coalesced_group(__match_any_sync(lanes_of(group), label, where));
}
template <class Group>
coalesced_group binary_partition(const Group& group, bool label, SIMT_HERE) {
  const uint32_t yes = __ballot_sync(lanes_of(group), label, where);
  return coalesced_group(label ? yes : lanes_of(group) & ~yes, label, 2);
}

template <class Group>
void sync(const Group& group, SIMT_HERE) {
  group.sync(where);
}

template <class T = void> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T = void> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T = void> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T = void> struct bit_and { T operator()(T a, T b) const { return a & b; } };
template <class T = void> struct bit_or { T operator()(T a, T b) const { return a | b; } };
template <class T = void> struct bit_xor { T operator()(T a, T b) const { return a ^ b; } };

template <unsigned Size, class Parent, class T, class Operation>
T reduce(const thread_block_tile<Size, Parent, true>& tile, T value, Operation combine, SIMT_HERE) {
  if (__builtin_popcount(tile.mask()) != int(Size))  // the last, incomplete tile of a block
    return simt::reduce(tile.mask(), value, "reduce of a thread_block_tile", where, combine);
  for (unsigned lanes = Size / 2; lanes > 0; lanes /= 2) value = combine(value, tile.shfl_xor(value, lanes, where));
  return value;
}
template <unsigned Size, class Parent, class T, class Operation>
T reduce(const thread_block_tile<Size, Parent, false>& tile, T value, Operation combine, SIMT_HERE) {
  return tile.reduced(value, combine, where);
}
template <class T, class Operation>
T reduce(const coalesced_group& group, T value, Operation combine, SIMT_HERE) {
  return simt::reduce(group.mask(), value, "reduce of a coalesced_group", where, combine);
}

template <class Group, class T, class Operation>
T inclusive_scan(const Group& group, T value, Operation combine, SIMT_HERE) {
  for (unsigned delta = 1; delta < group.size(); delta *= 2) {
    const T below = group.shfl_up(value, delta, where);
    if (group.thread_rank() >= delta) value = combine(below, value);
  }
  return value;
}
template <class Group, class T>
T inclusive_scan(const Group& group, T value, SIMT_HERE) {
  return inclusive_scan(group, value, plus<T>(), where);
}
template <class Group, class T, class Operation>
T exclusive_scan(const Group& group, T value, Operation combine, SIMT_HERE) {
  const T up_to_me = inclusive_scan(group, value, combine, where), below = group.shfl_up(up_to_me, 1, where);
  return group.thread_rank() == 0 ? T{} : below;
}
template <class Group, class T>
T exclusive_scan(const Group& group, T value, SIMT_HERE) {
  return exclusive_scan(group, value, plus<T>(), where);
}

// Copies that are done when wait() returns; the group's threads share the work, 16, 8 or 4 bytes at a time.
template <class Group, class To, class From, class Size>
void memcpy_async(const Group& group, To* to, const From* from, const Size& size, SIMT_HERE) {
  const size_t bytes = size_t(size);
  const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  const size_t step = both % 16 == 0 ? 16 : both % 8 == 0 ? 8 : both % 4 == 0 ? 4 : 1;
  for (size_t at = group.thread_rank() * step; at < bytes; at += group.size() * step) {
    char* const target = reinterpret_cast<char*>(to) + at;
    const char* const source = reinterpret_cast<const char*>(from) + at;
    if (step > 1) simt::copy_later(target, source, int(step), int(step), where);
    else *target = *source;
  }
  simt::commit_copies();
}
template <unsigned InFlight, class Group>
void wait_prior(const Group& group, SIMT_HERE) {
  simt::finish_copies(InFlight);
  group.sync(where);
}
template <class Group>
void wait(const Group& group, SIMT_HERE) {
  wait_prior<0>(group, where);
}

}  // namespace cooperative_groups
