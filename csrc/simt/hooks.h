// Where the profiler listens. In an ordinary build nothing of this exists; with -DSIMT_PROFILE profile/*.cpp defines it.
#pragma once

#include "runtime.h"

namespace simt {

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes, wanted;  // the rest, bytes - wanted, is filled with zeros
};

enum class Op { load, store, atomic };

#ifdef SIMT_PROFILE
void on_launch(const LaunchConfig& config, const unsigned char* shared);
void on_launch_end();
void on_block(int threads, const unsigned char* shared, bool resumed);
void on_block_end();
void on_turn(int thread, const char* stack);             // from now on this thread runs, on this stack
void on_gone(int thread);                                // it has returned
void on_barrier(Where where, int threads);               // all have arrived
void on_meeting(int warp, uint32_t lanes, const char* what, Where where);
void on_failure(const char* what, Where where);
void on_fence();
void on_access(const void* address, int bytes, Op op, Where where);  // made by the emulator for a kernel
void on_copy(const AsyncCopy& copy, Where where);        // cp.async is issued
void on_copy_arrives(const AsyncCopy& copy);             // its wait is over
#else
inline void on_launch(const LaunchConfig&, const unsigned char*) {}
inline void on_launch_end() {}
inline void on_block(int, const unsigned char*, bool) {}
inline void on_block_end() {}
inline void on_turn(int, const char*) {}
inline void on_gone(int) {}
inline void on_barrier(Where, int) {}
inline void on_meeting(int, uint32_t, const char*, Where) {}
inline void on_failure(const char*, Where) {}
inline void on_fence() {}
inline void on_access(const void*, int, Op, Where) {}
inline void on_copy(const AsyncCopy&, Where) {}
inline void on_copy_arrives(const AsyncCopy&) {}
#endif

extern bool casting;   // a thread is run one instruction at a time, see casts.cpp; set it to false and that stops
void go_on_casting();  // ... and begins again

struct Listening {  // for as long as a launch lasts, however it ends
  Listening(const LaunchConfig& config, const unsigned char* shared) { on_launch(config, shared); }
  ~Listening() { on_launch_end(); }
};

}  // namespace simt
