// The runtime behind cuda_runtime.h, and the report that a program leaves for the one that started it.

#include "cuda_runtime.h"

#include <unistd.h>

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

cudaError_t launched() {
  take_in();
  return sticky;
}

cudaError_t checked() {
  show_printed();
  return launched();
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
  show_printed();
  std::fflush(nullptr);
  report("unsupported", text(where) + ": unsupported: " + what);
  _exit(3);
}

static void at_the_end() {
  show_printed_at_the_end();
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

// ---- the device

constexpr size_t kMemory = size_t{4} << 30;

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)  // a wish: a number from -1 to 100
    return value < -1 || value > 100 ? fail_with(cudaErrorInvalidValue) : checked();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return fail_with(cudaErrorInvalidValue);
  if (value < 0 || size_t(value) + static_shared_of(kernel) > options().device.shared_opt_in_bytes)
    return fail_with(cudaErrorInvalidValue);
  allow_shared(kernel, size_t(value));
  return checked();
}

cudaError_t attributes_of(cudaFuncAttributes* all, const void* kernel) {
  if (!all) return fail_with(cudaErrorInvalidValue);
  const size_t fixed = static_shared_of(kernel), allowed = allowed_shared(kernel), most = options().device.shared_bytes;
  *all = {};
  all->sharedSizeBytes = fixed, all->maxThreadsPerBlock = 1024, all->numRegs = 32;
  all->maxDynamicSharedSizeBytes = int(allowed ? allowed : most > fixed ? most - fixed : 0);
  all->ptxVersion = all->binaryVersion = std::atoi(options().device.name + 3);
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
  const size_t used = bytes_in_use();
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
