// What a kernel needs to be C++: CUDA's keywords, vector types and index variables, and the launch.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

// nvcc fuses a * b + c of device code into one operation unless it is told --fmad=false. With SIMT_CONTRACT the compiler
// does so in these functions and in what it inlines into them; a kernel is not inlined into its launch, which is host code.
#ifdef SIMT_CONTRACT
#define __device__ __attribute__((optimize("fp-contract=fast")))
#define __global__ __device__ __attribute__((noinline))
#else
#define __device__
#define __global__
#endif
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// For what the emulator itself reads and writes on a kernel's behalf: the profiler is told of it otherwise.
#ifdef SIMT_PROFILE
#define SIMT_UNSEEN __attribute__((no_sanitize_thread))
#else
#define SIMT_UNSEEN
#endif
#define SIMT_INLINE inline __attribute__((always_inline))  // what it does is done by the line that calls it
// Inside a function thread_local implies static: one copy for all threads of a block, since one OS thread runs a whole
// block, block after block. Each variable is aligned to 16 bytes: kernels move narrower types by 16 bytes at a time.
#define __shared__ thread_local __attribute__((aligned(16)))

#define SIMT_VECTOR(T, name, alignment2, alignment4)                                                   \
  struct name##1 { T x; };                                                                             \
  struct alignas(alignment2) name##2 { T x, y; };                                                      \
  struct name##3 { T x, y, z; };                                                                       \
  struct alignas(alignment4) name##4 { T x, y, z, w; };                                                \
  inline name##1 make_##name##1(T x) { return {x}; }                                                   \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                           \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR(signed char, char, 2, 4)
SIMT_VECTOR(unsigned char, uchar, 2, 4)
SIMT_VECTOR(short, short, 4, 8)
SIMT_VECTOR(unsigned short, ushort, 4, 8)
SIMT_VECTOR(int, int, 8, 16)
SIMT_VECTOR(unsigned int, uint, 8, 16)
SIMT_VECTOR(long, long, 16, 16)
SIMT_VECTOR(unsigned long, ulong, 16, 16)
SIMT_VECTOR(long long, longlong, 16, 16)
SIMT_VECTOR(unsigned long long, ulonglong, 16, 16)
SIMT_VECTOR(float, float, 8, 16)
SIMT_VECTOR(double, double, 16, 16)
#undef SIMT_VECTOR

struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

