// Which line of the source an instruction belongs to: addr2line of the binutils, which g++ brings with it, knows.

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "scheduler.h"

namespace simt {

// The innermost line outside the emulator of each instruction before an address, asked for all at once; where addr2line is
// not there, or the library was compiled without -g1, the offset into it.
void find_places(const std::vector<const char*>& pcs, std::map<const char*, std::string>& known) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&find_places), &info)) return;
  std::string emulator = __FILE__, command = std::string("addr2line -i -a -e '") + info.dli_fname + "'";
  emulator.resize(emulator.rfind('/') + 1);
  char number[32];
  for (const char* pc : pcs) {
    std::snprintf(number, sizeof number, "0x%zx", size_t(pc - 1 - static_cast<char*>(info.dli_fbase)));
    known[pc] = std::string("library+") + number;
    command += std::string(" ") + number;
  }
  FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (!pipe) return;
  size_t at = size_t(-1);
  bool found = false;
  for (char line[4096]; std::fgets(line, sizeof line, pipe);) {
    std::string text = line;
    text.resize(std::min(text.find(" (discriminator"), text.find('\n')));  // a folder's name may hold blanks
    if (text.rfind("0x", 0) == 0) {
      ++at;
      found = false;
    } else if (at < pcs.size() && !found && text.rfind("??", 0) != 0) {
      known[pcs[at]] = text;
      found = text.rfind(emulator, 0) != 0;
    }
  }
  pclose(pipe);
}

bool is_own_code(const void* pc) {
  Dl_info here{}, there{};
  return dladdr(reinterpret_cast<const void*>(&find_places), &here) && dladdr(pc, &there) &&
         here.dli_fbase == there.dli_fbase;
}

// The line of the instruction at `pc`; the line of `otherwise` where nobody knows it.
Where where_is(const void* pc, Where otherwise) {
  static auto& files = *new std::set<std::string>;  // outlives the report at the end
  std::map<const char*, std::string> known;
  const char* const behind = static_cast<const char*>(pc) + 1;
  find_places({behind}, known);
  const std::string place = known[behind];
  const size_t colon = place.rfind(':');
  if (colon == std::string::npos) return otherwise;
  return {files.insert(place.substr(0, colon)).first->c_str(), std::atoi(place.c_str() + colon + 1)};
}

}  // namespace simt
