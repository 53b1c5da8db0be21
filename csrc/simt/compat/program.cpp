// The runtime behind cuda_runtime.h, and the report that a program leaves for the one that started it.

#include "cuda_runtime.h"

#include <unistd.h>

#include <chrono>
#include <map>
#include <string>

#include "../scheduler.h"
#ifdef SIMT_PROFILE
#include "../profile/profiler.h"
#endif

namespace simt::program {

// ---- the report: entries "kind:text" ended by a zero byte, in the file that SIMT_REPORT names

static void report(const char* kind, const std::string& text) {
  const char* path = std::getenv("SIMT_REPORT");
  FILE* file = path ? std::fopen(path, "ab") : nullptr;
  std::fprintf(file ? file : stderr, "%s:%s%c", kind, text.c_str(), file ? '\0' : '\n');
  if (file) std::fclose(file);
}

static cudaError_t sticky = cudaSuccess, last = cudaSuccess;
static std::string refused;  // the words of a launch beyond the limits, until the program has asked for its error

// A launch that failed left its words; a kernel that was stopped spoils everything after it, as on a GPU.
static void take_in() {
  const std::string words = take_error();
  if (words.empty()) return;
  if (words.rfind("launch of ", 0) == 0) {
    refused = words;
    last = words.find("shared memory") != std::string::npos ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration;
    return;
  }
  report("error", words);
  const auto says = [&](const char* what) { return words.find(what) != std::string::npos; };
  sticky = last = says("assertion failed: ") ? cudaErrorAssert
                : says("illegal address: ")  ? cudaErrorIllegalAddress : cudaErrorLaunchFailure;
}

cudaError_t checked() {
  take_in();
  return sticky;
}

cudaError_t last_error(bool forget) {
  take_in();
  refused.clear();
  const cudaError_t error = sticky ? sticky : last;
  if (forget) last = cudaSuccess;
  return error;
}

cudaError_t fail_with(cudaError_t error) { return last = error; }

void unsupported(const char* what, Where where) {
  std::fflush(nullptr);
  report("unsupported", text(where) + ": unsupported: " + what);
  _exit(3);
}

static void at_the_end() {
  take_in();
  if (!refused.empty()) report("error", refused);
#ifdef SIMT_PROFILE
  profiler.wanted = false;
  report("profile", profiler.json());
#endif
}

static const bool begun = [] {
  options().keep_errors = true;
#ifdef SIMT_PROFILE
  profiler.wanted = true;
#endif
  return std::atexit(at_the_end) == 0;
}();

}  // namespace simt::program

// clock(): in a kernel it counts as fast as the clock rate says, elsewhere it is the C library's.
extern "C" clock_t clock() noexcept {
  if (simt::in_kernel()) return clock_t(clock64());
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return clock_t(now.tv_sec * 1000000 + now.tv_nsec / 1000);
}

// assert(): in a kernel it stops the kernel, as on a GPU; elsewhere it does what the C library does.
extern "C" [[noreturn]] void __assert_fail(const char* what, const char* file, unsigned line, const char* function) {
  std::fflush(nullptr);
  std::fprintf(stderr, "%s:%u: %s: Assertion `%s' failed.\n", file, line, function, what);
  if (simt::scheduler().running) simt::fail(std::string("assertion failed: ") + what, {file, int(line)});
  std::abort();
}

namespace simt::program {

// ---- memory

static std::map<void*, size_t>& allocated() {
  static auto* all = new std::map<void*, size_t>;  // outlives whatever frees memory at the end
  return *all;
}

cudaError_t allocate(void** pointer, size_t bytes, int fill, const char* name) {
  if (const cudaError_t error = checked()) return error;
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  if (bytes > SIZE_MAX - 256) return fail_with(cudaErrorMemoryAllocation);
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!memory) return fail_with(cudaErrorMemoryAllocation);
  std::memset(memory, fill, bytes);
  watch(memory, bytes, name);
  allocated()[memory] = bytes;
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (!pointer) return checked();
  if (!allocated().erase(pointer)) return fail_with(cudaErrorInvalidValue);
  forget(pointer);
  std::free(pointer);
  return checked();
}

