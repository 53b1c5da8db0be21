// What streams, events and waits order. Everything runs as soon as it is asked for, but a GPU may run it later: each stream
// and the host have a clock, which tells how many operations of each stream are known to be over (a vector clock). An access
// is a race where an operation that it is not known to come after wrote the same bytes, or reads what is written now.
//
// The default stream waits for all streams but those made with cudaStreamNonBlocking, and they for it.

#include "profiler.h"

namespace simt {

constexpr size_t kMostOperations = 256, kMostRanges = 100000;

static void join(Clock& clock, const Clock& more) {
  for (const auto& [stream, number] : more) clock[stream] = std::max(clock[stream], number);
}

static std::vector<Range> ranges_of(const Bits& bits, uintptr_t begin) {
  std::vector<Range> all;
  for (size_t at = 0; at < 64 * bits.size(); ++at) {
    if (bits[at / 64] == 0) {
      at |= 63;
      continue;
    }
    if (!(bits[at / 64] >> at % 64 & 1)) continue;
    if (all.size() && all.back().end == begin + at) ++all.back().end;
    else if (all.size() < kMostRanges) all.push_back({begin + at, begin + at + 1});
  }
  return all;
}

static bool overlaps(const std::vector<Range>& all, uintptr_t begin, uintptr_t end) {
  const auto next = std::lower_bound(all.begin(), all.end(), begin, [](const Range& r, uintptr_t at) { return r.end <= at; });
  return next != all.end() && next->begin < end;
}

bool Operation::meets(uintptr_t begin, uintptr_t end, bool writes) const {
  return overlaps(written, begin, end) || (writes && overlaps(read, begin, end));
}

// An operation joins a stream: what it may run beside are its rivals.
void Profiler::enqueue(const void* stream, const std::string& name) {
  Clock& mine = stream_clocks[stream];
  join(mine, host_clock);
  for (auto& [other, clock] : stream_clocks)
    if (other != stream && (!stream ? !unblocked.count(other) : !other && !unblocked.count(stream))) join(mine, clock);
  now_running = {stream, ++mine[stream], name, {}, {}};
  rivals.clear();
  for (const auto& one : operations)
    if (mine[one->stream] < one->number) rivals.push_back(one);
}

void Profiler::launched() {
  if (host_matters || stream_clocks.size() > 1)
    for (Buffer& buffer : buffers)
      for (const int written : {0, 1}) {
        const auto more = ranges_of(buffer.touched[written], buffer.begin);
        auto& all = written ? now_running.written : now_running.read;
        all.insert(all.end(), more.begin(), more.end());
      }
  keep_operation();
}

void Profiler::keep_operation() {
  const auto by_address = [](const Range& a, const Range& b) { return a.begin < b.begin; };
  for (auto* all : {&now_running.read, &now_running.written}) std::sort(all->begin(), all->end(), by_address);
  if (!now_running.read.empty() || !now_running.written.empty())
    operations.push_back(std::make_shared<Operation>(std::move(now_running)));
  if (operations.size() > kMostOperations) operations.erase(operations.begin());
  rivals.clear();
}

void Profiler::host_waits(const Clock& clock) {
  join(host_clock, clock);
  const auto is_over = [&](const auto& one) { return host_clock[one->stream] >= one->number; };
  operations.erase(std::remove_if(operations.begin(), operations.end(), is_over), operations.end());
}

void Profiler::note_rivals(uintptr_t begin, int bytes, Op op, const void* pc) {
  for (const auto& one : rivals)
    if (one->meets(begin, begin + uintptr_t(bytes), op != Op::load))
      return void(find("race", pc, nullptr, verb(op) + "global memory that " + one->name + " in another stream " +
                       (overlaps(one->written, begin, begin + uintptr_t(bytes)) ? "writes" : "reads") +
                       ", and no event or wait orders the two"));
}

void Profiler::note_running(uintptr_t begin, int bytes, Op op, const void* pc) {  // beside the host, which accesses memory
  for (const auto& one : operations)
    if (host_clock[one->stream] < one->number && one->meets(begin, begin + uintptr_t(bytes), op != Op::load))
      return void(find("race", pc, nullptr, verb(op) + "memory that " + one->name + " may still use: no cudaDeviceSynchronize "
                       "or other wait comes between"));
}

// ---- what the runtime tells

// A copy or a set (from is null) in a stream; does the host wait for it, as it does where its own memory is not pinned?
void on_transfer(void* to, const void* from, size_t bytes, const void* stream, bool waits, const void* pc) {
  Profiler& my = profiler;
  const uintptr_t target = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
  my.enqueue(stream, from ? "a copy" : "a memset");
  for (const auto& one : my.rivals)
    if (one->meets(target, target + bytes, true) || (from && one->meets(source, source + bytes, false))) {
      my.find("race", pc, nullptr, (from ? "copies" : "sets") + std::string(" memory that ") + one->name +
              " in another stream uses, and no event or wait orders the two");
      break;
    }
  const bool pageable = !my.buffer_of(target, 1) || (from && !my.buffer_of(source, 1));
  if (waits || pageable) {
    my.rivals.clear();
    return my.host_waits(my.stream_clocks[stream]);
  }
  my.now_running.written.push_back({target, target + bytes});
  if (from) my.now_running.read.push_back({source, source + bytes});
  my.keep_operation();
}

void on_stream(const void* stream, bool blocking) {
  profiler.stream_clocks[stream];
  if (!blocking) profiler.unblocked.insert(stream);
}

void on_wait(const void* stream) { profiler.host_waits(profiler.stream_clocks[stream]); }

void on_wait_all() {
  for (const auto& [stream, clock] : profiler.stream_clocks) profiler.host_waits(clock);
}

void on_record(const void* event, const void* stream) {
  profiler.enqueue(stream, "an event");
  profiler.event_clocks[event] = profiler.stream_clocks[stream];
  profiler.rivals.clear();
}

void on_stream_waits(const void* stream, const void* event) {
  join(profiler.stream_clocks[stream], profiler.event_clocks[event]);
}

void on_event_over(const void* event) { profiler.host_waits(profiler.event_clocks[event]); }

void on_callback(const void* stream, bool begins) {
  static Clock before;
  Profiler& my = profiler;
  if (!begins) return void(my.host_clock = before);
  before = my.host_clock;
  join(my.host_clock, my.stream_clocks[stream]);
}

}  // namespace simt
