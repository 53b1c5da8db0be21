// The symbols of the library or program that this file is part of, and from them how much static shared memory a kernel has.

#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <elf.h>
#include <link.h>
#endif

namespace simt {

#ifdef __linux__

void each_symbol(const std::function<void(const Symbol&)>& call) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&each_symbol), &info)) return;
  std::ifstream file(info.dli_fname, std::ios::binary | std::ios::ate);
  std::string bytes(file ? size_t(file.tellg()) : 0, 0);
  file.seekg(0).read(bytes.data(), std::streamsize(bytes.size()));
  const auto lies_in = [&](uint64_t at, uint64_t count) { return at <= bytes.size() && count <= bytes.size() - at; };
  if (!lies_in(0, sizeof(ElfW(Ehdr)))) return;
  const auto& head = *reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  if (!lies_in(head.e_shoff, head.e_shnum * sizeof(ElfW(Shdr)))) return;
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + head.e_shoff);
  for (int i = 0; i < head.e_shnum; ++i) {
    const auto& table = sections[i];
    if (table.sh_type != SHT_SYMTAB || table.sh_link >= head.e_shnum || !lies_in(table.sh_offset, table.sh_size)) continue;
    const auto& names = sections[table.sh_link];
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + table.sh_offset);
    for (size_t s = 0; s < table.sh_size / sizeof *symbols; ++s) {
      const int type = symbols[s].st_info & 15;
      if (symbols[s].st_shndx == SHN_UNDEF || !lies_in(names.sh_offset + symbols[s].st_name, 1)) continue;
      if (type != STT_TLS && type != STT_FUNC && type != STT_OBJECT) continue;
      call({bytes.c_str() + names.sh_offset + symbols[s].st_name, symbols[s].st_value, symbols[s].st_size,
            type == STT_TLS ? SymbolKind::thread_local_variable
            : type == STT_FUNC ? SymbolKind::function : SymbolKind::variable});
    }
  }
}

#else

void each_symbol(const std::function<void(const Symbol&)>&) {}

#endif

struct Symbols {
  std::map<uint64_t, std::string> functions;                 // by their place in the file
  std::vector<std::pair<std::string, size_t>> locals;        // thread-local variables of functions, with their bytes
  std::vector<Variable> variables;
};

std::string last_part(const char* symbol) {
  char* const whole = abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr);
  const std::string name = whole ? whole : symbol;
  std::free(whole);
  return name.find("::") == std::string::npos ? name : name.substr(name.rfind("::") + 2);
}

bool is_emulators_own(const std::string& symbol) {
  for (const char* begin : {"_ZN4simt", "_ZNK4simt", "_ZZN4simt", "_ZZNK4simt", "_ZGVZN4simt", "_ZGVN4simt", "_ZTVN4simt"})
    if (symbol.rfind(begin, 0) == 0) return true;
  return false;
}

static const Symbols& symbols() {
  static const Symbols all = [] {
    Symbols found;
    Dl_info info{};
    dladdr(reinterpret_cast<const void*>(&each_symbol), &info);
    const char* const base = static_cast<const char*>(info.dli_fbase);
    each_symbol([&](const Symbol& one) {
      if (one.kind == SymbolKind::function) found.functions[one.place] = one.name;
      else if (one.kind == SymbolKind::variable && one.bytes && !is_emulators_own(one.name))
        found.variables.push_back({base + one.place, size_t(one.bytes), last_part(one.name)});
      else if (std::strncmp(one.name, "_ZZ", 3) == 0) found.locals.emplace_back(one.name, size_t(one.bytes));
    });
    return found;
  }();
  return all;
}

const std::vector<Variable>& variables() { return symbols().variables; }

std::string function_at(const void* pc) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&each_symbol), &info)) return "";
  auto next = symbols().functions.upper_bound(uint64_t(static_cast<const char*>(pc) - static_cast<char*>(info.dli_fbase)));
  return next == symbols().functions.begin() ? "" : (--next)->second;
}

// Variables of a function f of the name _Z1fv are called _ZZ1fvE1x (Itanium C++ ABI, 5.1.6); of extern "C" f: _ZZ1fE1x.
static size_t bytes_of(const void* function) {
  Dl_info info{};
  if (!function || !dladdr(function, &info)) return 0;
  const uint64_t address = reinterpret_cast<uint64_t>(function), base = reinterpret_cast<uint64_t>(info.dli_fbase);
  auto found = symbols().functions.find(address - base);
  if (found == symbols().functions.end()) found = symbols().functions.find(address);
  if (found == symbols().functions.end()) return 0;
  const std::string& name = found->second;
  const bool mangled = name.rfind("_Z", 0) == 0;
  const std::string begin = "_ZZ" + (mangled ? name.substr(2) : std::to_string(name.size()) + name) + "E";
  size_t bytes = 0;
  for (const auto& [local, size] : symbols().locals)
    if (local.rfind(begin, 0) == 0) bytes += size;
  return bytes;
}

size_t static_shared_of(const void* function) {
  static std::mutex alone;
  static std::map<const void*, size_t> known;
  const std::lock_guard<std::mutex> lock(alone);
  const auto found = known.find(function);
  return found != known.end() ? found->second : known[function] = bytes_of(function);
}

}  // namespace simt
