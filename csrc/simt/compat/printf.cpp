// printf() of kernels, by the rules of the CUDA programming guide ("Formatted Output"): it writes into a buffer that the host
// empties when it next calls the runtime, takes 32 arguments at most, and returns how many it took. On the host it is the C
// library's.

#include "cuda_runtime.h"

#include <stdarg.h>

#include <deque>
#include <string>
#include <vector>

namespace simt::program {

struct Printed {
  std::string text;
  size_t bytes;  // that it takes in a device's buffer
};
static std::deque<Printed>& buffer() {
  static auto* all = new std::deque<Printed>;
  return *all;
}
static size_t in_buffer = 0, most = 1 << 20;
static bool overwritten = false;

void printed_at_most(size_t bytes) { most = bytes; }

void show_printed() {
  if (buffer().empty()) return;
  if (overwritten)
    std::fprintf(stderr, "[emulator: kernels printed more than their buffer holds, and the oldest output is lost, as on a GPU: "
                         "cudaDeviceSetLimit(cudaLimitPrintfFifoSize, bytes) makes it larger]\n");
  for (const Printed& one : buffer()) std::fwrite(one.text.data(), 1, one.text.size(), stdout);
  buffer().clear();
  in_buffer = 0;
  overwritten = false;
}

void show_printed_at_the_end() {
  if (!buffer().empty())
    std::fprintf(stderr, "[emulator: kernels printed after the program's last call of the runtime; a GPU does not show that: "
                         "end with cudaDeviceSynchronize()]\n");
  show_printed();
}

// Where the first conversion that finds no argument any more begins, and how many arguments those before it take.
static size_t end_of_arguments(const char* format, int* taken) {
  const std::string all = format;
  *taken = 0;
  for (size_t at = all.find('%'); at != std::string::npos; at = all.find('%', at)) {
    const size_t end = all.find_first_not_of("-+ #0123456789.*hlLqjzt", at + 1);
    if (end == std::string::npos) break;
    int more = all[end] != '%';
    for (size_t i = at + 1; i < end; ++i) more += all[i] == '*';
    if (*taken + more > 32) return at;
    *taken += more;
    at = end + 1;
  }
  return all.size();
}

static int print_in_kernel(const char* format, va_list arguments) {
  if (!format) return -1;
  int taken;
  const size_t end = end_of_arguments(format, &taken);
  const std::string head(format, end);
  va_list again;
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, head.c_str(), again);
  va_end(again);
  if (length < 0) return -2;
  std::vector<char> text(size_t(length) + 1);
  std::vsnprintf(text.data(), text.size(), head.c_str(), arguments);
  buffer().push_back({std::string(text.data(), size_t(length)) + (format + end), 16 + 8 * size_t(taken)});
  for (in_buffer += buffer().back().bytes; in_buffer > most && !buffer().empty(); buffer().pop_front())
    in_buffer -= buffer().front().bytes, overwritten = true;
  return taken;
}

}  // namespace simt::program

extern "C" int vprintf(const char* format, va_list arguments) {
  if (simt::in_kernel()) return simt::program::print_in_kernel(format, arguments);
  return std::vfprintf(stdout, format, arguments);
}

extern "C" int printf(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int result = vprintf(format, arguments);
  va_end(arguments);
  return result;
}
