// From single accesses to what a warp does at once. The n-th execution of an instruction by each lane, counted from the
// last point where the warp met, is taken as one request. Its addresses then tell sectors and bank conflicts, its lanes the warp divergence.

#include <algorithm>

#include "profiler.h"

namespace simt {

constexpr size_t kMostOpen = 16384;  // requests that wait for lanes, per warp and instruction

void Counters::add(const Counters& other) {
  requests += other.requests, lanes += other.lanes, bytes += other.bytes;
  sectors += other.sectors, ideal_sectors += other.ideal_sectors, compulsory += other.compulsory;
  wavefronts += other.wavefronts, conflicts += other.conflicts;
}

Site& Profiler::site_of(const void* pc, Op op, Space space, int bytes) {
  const uintptr_t kind = uintptr_t(std::min(bytes, 127)) * 8 + uintptr_t(op) * 2 + space;
  const uintptr_t key = reinterpret_cast<uintptr_t>(pc) * 1024 + kind;
  if (2 * sites.size() >= table.size()) {  // at most half full, so that a search ends soon
    const auto old = std::move(table);
    table.assign(std::max<size_t>(1024, 2 * old.size()), {0, nullptr});
    for (const auto& [known, site] : old) {
      if (!site) continue;
      size_t at = known * 0x9e3779b97f4a7c15u >> 40 & (table.size() - 1);
      while (table[at].second) at = (at + 1) & (table.size() - 1);
      table[at] = {known, site};
    }
  }
  size_t at = key * 0x9e3779b97f4a7c15u >> 40 & (table.size() - 1);
  for (; table[at].second; at = (at + 1) & (table.size() - 1))
    if (table[at].first == key) return *table[at].second;
  sites.push_back(std::make_unique<Site>());
  Site& site = *sites.back();
  site.pc = static_cast<const char*>(pc);
  site.op = op, site.space = space, site.bytes = bytes;
  site.number = uint32_t(sites.size() - 1);
  table[at] = {key, &site};
  return site;
}

void Profiler::group(Site& site, uintptr_t address) {
  auto& of_warp = site.warp[warp];
  if (!of_warp) {
    of_warp = std::make_unique<Lanes>();
    of_warp->site = &site;
  }
  Lanes& lanes = *of_warp;
  if (!lanes.listed) listed[warp].push_back(&lanes), lanes.listed = true;
  const uint32_t step = steps[thread]++;
  uint32_t at = lanes.times[lane]++ - lanes.first;
  if (at >= lanes.open.size()) {
    if (at >= kMostOpen) {  // lanes that go very different ways: what there is counts as it is
      for (Request& request : lanes.open)
        if (request.mask) close(site, request, warp);
      lanes.open.clear();
      std::fill(lanes.times, lanes.times + kWarp, 0);
      lanes.first = lanes.unfinished = at = 0;
      lanes.times[lane] = 1;
    }
    lanes.open.resize(at + 1);
    lanes.open[at].mask = 0;
    lanes.open[at].step = 0;
    lanes.open[at].base = address - (uintptr_t{1} << 31);
    ++lanes.unfinished;
  }
  Request& request = lanes.open[at];
  if ((address - request.base) >> 32) {  // 2 GB away from the lanes before: a request of its own
    if (request.mask) close(site, request, warp);
    request.base = address - (uintptr_t{1} << 31);
  }
  request.offset[lane] = uint32_t(address - request.base);
  request.mask |= 1u << lane;
  request.step = std::max(request.step, step);
  if (request.mask != ~gone[warp]) return;
  close(site, request, warp);
  if (--lanes.unfinished) return;
  lanes.first += uint32_t(lanes.open.size());
  lanes.open.clear();
}

void Profiler::flush(int w) {
  for (Lanes* lanes : listed[w]) {
    for (Request& request : lanes->open)
      if (request.mask) close(*lanes->site, request, w);
    lanes->open.clear();
    std::fill(lanes->times, lanes->times + kWarp, 0);
    lanes->first = lanes->unfinished = 0;
    lanes->listed = false;
  }
  listed[w].clear();
  if (w > 0 || !timed) return;
  std::stable_sort(pending.begin(), pending.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [step, entry] : pending)
    if (kernel->timeline.size() < 4096) kernel->timeline.push_back(entry);
  pending.clear();
  std::fill(steps, steps + kWarp, 0);
}

void Profiler::close(Site& site, Request& request, int w) {
  Counters& all = site.counters;
  const int lanes = __builtin_popcount(request.mask);
  if (site.pattern.mask == 0) {
    const uintptr_t lowest = request.address(__builtin_ctz(request.mask));
    const Buffer* buffer = site.space == kGlobal ? buffer_of(lowest, site.bytes) : nullptr;
    const uintptr_t base = buffer ? buffer->begin : lowest - statics < statics_bytes ? statics : dynamic;
    site.pattern.mask = request.mask;
    for (int i = 0; i < kWarp; ++i) site.pattern.offset[i] = request.mask >> i & 1 ? request.address(i) - base : 0;
  }
  ++all.requests;
  all.lanes += uint64_t(lanes);
  all.bytes += uint64_t(lanes) * uint64_t(site.bytes);
  if (site.space == kGlobal) count_global(site, request);
  else count_shared(site, request);
  if (timed && w == 0 && pending.size() < 65536) pending.push_back({request.step, {site.number, uint32_t(lanes)}});
  request.mask = 0;
}

uint64_t set_bits(Bits& bits, size_t from, size_t count) {
  uint64_t fresh = 0;
  for (size_t done = 0; done < count;) {
    const size_t word = (from + done) / 64, start = (from + done) % 64;
    const size_t here = std::min(count - done, 64 - start);
    const uint64_t mask = (here == 64 ? ~uint64_t{0} : (uint64_t{1} << here) - 1) << start;
    fresh += uint64_t(__builtin_popcountll(mask & ~bits[word]));
    bits[word] |= mask;
    done += here;
  }
  return fresh;
}

// Adds a value to a small set; mostly they come in ascending order.
struct SmallSet {
  uintptr_t value[2 * kWarp];
  int count = 0;
  void add(uintptr_t one) {
    if (count && one == value[count - 1]) return;
    if (count && one < value[count - 1] && std::find(value, value + count, one) != value + count) return;
    if (count == 2 * kWarp) return;
    value[count++] = one;
    if (count > 1 && value[count - 2] > one) std::swap(value[count - 2], value[count - 1]);
  }
};

void Profiler::count_global(Site& site, const Request& request) {
  Counters& all = site.counters;
  SmallSet sectors, addresses;
  for (uint32_t rest = request.mask; rest; rest &= rest - 1) {
    const uintptr_t address = request.address(__builtin_ctz(rest));
    const uintptr_t last = (address + uintptr_t(site.bytes) - 1) / kSector;
    for (uintptr_t sector = address / kSector; sector <= last; ++sector) sectors.add(sector);
    addresses.add(address);
  }
  all.sectors += uint64_t(sectors.count);
  all.ideal_sectors += uint64_t(addresses.count * site.bytes + kSector - 1) / kSector;
  for (int i = 0; i < addresses.count; ++i) {
    Buffer* buffer = buffer_of(addresses.value[i], site.bytes);
    if (!buffer) continue;
    const size_t at = addresses.value[i] - buffer->begin;
    if (site.op != Op::store) all.compulsory += set_bits(buffer->touched[0], at, size_t(site.bytes));
    if (site.op != Op::load) all.compulsory += set_bits(buffer->touched[1], at, size_t(site.bytes));
  }
}

// Whether lanes of at most 4 bytes each find all banks free, or holding the very word they want.
static bool without_conflict(const Request& request) {
  uint32_t taken = 0;
  uintptr_t word_in[kBanks];
  for (uint32_t rest = request.mask; rest; rest &= rest - 1) {
    const uintptr_t word = request.address(__builtin_ctz(rest)) / 4;
    const int bank = int(word % kBanks);
    if (taken >> bank & 1 && word_in[bank] != word) return false;
    taken |= 1u << bank;
    word_in[bank] = word;
  }
  return true;
}

void Profiler::count_shared(Site& site, const Request& request) {
  if (site.bytes <= 4 && without_conflict(request)) return void(++site.counters.wavefronts);
  const int together = site.bytes >= 16 ? 8 : site.bytes == 8 ? 16 : kWarp;  // lanes served in one pass
  for (int first = 0; first < kWarp; first += together) {
    const uint32_t phase = request.mask >> first & (together == kWarp ? ~0u : (1u << together) - 1);
    if (!phase) continue;
    static uintptr_t word_in[kBanks][kWarp];  // too large for a fiber's stack; launches are profiled one at a time
    int words_in[kBanks] = {}, most = 0;
    for (uint32_t rest = phase; rest; rest &= rest - 1) {
      const uintptr_t address = request.address(first + __builtin_ctz(rest));
      for (uintptr_t word = address / 4; word <= (address + uintptr_t(site.bytes) - 1) / 4; ++word) {
        uintptr_t* const in_bank = word_in[word % kBanks];
        int& count = words_in[word % kBanks];
        if (std::find(in_bank, in_bank + count, word) != in_bank + count) continue;
        if (count < kWarp) in_bank[count++] = word;
        most = std::max(most, count);
      }
    }
    site.counters.wavefronts += uint64_t(most);
    site.counters.conflicts += uint64_t(most - 1);
  }
}

void Profiler::fold() {
  for (auto& site : sites) {
    if (!site->counters.requests) continue;
    auto& [counters, pattern] = kernel->sites[site->number];
    if (!pattern.mask) pattern = site->pattern;
    counters.add(site->counters);
    site->counters = {};
    site->pattern.mask = 0;
  }
}

}  // namespace simt
