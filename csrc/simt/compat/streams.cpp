// Streams: each has happened when a call returns; under --profile it is remembered what orders them (profile/streams.cpp).

#include "cuda_runtime.h"

#include <set>

#include "../hooks.h"

struct SimtStream {
  unsigned flags;
};

using namespace simt;
using namespace simt::program;

static std::set<cudaStream_t>& streams() {
  static auto* all = new std::set<cudaStream_t>;  // outlives whatever destroys one at the end
  return *all;
}

// 0 and the numbers of two streams that nobody makes are streams as well.
static bool is_alive(cudaStream_t stream) { return reinterpret_cast<uintptr_t>(stream) <= 2 || streams().count(stream); }

namespace simt::program {
const void* stream_known(cudaStream_t stream) { return stream == cudaStreamLegacy ? nullptr : stream; }
}  // namespace simt::program

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  if (!stream || flags > cudaStreamNonBlocking) return fail_with(cudaErrorInvalidValue);
  *stream = new SimtStream{flags};
  streams().insert(*stream);
  on_stream(*stream, flags != cudaStreamNonBlocking);
  return checked();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (!streams().erase(stream)) return fail_with(cudaErrorInvalidResourceHandle);
  return checked();  // its memory stays: no other stream is to get its name
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  if (!flags) return fail_with(cudaErrorInvalidValue);
  if (!is_alive(stream)) return fail_with(cudaErrorInvalidResourceHandle);
  *flags = streams().count(stream) ? stream->flags : cudaStreamDefault;
  return checked();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (!is_alive(stream)) return fail_with(cudaErrorInvalidResourceHandle);
  on_wait(stream_known(stream));
  return checked();
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (!is_alive(stream)) return fail_with(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = event_known(event)) return error;
  on_stream_waits(stream_known(stream), event);
  return checked();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*call)(void*), void* data) {
  on_callback(stream_known(stream), true);
  call(data);
  on_callback(stream_known(stream), false);
  return checked();
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void* data, unsigned) {
  on_callback(stream_known(stream), true);
  call(stream, checked(), data);
  on_callback(stream_known(stream), false);
  return checked();
}
