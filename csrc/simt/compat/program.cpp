// The runtime behind cuda_runtime.h, and the report that a program leaves for the one that started it.

#include "cuda_runtime.h"

#include <unistd.h>

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
  *total = device_memory();
  *free = used < *total ? *total - used : 0;
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
