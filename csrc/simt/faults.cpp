// What ends a kernel from outside: the processor's refusals (addresses without memory, division by zero, a full stack), and
// a watchdog for kernels that never end. Both arrive as signals, in which little may be done: what was found is noted, the
// kernel's stacks are left for the scheduler's, and words are made there.

#include <dlfcn.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <new>
#include <utility>

#include "scheduler.h"
#include "symbols.h"

#ifdef __linux__
#include <execinfo.h>
#include <link.h>
#include <sys/syscall.h>
#include <ucontext.h>
#endif

namespace simt {

constexpr int kOutOfMemory = -1;  // beside the numbers of signals

// ---- words

std::string Scheduler::fault_text() {
  const Fault what = fault;
  const Where last = me().seen;
  me().seen = where_is(what.pc, last);
  char address[32];
  std::snprintf(address, sizeof address, "0x%zx", reinterpret_cast<size_t>(what.address));
  if (what.signal == kOutOfMemory) return title() + "out of memory";
  if (what.signal == SIGFPE)
    return title() + "integer division by zero, or of the least integer by -1";
  if (what.signal == SIGILL) return title() + "comes where no code is: a function without its return, or __builtin_trap()";
  if (what.stack_full)
    return title() + "stack overflow: local variables and calls of a thread may take " + std::to_string(kStackBytes >> 10) +
           " KiB here";
  return title() + "illegal address: reads or writes " + address + ", where the program has no memory";
}

std::string Scheduler::endless_text() {
  const Where last = me().seen;
  me().seen = where_is(endless_at, last);
  std::string text = title() + "endless: no progress in " + std::to_string(options().seconds) + " s of CPU time since ";
  if (me().seen.file != last.file) return text + simt::text(last);
  char number[32];
  Dl_info info{};
  const char* module = "?";
  if (dladdr(endless_at, &info) && info.dli_fname) module = info.dli_fname;
  std::snprintf(number, sizeof number, "0x%zx", static_cast<char*>(endless_at) - static_cast<char*>(info.dli_fbase));
  return text + "that line; it was running " + module + "+" + number;
}

void Scheduler::fail_waiting(Where where) {
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  fail("endless: in " + std::to_string(options().seconds) + " s of CPU time the threads of this block met again and again and no "
       "memory changed. " + (blocks > 1 ? "They may wait for another block: blocks run one after another, " +
       std::to_string(ended_blocks) + " of " + std::to_string(blocks) + " have ended" : std::string("Nothing else runs")), where);
}

#ifdef __linux__

// ---- the processor's refusals

static const int kFaults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction before_us[4];

static const void* instruction(void* context) {
  const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<void*>(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
  return reinterpret_cast<void*>(machine.pc);
#else
  return &machine;
#endif
}

// The instruction of our own that called, perhaps by way of the C library, what went wrong.
const void* own_instruction(void* context) {
  const void* pc = instruction(context);
  if (is_own_code(pc)) return pc;
#if defined(__x86_64__)
  const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;  // a call of a function that is none
  const char* const caller = *reinterpret_cast<const char* const*>(machine.gregs[REG_RSP]);
  if (is_own_code(caller)) return caller - 1;
#endif
  void* callers[32];
  const int count = backtrace(callers, 32);
  bool behind_signal = false;
  for (int i = 0; i < count; ++i) {
    behind_signal |= callers[i] == pc;
    if (behind_signal && is_own_code(callers[i])) return static_cast<char*>(callers[i]) - 1;
  }
  return pc;
}

static void refused(int signal, siginfo_t* info, void* context) {
  Scheduler& self = scheduler();
  if (!self.running || self.fault.signal) {  // not ours: the instruction is tried again, under who listened before us
    for (int i = 0; i < 4; ++i)
      if (kFaults[i] == signal) sigaction(signal, &before_us[i], nullptr);
    return;
  }
  const char* const address = static_cast<char*>(info->si_addr);
  const bool stack_full = signal == SIGSEGV && size_t(self.me().stack - address) <= size_t(sysconf(_SC_PAGESIZE));
  self.fault = {signal, address, nullptr, stack_full};
  self.fault.pc = own_instruction(context);
  self.leave();
}

static std::new_handler other_handler;
static void no_memory() {  // operator new has none: a kernel ends where it asked
  Scheduler& self = scheduler();
  if (!self.running && other_handler) return other_handler();
  if (!self.running) throw std::bad_alloc();
  void* callers[8];
  const int count = backtrace(callers, 8);
  int i = 1;  // this function's own frame is the first; then come those of operator new
  const auto asks = [](const void* pc) { return is_own_code(pc) && function_at(pc).rfind("_Zn", 0) != 0; };
  while (i < count && !asks(callers[i])) ++i;
  self.fault = {kOutOfMemory, nullptr, i < count ? static_cast<char*>(callers[i]) - 1 : nullptr, false};
  self.leave();
}

static void listen_for_faults() {
  static const bool listening = [] {
    void* callers[2];
    backtrace(callers, 2);  // loads what it needs: it will not be able to in a signal
    for (int i = 0; i < 4; ++i) {
      struct sigaction action {};
      action.sa_sigaction = refused;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // it is left by a switch of stacks
      sigaction(kFaults[i], &action, &before_us[i]);
    }
    return true;
  }();
  static_cast<void>(listening);
  struct Stack {  // a thread whose own stack is full can take a signal only on another
    std::unique_ptr<char[]> memory;
    Stack() {
      stack_t now{};
      if (sigaltstack(nullptr, &now) || !(now.ss_flags & SS_DISABLE)) return;
      memory = std::make_unique<char[]>(64 * 1024);
      stack_t ours{};
      ours.ss_sp = memory.get(), ours.ss_size = 64 * 1024;
      sigaltstack(&ours, nullptr);
    }
    ~Stack() {
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      if (memory) sigaltstack(&none, nullptr);
    }
  };
  static thread_local Stack stack;
  static_cast<void>(stack);
}

// ---- the watchdog

static void look(int, siginfo_t*, void* context) {
  Scheduler& self = scheduler();
  Watch& last = self.last_look;
  if (!self.running || self.ended_blocks != last.ended_blocks) {
    last = {self.progress, self.ended_blocks, 0, 0, 0};
    return;
  }
  if (self.progress != last.progress) {  // threads meet. Does it change anything?
    const uint64_t memory = self.hash_of_memory();
    const int unchanged = memory && memory == last.memory ? last.unchanged + 1 : 0;
    last = {self.progress, self.ended_blocks, memory, 0, unchanged};
    if (unchanged >= 4) self.waits_for_nothing = true;
    return;
  }
  if (++last.ticks < 4) return;
  if (noting) return void(end_when_noted = true);
  self.endless_at = const_cast<void*>(own_instruction(context));
  sigset_t mine;  // this handler is left by a switch of stacks, so the signal is freed by hand
  sigemptyset(&mine);
  sigaddset(&mine, SIGRTMAX - 3);
  pthread_sigmask(SIG_UNBLOCK, &mine, nullptr);
  last.ticks = 0;
  self.leave();
}

Watchdog::Watchdog() {
  listen_for_faults();
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = look;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    return sigaction(SIGRTMAX - 3, &action, nullptr) == 0;
  }();
  if (const std::new_handler other = std::set_new_handler(no_memory); other != no_memory) other_handler = other;
  static_shared();  // known before a signal asks for it
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMAX - 3;
  event._sigev_un._tid = pid_t(syscall(SYS_gettid));
  armed = installed && timer_create(CLOCK_THREAD_CPUTIME_ID, &event, reinterpret_cast<timer_t*>(&timer)) == 0;
  if (!armed) return;
  const double tick = options().seconds / 4;
  itimerspec each{};
  each.it_interval.tv_sec = time_t(tick);
  each.it_interval.tv_nsec = long((tick - double(time_t(tick))) * 1e9);
  each.it_value = each.it_interval;
  timer_settime(timer, 0, &each, nullptr);
}

Watchdog::~Watchdog() {
  std::set_new_handler(other_handler);
  if (armed) timer_delete(timer);
}

#else  // no timer that counts one thread's CPU time: an endless kernel hangs

Watchdog::Watchdog() {}
Watchdog::~Watchdog() {}

#endif

// ---- whether anything changes

uint64_t hash_of(uint64_t hash, const void* memory, size_t bytes) {  // FNV-1a by words
  const char* at = static_cast<const char*>(memory);
  uint64_t word = 0;
  for (; bytes >= 8; at += 8, bytes -= 8) std::memcpy(&word, at, 8), hash = (hash ^ word) * 0x100000001b3u;
  for (; bytes; ++at, --bytes) hash = (hash ^ uint64_t(*at)) * 0x100000001b3u;
  return hash;
}

// Of all memory that threads of the block that runs can write, and how many of them live; 0 where it is not known.
uint64_t Scheduler::hash_of_memory() {
  const auto [statics, bytes] = static_shared();
  const uint3 index = std::exchange(threadIdx, uint3{});  // whoever runs just now: it may lie among the shared variables
  const uint64_t hash = hash_of_watched(hash_of(hash_of(uint64_t(live_), shared(), shared_bytes()), statics, bytes));
  threadIdx = index;
  return hash;
}

}  // namespace simt