inline thread_local uint3 threadIdx, blockIdx;  // set at each switch: a debugger may break on them
inline thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace simt {

// x, which takes part in no fused operation: for __fmul_rn and its like.
template <class T>
SIMT_INLINE T unfused(T x) {
#if defined(SIMT_CONTRACT) && defined(__x86_64__)
  if constexpr (std::is_floating_point_v<T>) __asm__("" : "+x"(x));
#elif defined(SIMT_CONTRACT) && defined(__aarch64__)
  if constexpr (std::is_floating_point_v<T>) __asm__("" : "+w"(x));
#endif
  return x;
}

// Every failure of an emulated kernel: what happened, with kernel, block, thread and source line.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A place in the source; as a default argument it is the place of the call.
struct Where {
  const char* file;
  int line;
  static Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// In which order the threads of a block run between two barriers, and the blocks of a grid. All are legal on a GPU, and
// hostile: a thread runs as far as it can before another gets its turn, so a missing barrier shows.
enum class Order { forward, reverse, shuffle };

// What a launch is held to; the defaults are the tightest among current devices.
struct Device {
  const char* name;
  size_t shared_bytes;         // dynamic shared memory that a launch may ask for
  size_t shared_opt_in_bytes;  // ... after cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n)
};

struct Options {
  Order order = Order::forward;
  uint64_t seed = 0;                                 // of Order::shuffle
  Device device = {"sm_89", 48 * 1024, 99 * 1024};
  double seconds = 10;                               // CPU time without progress after which a kernel is called endless
  bool strict = false;                               // profiler: only __syncwarp() orders memory within a warp
  bool keep_errors = false;                          // keep a launch's Error for take_error() instead of throwing it
};

// Process-wide; at first use read from SIMT_SCHEDULE, SIMT_DEVICE and SIMT_SECONDS.
Options& options();
void set_schedule(const std::string& text);  // "forward", "reverse" or "shuffle:SEED"
void set_device(const std::string& name);    // "sm_80", "sm_86", "sm_89", "sm_90", "sm_100" or "sm_120"

struct LaunchConfig {
  const char* kernel;
  const void* function;
  Where where;
  dim3 grid, block;
  size_t shared_bytes;
  bool together = false;  // all blocks at once (cudaLaunchCooperativeKernel), so that they may wait for each other
  const void* stream = nullptr;
};

// Check the limits, then run body(argument) once for every thread of the grid. Throws Error.
void run(const LaunchConfig& config, void (*body)(void*), void* argument);
void allow_shared(const void* function, size_t bytes);
size_t allowed_shared(const void* function);    // 0: nothing was asked for
size_t static_shared_of(const void* function);  // see symbols.h
void keep_error(const char* message);
// simt_caught_NAME(...), which calls NAME(...) and keeps what it throws: that must not reach a caller in C.
#define SIMT_CAUGHT(name, parameters, passed)         \
  extern "C" void name parameters;                    \
  extern "C" void simt_caught_##name parameters {     \
    try {                                             \
      name passed;                                    \
    } catch (const std::exception& error) {           \
      simt::keep_error(error.what());                 \
    }                                                 \
  }
std::string take_error();  // of the first launch that failed under keep_errors, or ""; then launches run again

// Tell the profiler of a piece of global memory: accesses outside all such pieces are then errors.
void watch(const void* address, size_t bytes, const char* name);
void forget(const void* address);

// A launch by a kernel: it waits until the kernel that asked for it has ended, as it may on a GPU.
struct Later {
  virtual void go() = 0;
  virtual ~Later() = default;
};
bool in_kernel();
void launch_later(Later* launch);
void look_away(bool away);  // for what the emulator does in a header: the profiler does not take it for the kernel's

template <class Body>
struct Launcher {
  LaunchConfig config;
  Body body;

  template <class... Arguments>
  void operator()(Arguments... arguments) {
    if (in_kernel()) {
      look_away(true);
      struct Kept : Later {
        Launcher launcher;
        std::tuple<Arguments...> arguments;
        Kept(const Launcher& l, Arguments... a) : launcher(l), arguments(a...) {}
        void go() override { std::apply(launcher, arguments); }
      };
      launch_later(new Kept(*this, arguments...));
      return look_away(false);
    }
    auto thread = [&] { body(arguments...); };
    run(config, [](void* call) { (*static_cast<decltype(thread)*>(call))(); }, &thread);
  }
};

template <class Body>
Launcher<Body> launcher(const char* name, const void* function, Where where, dim3 grid, dim3 block, size_t shared,
                        const void* stream, Body body) {  // everything is synchronous; the profiler knows what orders it
  return {{name, function, where, grid, block, shared, false, stream}, body};
}

// ---- called by kernels, through the functions with CUDA's names

// Wait for all threads of the block that have not returned; the sum of their values.
int barrier(int value, const char* what, Where where);
struct Slot {  // what the lanes of a warp laid down for each other
  alignas(16) unsigned char lane[32][32];
  uint32_t took_part;
};
// Lay down `bytes` <= 32 bytes, wait for all lanes in `mask` that have not returned, and see what everybody laid down.
const Slot& exchange(uint32_t mask, const void* value, size_t bytes, const char* what, Where where);
// The same for `threads` <= 1024 threads in a row, beginning with `first`: what each laid down, 16 bytes a thread.
const unsigned char* exchange_wide(int first, int threads, const void* value, size_t bytes, const char* what,
                                   Where where);
uint32_t converged(const char* what, Where where);  // the lanes of this warp that are at this place, all others waiting
void grid_barrier(Where where);                     // wait for all blocks of the grid
void phase_ends(Where where);                       // a barrier in memory lets its threads go: what they did is ordered
void yield(Where where);                            // let other threads go on before this one
void* dynamic_shared();
unsigned shared_address(const void* pointer, Where where);  // 32 bits, as instructions on shared memory take them
void* from_shared_address(unsigned address);
bool is_shared_memory(const void* pointer);
int lane_id();
void atomic_point(Where where);  // a thread that spins on an atomic lets the others go on
void atomic_access(const void* address, int bytes, Where where);
void fence();  // memory is in order here: only the profiler wants to know
void matrix_row(const void* row, const char* what, Where where);  // a lane names a row for ldmatrix
[[noreturn]] void fail(const std::string& message, Where where);
[[noreturn]] void fail_absent(int lane, const char* what, Where where);  // a lane that does not take part is read
void copy_later(void* to, const void* from, int bytes, int wanted, Where where);  // cp.async, see tensor.h
void commit_copies();
void finish_copies(int groups_in_flight);

}  // namespace simt

#define SIMT_BARE(...) __VA_ARGS__
#define LAUNCH(kernel, grid, block, shared, stream)                                                                 \
  ::simt::launcher(#kernel, reinterpret_cast<const void*>(SIMT_BARE kernel), ::simt::Where::here(), grid, block,    \
                   shared, stream, [=](auto... arguments) { (SIMT_BARE kernel)(arguments...); })
#define DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::simt::dynamic_shared())

inline void __syncthreads(simt::Where where = simt::Where::here()) { simt::barrier(0, "__syncthreads()", where); }
inline int __syncthreads_count(int predicate, simt::Where where = simt::Where::here()) {
  return simt::barrier(predicate != 0, "__syncthreads_count()", where);
}
inline int __syncthreads_or(int predicate, simt::Where where = simt::Where::here()) {
  return simt::barrier(predicate != 0, "__syncthreads_or()", where) != 0;
}
inline int __syncthreads_and(int predicate, simt::Where where = simt::Where::here()) {
  return simt::barrier(predicate == 0, "__syncthreads_and()", where) == 0;
}
