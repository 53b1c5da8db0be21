// Where the profiler listens. In an ordinary build nothing of this exists; with -DSIMT_PROFILE profile/*.cpp defines it.
#pragma once

#include <vector>

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
void on_phase();                                         // all blocks have come to the grid's barrier
void on_turn(int thread, const char* stack);             // from now on this thread runs, on this stack
void on_gone(int thread);                                // it has returned
void on_barrier(Where where, int threads);               // all have arrived
void on_meeting(int warp, uint32_t lanes, const char* what, Where where);
void on_failure(const char* what, Where where);
void on_fence();
void on_access(const void* address, int bytes, Op op, Where where);  // made by the emulator for a kernel
void on_copy(const AsyncCopy& copy, Where where);        // cp.async is issued
void on_copy_arrives(const AsyncCopy& copy);             // its wait is over
// Memory of programs. `filled`: with bytes of one bits, which nobody has written; otherwise host and device share it.
void on_allocated(const void* memory, size_t bytes, const char* name, bool filled);
void on_freed(const void* memory, std::vector<void*>& unused);  // of the memory that was freed: nobody can miss these now
void on_written(const void* to, size_t bytes);           // by the runtime, as everything below
void on_copied(const void* to, const void* from, size_t bytes);
bool is_freed(const void* address);
void on_misuse(const char* kind, const std::string& text, const void* pc);
// What orders the operations of streams, and the host; the default stream is null.
void on_transfer(void* to, const void* from, size_t bytes, const void* stream, bool waits, const void* pc);
void on_stream(const void* stream, bool blocking);       // it was made
void on_wait(const void* stream);                        // the host waits for it
void on_wait_all();
void on_record(const void* event, const void* stream);
void on_stream_waits(const void* stream, const void* event);
void on_event_over(const void* event);                   // the host knows
void on_callback(const void* stream, bool begins);       // a function of the host runs as an operation of the stream
#else
inline void on_allocated(const void* memory, size_t bytes, const char* name, bool) { watch(memory, bytes, name); }
inline void on_freed(const void* memory, std::vector<void*>& unused) {
  forget(memory);
  unused.push_back(const_cast<void*>(memory));
}
inline void on_written(const void*, size_t) {}
inline void on_copied(const void*, const void*, size_t) {}
inline bool is_freed(const void*) { return false; }
inline void on_misuse(const char*, const std::string&, const void*) {}
inline void on_transfer(void*, const void*, size_t, const void*, bool, const void*) {}
inline void on_stream(const void*, bool) {}
inline void on_wait(const void*) {}
inline void on_wait_all() {}
inline void on_record(const void*, const void*) {}
inline void on_stream_waits(const void*, const void*) {}
inline void on_event_over(const void*) {}
inline void on_callback(const void*, bool) {}
inline void on_launch(const LaunchConfig&, const unsigned char*) {}
inline void on_launch_end() {}
inline void on_block(int, const unsigned char*, bool) {}
inline void on_block_end() {}
inline void on_phase() {}
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

#ifdef SIMT_PROFILE
extern volatile bool noting, end_when_noted;  // an access is being noted: the watchdog is not to end the thread in the midst of it
#else
constexpr bool noting = false;
static volatile bool end_when_noted;
#endif
extern bool casting;   // a thread is run one instruction at a time, see casts.cpp; set it to false and that stops
void go_on_casting();  // ... and begins again

struct Listening {  // for as long as a launch lasts, however it ends
  Listening(const LaunchConfig& config, const unsigned char* shared) { on_launch(config, shared); }
  ~Listening() { on_launch_end(); }
};

}  // namespace simt
