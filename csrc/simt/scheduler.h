// The state of one running block. Shared by scheduler.cpp (who runs, who waits) and device.cpp (limits, words).
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "fiber.h"
#include "hooks.h"
#include "runtime.h"

namespace simt {

constexpr int kMaxThreads = 1024, kWarp = 32, kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kStackBytes = 64 * 1024, kSharedAlign = 1024;
#ifdef SIMT_PROFILE
constexpr size_t kGuard = 1 << 20;  // bytes before and after shared memory that belong to nobody: who misses it lands there
#else
constexpr size_t kGuard = 0;
#endif

struct Thread {
  Fiber fiber;
  uint3 index;
  bool started;
  char* stack;
  const char* waits_at;  // the operation it waits in, or nullptr
  uint32_t mask;         // ... for these lanes
  Where seen;            // its last known place
  std::vector<std::vector<AsyncCopy>> copies;  // committed groups, and the open one last
};

// Lanes of a warp that wait for each other. Two slots in turn suffice: nobody can be two meetings ahead, since each
// meeting needs everybody.
struct Rendezvous {
  uint32_t mask, arrived;
  int generation;
  const char* what;
  Where where;
  Slot slot[2];
};

struct Warp {
  uint32_t gone;  // lanes that have returned or never existed
  uint32_t gathering;  // lanes that wait to learn who is with them
  std::vector<std::unique_ptr<Rendezvous>> meetings;
  size_t in_use;
};

struct Wide {  // threads of several warps that wait for each other
  int first, threads, arrived, generation;
  const char* what;
  Where where;
  std::vector<unsigned char> slot[2];
};

struct Block {  // what a block of a cooperative launch leaves behind while others run
  std::unique_ptr<Thread[]> thread;
  int live = 0;
  uint32_t gone[kMaxWarps];
  std::vector<unsigned char> shared, statics;
  bool begun = false, ended = false;
};

struct Fault {  // a signal that a kernel gave rise to
  int signal = 0;
  const void *address = nullptr, *pc = nullptr;
  bool stack_full = false;
};

struct Watch {  // what the watchdog saw when it last looked
  uint64_t progress, ended_blocks, memory;
  int ticks, unchanged;
};

struct Stacks {  // a pool of stacks, each above a page that may not be touched
  std::vector<char*> free;
  std::vector<std::pair<char*, size_t>> mapped;
  char* take();
  ~Stacks();
};

class Scheduler {
 public:
  void run_grid(const LaunchConfig& config, void (*body)(void*), void* argument);
  int barrier(int value, const char* what, Where where);
  const Slot& exchange(uint32_t mask, const void* value, size_t bytes, const char* what, Where where);
  const unsigned char* exchange_wide(int first, int threads, const void* value, size_t bytes, const char* what, Where where);
  uint32_t converged(const char* what, Where where);
  void pass_turn(Where where);
  void give_way() { go_on(position_[current_] + 1); }
  [[noreturn]] void fail(const std::string& message, Where where);
  [[noreturn]] void leave();  // give up all fibers and return to run_grid
  Thread& me() { return thread_[current_]; }

  bool running = false;  // inside a kernel
  uint64_t progress = 0;  // changes whenever a thread ends or a barrier or warp operation completes
  int atomics_in_a_row = 0;
  void* endless_at = nullptr;  // set by the watchdog: the instruction it found
  bool waits_for_nothing = false;  // set by the watchdog: threads meet, and nothing changes
  uint64_t ended_blocks = 0;  // of this launch
  LaunchConfig last_launch{};  // or the one that runs
  Fault fault;
  Watch last_look = {};
  uint64_t hash_of_memory();
  std::vector<Later*> later;  // launches by this kernel
  unsigned char* shared() {  // of the block that runs, one after another at the same place
    unsigned char* const begin = shared_.data() + kGuard;
    return begin + (-reinterpret_cast<uintptr_t>(begin) & (kSharedAlign - 1));
  }
  bool all_together() const { return config_->together; }
  size_t shared_bytes() const { return shared_.size() ? shared_.size() - kSharedAlign - 2 * kGuard : 0; }

 private:
  void run_blocks();
  void run_together();
  void run_block(uint64_t number);
  void resume_block(uint64_t number, const Block& block);
  void after_block();
  void set_index(uint64_t number);
  void new_order(uint64_t number);
  int pick(int from) const;
  void set_ready(int thread) { ready_[position_[thread] / 64] |= uint64_t{1} << position_[thread] % 64; }
  void clear_ready(int thread) { ready_[position_[thread] / 64] &= ~(uint64_t{1} << position_[thread] % 64); }
  void go_on(int from);  // run the next ready thread; returns when this one's turn comes again
  void activate(int next);
  void release_barrier();
  void park();
  void gather(int warp, bool at_once = false);
  void complete_wide(Wide& wide);
  Rendezvous& meeting(Warp& warp, uint32_t mask, const char* what, Where where);
  void try_to_complete(int warp, Rendezvous& meeting);
  bool finish();  // true: another thread was given this stack, run it
  static void fiber_main();
  std::string title();  // which kernel, block, thread and line
  [[noreturn]] void fail_deadlocked();
  std::string endless_text();
  std::string fault_text();
  [[noreturn]] void fail_waiting(Where where);
  void seen_at(Where where) {
    me().seen = where;
    if (__builtin_expect(waits_for_nothing, false)) fail_waiting(where);
  }

  const LaunchConfig* config_;
  void (*body_)(void*);
  void* argument_;
  int threads_, live_, current_;
  std::unique_ptr<Thread[]> own_ = std::make_unique<Thread[]>(kMaxThreads);
  Thread* thread_ = own_.get();
  std::vector<unsigned char> shared_;
  std::vector<std::unique_ptr<Wide>> wide_;
  int depth_ = 0;  // of launches by kernels
  bool parked_ = false;  // the block waits for the grid
  Warp warp_[kMaxWarps];
  int position_[kMaxThreads], thread_at_[kMaxThreads];  // the order: position 0 runs first
  uint64_t ready_[kMaxThreads / 64];
  int barrier_arrived_, barrier_sum_, barrier_result_;
  Where barrier_where_;
  const char* barrier_what_;
  uint64_t random_;
  Fiber main_;
  Stacks stacks_;
  std::string error_;
};

extern const char* const kGridBarrier;
Scheduler& scheduler();  // this OS thread's

std::pair<unsigned char*, size_t> static_shared();  // in this thread's thread-local memory of this module
uint64_t next_random(uint64_t& state);
void check_limits(const LaunchConfig& config);
std::string text(Where where);
void find_places(const std::vector<const char*>& pcs, std::map<const char*, std::string>& known);
Where where_is(const void* pc, Where otherwise);
bool is_own_code(const void* pc);
const void* own_instruction(void* context);  // in a handler of signals: the instruction of the program that led to it
uint64_t hash_of(uint64_t hash, const void* memory, size_t bytes);
uint64_t hash_of_watched(uint64_t hash);  // of all that watch() told of, and variables of the device; 0: of nothing

struct Watchdog {  // while it lives, a kernel that makes no progress is ended
  Watchdog();
  ~Watchdog();
#ifdef __linux__
  void* timer = nullptr;
  bool armed = false;
#endif
};

}  // namespace simt
