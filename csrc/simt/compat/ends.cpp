// How a program ends that does not end by itself: by a signal that is no kernel's fault (abort(), an address of the
// host's own code), or by the time limit of `simt run`. What it has printed is written out, and the report says where it
// was. Memory may be in any state by then: the first words need none; the host's line follows if it can be found.

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>

#include "../scheduler.h"

namespace simt::program {

constexpr unsigned kSecondsForTheLine = 5;
static const std::pair<int, const char*> kEnds[] = {{SIGABRT, "SIGABRT"}, {SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"},
                                                    {SIGFPE, "SIGFPE"},   {SIGILL, "SIGILL"},   {SIGXCPU, "SIGXCPU"},
                                                    {SIGALRM, nullptr}};  // the last: the time limit
static const char *limit, *report_path;

static const char* file_of(Where where) {
  const char* const slash = std::strrchr(where.file, '/');
  return slash ? slash + 1 : where.file;
}

static void leave_word(const char* reason, Where host) {
  const Scheduler& self = scheduler();
  const LaunchConfig& last = self.last_launch;
  char place[1200] = "in the host's code", kernel[600] = ", before any kernel", text[2400];
  if (host.file) std::snprintf(place, sizeof place, "in the host's code at %.900s:%d", file_of(host), host.line);
  if (last.kernel)
    std::snprintf(kernel, sizeof kernel, ", after kernel %.200s of %.200s:%d", last.kernel, file_of(last.where),
                  last.where.line);
  if (self.running) {
    std::snprintf(place, sizeof place, "in kernel %.200s of %.200s:%d, block (%u,%u,%u), thread (%u,%u,%u)",
                  last.kernel, file_of(last.where), last.where.line, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
                  threadIdx.y, threadIdx.z);
    std::snprintf(kernel, sizeof kernel, "; %llu of its %llu blocks have ended",
                  static_cast<unsigned long long>(self.ended_blocks),
                  static_cast<unsigned long long>(uint64_t(last.grid.x) * last.grid.y * last.grid.z));
  }
  rlimit memory{};
  getrlimit(RLIMIT_AS, &memory);
  char advice[120] = "give it more with --limit-seconds";
  if (reason)
    std::snprintf(advice, sizeof advice, "it may have %g GiB of memory, more with --limit-gib",
                  double(memory.rlim_cur) / 0x1p30);
  const int size = std::snprintf(text, sizeof text, "stopped:%s%s%s %s%s (%s)", reason ? "ended by " : "stopped after ",
                                 reason ? reason : limit, reason ? "" : " seconds", place, kernel, advice);
  const int file = open(report_path, O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0) return;
  if (write(file, text, size_t(size) + 1) < 0) _exit(1);
  close(file);
}

static void ended(int number, siginfo_t*, void* context) {
  for (const auto& [each, name] : kEnds) signal(each, SIG_DFL);
  const char* reason = nullptr;
  for (const auto& [each, name] : kEnds)
    if (each == number) reason = name;
  fflush_unlocked(stdout);
  leave_word(reason, {nullptr, 0});
  if (reason && !scheduler().running) {
    alarm(kSecondsForTheLine);
    const Where host = where_is(own_instruction(context), {nullptr, 0});
    if (host.file) leave_word(reason, host);
    alarm(0);
  }
  sigset_t mine;
  sigemptyset(&mine);
  sigaddset(&mine, number);
  pthread_sigmask(SIG_UNBLOCK, &mine, nullptr);
  raise(reason ? number : SIGKILL);
}

static const bool listening = [] {
  limit = std::getenv("SIMT_LIMIT"), report_path = std::getenv("SIMT_REPORT");
  if (!report_path) return false;
  scheduler();  // made now: a signal may come before the first launch
  for (const auto& [each, name] : kEnds) {
    struct sigaction action {};
    action.sa_sigaction = ended;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(each, &action, nullptr);
  }
  const double seconds = limit ? std::atof(limit) : 0;
  itimerval once{};
  once.it_value.tv_sec = time_t(seconds);
  once.it_value.tv_usec = long((seconds - double(time_t(seconds))) * 1e6);
  return setitimer(ITIMER_REAL, &once, nullptr) == 0;
}();

}  // namespace simt::program