// Whether the device memory that an address lies in, if any, has room for so many bytes.
static bool has_room(const void* address, size_t bytes) {
  auto next = allocated().upper_bound(const_cast<void*>(address));
  if (next == allocated().begin()) return true;
  --next;
  const size_t offset = size_t(static_cast<const char*>(address) - static_cast<char*>(next->first));
  return offset >= next->second || bytes <= next->second - offset;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  if (const cudaError_t error = checked()) return error;
  if (bytes == 0) return cudaSuccess;
  if (!to || !from || !has_room(to, bytes) || !has_room(from, bytes)) return fail_with(cudaErrorInvalidValue);
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t set(void* to, int value, size_t bytes) {
  if (const cudaError_t error = checked()) return error;
  if (bytes == 0) return cudaSuccess;
  if (!to || !has_room(to, bytes)) return fail_with(cudaErrorInvalidValue);
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height) {
  if (width > to_pitch || width > from_pitch) return fail_with(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row)
    if (const cudaError_t error = copy(static_cast<char*>(to) + row * to_pitch,
                                       static_cast<const char*>(from) + row * from_pitch, width))
      return error;
  return checked();
}

// ---- the device

constexpr size_t kMemory = size_t{4} << 30;

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)  // a wish: a number from -1 to 100
    return value < -1 || value > 100 ? fail_with(cudaErrorInvalidValue) : checked();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return fail_with(cudaErrorInvalidValue);
  if (value < 0 || size_t(value) > options().device.shared_opt_in_bytes) return fail_with(cudaErrorInvalidValue);
  allow_shared(kernel, size_t(value));
  return checked();
}

int blocks_that_fit(int threads, size_t shared) {
  if (threads <= 0 || threads > 1024) return 0;
  const int by_threads = std::min(1536 / threads, 24);
  const size_t all = options().device.shared_opt_in_bytes;
  return shared ? int(std::min<size_t>(size_t(by_threads), all / shared)) : by_threads;
}

bool fit_together(dim3 grid, dim3 block, size_t shared) {  // every block of the grid on a multiprocessor at once
  const int threads = int(block.x * block.y * block.z);
  return threads > 1024 || uint64_t(grid.x) * grid.y * grid.z <= 16u * unsigned(blocks_that_fit(threads, shared));
}

}  // namespace simt::program

using namespace simt::program;

