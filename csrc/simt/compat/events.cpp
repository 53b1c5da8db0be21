// Events and limits: what they answer, and to whom they answer with an error.

#include "cuda_runtime.h"

#include <chrono>
#include <map>
#include <set>

#include "../hooks.h"

struct SimtEvent {
  bool timed, recorded;
  double seconds;  // of the host's clock
};

static std::set<cudaEvent_t>& events() {
  static auto* all = new std::set<cudaEvent_t>;  // outlives whatever destroys one at the end
  return *all;
}

using namespace simt;
using namespace simt::program;

static bool is_alive(cudaEvent_t event) { return event && events().count(event); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const unsigned known = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
  const bool shared_and_timed = (flags & cudaEventInterprocess) && !(flags & cudaEventDisableTiming);
  if (!event || (flags & ~known) || shared_and_timed) return fail_with(cudaErrorInvalidValue);
  *event = new SimtEvent{!(flags & cudaEventDisableTiming), false, 0};
  events().insert(*event);
  return checked();
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!events().erase(event)) return fail_with(cudaErrorInvalidResourceHandle);
  delete event;
  return checked();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (!is_alive(event)) return fail_with(cudaErrorInvalidResourceHandle);
  event->recorded = true;
  on_record(event, stream_known(stream));
  event->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  return checked();
}

// Of an event that was recorded everything has happened, and so it has of one that was not.
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!is_alive(event)) return fail_with(cudaErrorInvalidResourceHandle);
  on_event_over(event);
  return checked();
}

namespace simt::program {
cudaError_t event_known(cudaEvent_t event) {
  return is_alive(event) ? checked() : fail_with(cudaErrorInvalidResourceHandle);
}
void wait_for_all() { on_wait_all(); }
}  // namespace simt::program

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (!milliseconds) return fail_with(cudaErrorInvalidValue);
  for (const cudaEvent_t event : {from, to})
    if (!is_alive(event) || !event->recorded || !event->timed) return fail_with(cudaErrorInvalidResourceHandle);
  *milliseconds = float((to->seconds - from->seconds) * 1e3);
  static bool said = false;
  if (!said) std::fprintf(stderr, "[emulator: cudaEventElapsedTime gives this computer's time, not a GPU's]\n");
  said = true;
  return checked();
}

static std::map<cudaLimit, size_t>& limits() {  // as a device has them until somebody sets them
  static std::map<cudaLimit, size_t> all = {
      {cudaLimitStackSize, 1024}, {cudaLimitPrintfFifoSize, 1 << 20}, {cudaLimitMallocHeapSize, 8 << 20},
      {cudaLimitDevRuntimeSyncDepth, 2}, {cudaLimitDevRuntimePendingLaunchCount, 2048},
      {cudaLimitMaxL2FetchGranularity, 64}, {cudaLimitPersistingL2CacheSize, 0}};
  return all;
}

cudaError_t cudaDeviceSetLimit(cudaLimit limit, size_t value) {
  if (!limits().count(limit)) return fail_with(cudaErrorUnsupportedLimit);
  limits()[limit] = value;
  if (limit == cudaLimitPrintfFifoSize) printed_at_most(value);
  return checked();
}

cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit limit) {
  if (!value) return fail_with(cudaErrorInvalidValue);
  if (!limits().count(limit)) return fail_with(cudaErrorUnsupportedLimit);
  *value = limits()[limit];
  return checked();
}