const char* cudaGetErrorString(cudaError_t error) {
#define SIMT_TEXT_OF(name, number, text) \
  if (error == number) return text;
  SIMT_CUDA_ERRORS(SIMT_TEXT_OF)
  return "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) {
#define SIMT_NAME_OF(name, number, text) \
  if (error == number) return #name;
  SIMT_CUDA_ERRORS(SIMT_NAME_OF)
  return "unrecognized error code";
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? checked() : fail_with(cudaErrorInvalidDevice); }

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  size_t used = 0;
  for (const auto& [memory, bytes] : allocated()) used += bytes;
  *total = kMemory;
  *free = used < kMemory ? kMemory - used : 0;
  return checked();
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device != 0) return fail_with(cudaErrorInvalidDevice);
  const simt::Device& limits = simt::options().device;
  *p = {};
  std::snprintf(p->name, sizeof p->name, "SIMT emulator (%s)", limits.name);
  const int version = std::atoi(limits.name + 3);
  p->major = version / 10, p->minor = version % 10;
  p->totalGlobalMem = kMemory, p->totalConstMem = 64 * 1024, p->memPitch = INT_MAX;
  p->sharedMemPerBlock = limits.shared_bytes, p->sharedMemPerBlockOptin = limits.shared_opt_in_bytes;
  p->sharedMemPerMultiprocessor = limits.shared_opt_in_bytes + 1024, p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->warpSize = 32, p->maxThreadsPerBlock = 1024;
  const int block[3] = {1024, 1024, 64}, grid[3] = {INT_MAX, 65535, 65535};
  std::copy(block, block + 3, p->maxThreadsDim);
  std::copy(grid, grid + 3, p->maxGridSize);
  p->multiProcessorCount = 16, p->maxThreadsPerMultiProcessor = 1536, p->maxBlocksPerMultiProcessor = 24;
  p->maxTexture1D = p->maxTexture2D[0] = p->maxTexture1DLayered[0] = p->maxTexture2DLayered[0] = 32768;
  p->maxTexture2D[1] = p->maxTexture2DLayered[1] = 32768, p->maxTexture1DLayered[1] = p->maxTexture2DLayered[2] = 2048;
  for (int& size : p->maxTexture3D) size = 16384;
  p->memoryPoolsSupported = 1, p->persistingL2CacheMaxSize = p->accessPolicyMaxWindowSize = 1 << 20;
  p->clockRate = p->memoryClockRate = 1000000, p->memoryBusWidth = 128, p->l2CacheSize = 4 << 20;
  p->textureAlignment = 512, p->canMapHostMemory = p->unifiedAddressing = p->managedMemory = 1;
  p->cooperativeLaunch = p->concurrentKernels = p->asyncEngineCount = p->deviceOverlap = p->concurrentManagedAccess = 1;
  return checked();
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
  const std::map<int, int> known = {
      {cudaDevAttrMaxThreadsPerBlock, 1024}, {cudaDevAttrMaxBlockDimX, 1024}, {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64}, {cudaDevAttrMaxGridDimX, INT_MAX}, {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535}, {cudaDevAttrMaxSharedMemoryPerBlock, int(p.sharedMemPerBlock)},
      {cudaDevAttrTotalConstantMemory, 65536}, {cudaDevAttrWarpSize, 32}, {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrClockRate, p.clockRate}, {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
      {cudaDevAttrConcurrentKernels, 1}, {cudaDevAttrGpuOverlap, 1}, {cudaDevAttrAsyncEngineCount, 1},
      {cudaDevAttrCanMapHostMemory, 1}, {cudaDevAttrMaxBlocksPerMultiprocessor, 24}, {cudaDevAttrMaxPitch, INT_MAX}, {cudaDevAttrMemoryClockRate, p.memoryClockRate},
      {cudaDevAttrGlobalMemoryBusWidth, p.memoryBusWidth}, {cudaDevAttrL2CacheSize, p.l2CacheSize},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 1536}, {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrComputeCapabilityMajor, p.major}, {cudaDevAttrComputeCapabilityMinor, p.minor},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, int(p.sharedMemPerMultiprocessor)},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536}, {cudaDevAttrManagedMemory, 1},
      {cudaDevAttrConcurrentManagedAccess, 1}, {cudaDevAttrCooperativeLaunch, 1}, {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, int(p.sharedMemPerBlockOptin)},
      {cudaDevAttrReservedSharedMemoryPerBlock, int(p.reservedSharedMemPerBlock)},
      {cudaDevAttrMaxTexture1DWidth, p.maxTexture1D}, {cudaDevAttrMaxTexture2DWidth, p.maxTexture2D[0]},
      {cudaDevAttrMaxTexture2DHeight, p.maxTexture2D[1]}, {cudaDevAttrMaxTexture3DWidth, p.maxTexture3D[0]},
      {cudaDevAttrMaxTexture3DHeight, p.maxTexture3D[1]}, {cudaDevAttrMaxTexture3DDepth, p.maxTexture3D[2]},
      {cudaDevAttrTextureAlignment, int(p.textureAlignment)}};
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;  // what is not known is not there
  return checked();
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  return checked();
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  *milliseconds = float((to->seconds - from->seconds) * 1e3);
  static bool said = false;
  if (!said) std::fprintf(stderr, "[emulator: cudaEventElapsedTime gives this computer's time, not a GPU's]\n");
  said = true;
  return checked();
}

// ---- the same for sources in C, which call these names without seeing a header of ours

extern "C" {
int simt_c_set_device(int device) __asm__("cudaSetDevice");
int simt_c_set_device(int device) { return cudaSetDevice(device); }
int simt_c_synchronize() __asm__("cudaDeviceSynchronize");
int simt_c_synchronize() { return cudaDeviceSynchronize(); }
int simt_c_thread_synchronize() __asm__("cudaThreadSynchronize");
int simt_c_thread_synchronize() { return cudaDeviceSynchronize(); }
int simt_c_malloc(void** pointer, size_t bytes) __asm__("cudaMalloc");
int simt_c_malloc(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }
int simt_c_free(void* pointer) __asm__("cudaFree");
int simt_c_free(void* pointer) { return cudaFree(pointer); }
int simt_c_memcpy(void* to, const void* from, size_t bytes, int) __asm__("cudaMemcpy");
int simt_c_memcpy(void* to, const void* from, size_t bytes, int) { return simt::program::copy(to, from, bytes); }
}
