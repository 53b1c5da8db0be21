// Whose memory an address is. Static shared memory is thread-local memory of the library or program that this file is part
// of; its symbols say where each __shared__ variable lies. Around these variables, and around dynamic shared memory, kGuard
// bytes belong to nobody, so that an index which misses its array by less is not taken for another array's.

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "profiler.h"

namespace simt {

const char* const kDeviceVariables = "__device__ variables";

struct Module {  // the library or program that this file is part of
  uintptr_t locals = 0, locals_bytes = 0, constants = 0, constants_end = 0, data = 0, data_end = 0;
};

static int look_at(dl_phdr_info* info, size_t, void* result) {
  const uintptr_t me = reinterpret_cast<uintptr_t>(&profiler);
  Module found;
  bool mine = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr, end = begin + part.p_memsz;
    if (part.p_type == PT_TLS) {
      found.locals = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
      found.locals_bytes = part.p_memsz;
    } else if (part.p_type == PT_LOAD && part.p_flags & PF_W) {
      mine |= me >= begin && me < end;
      found.data = begin, found.data_end = end;
    } else if (part.p_type == PT_LOAD) {
      found.constants = found.constants ? std::min(found.constants, begin) : begin;
      found.constants_end = std::max(found.constants_end, end);
    } else if (part.p_type == PT_GNU_RELRO) {  // constants that hold addresses: read-only once loaded
      found.constants_end = std::max(found.constants_end, end);
    }
  }
  if (mine) *static_cast<Module*>(result) = found;
  return mine;
}

static Module module_of_this_thread() {
  *const_cast<volatile unsigned*>(&threadIdx.x);  // touched, so that this OS thread has its thread-local memory
  Module module;
  dl_iterate_phdr(look_at, &module);
  return module;
}

// ---- thread-local variables

// The variable's own name: "k(float*)::tile" is `tile`.
static std::string last_part(const char* symbol) {
  char* const whole = abi::__cxa_demangle(symbol, nullptr, nullptr, nullptr);
  std::string name = whole ? whole : symbol;
  std::free(whole);
  return name.find("::") == std::string::npos ? name : name.substr(name.rfind("::") + 2);
}

// Nothing that a kernel has to do with: the guards and what else the emulator's namespace holds.
static bool is_hidden(const std::string& symbol) {
  return symbol.rfind("_ZN4simt", 0) == 0 || symbol.rfind("_ZZN4simt", 0) == 0;
}

// What kernels read without being asked about it: the index variables, and the compiler's notes on what it has constructed
// (g++ makes one for an array of a class with constructors, however empty, and reads it each time).
static bool is_emulators(const std::string& symbol) {
  for (const char* known : {"threadIdx", "blockIdx", "blockDim", "gridDim", "__tls_guard"})
    if (symbol == known) return true;
  return symbol.rfind("_ZGV", 0) == 0;
}

// call(name, offset, bytes) for each thread-local symbol in the file of this module.
template <class Call>
static void for_each_symbol(Call call) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&look_at), &info)) return;
  std::ifstream file(info.dli_fname, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
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
    for (size_t s = 0; s < table.sh_size / sizeof *symbols; ++s)
      if ((symbols[s].st_info & 15) == STT_TLS && symbols[s].st_shndx != SHN_UNDEF &&
          lies_in(names.sh_offset + symbols[s].st_name, 1))
        call(bytes.c_str() + names.sh_offset + symbols[s].st_name, symbols[s].st_value, symbols[s].st_size);
  }
}

const ThreadLocals& thread_locals() {
  static const ThreadLocals all = [] {
    ThreadLocals found;
    found.room.assign(module_of_this_thread().locals_bytes, 0);
    found.begin = found.room.size();
    for_each_symbol([&](const char* name, size_t offset, size_t bytes) {
      if (is_hidden(name) || offset > found.room.size() || bytes > found.room.size() - offset) return;
      found.known = true;
      std::fill_n(found.room.begin() + long(offset), bytes, is_emulators(name) ? kEmulators : 1);
      if (is_emulators(name)) return;
      found.variables.push_back({offset, bytes, last_part(name)});
      found.begin = std::min(found.begin, offset);
      found.end = std::max(found.end, offset + bytes);
    });
    found.begin = std::min(found.begin, found.end);
    for (size_t i = found.end; i-- > found.begin;)
      if (found.room[i] == 1 && i + 1 < found.room.size() && found.room[i + 1] != kEmulators)
        found.room[i] = std::min<unsigned char>(kMostRoom, 1 + found.room[i + 1]);
    return found;
  }();
  return all;
}

std::pair<unsigned char*, size_t> static_shared() {
  const ThreadLocals& all = thread_locals();
  static thread_local auto* const locals = reinterpret_cast<unsigned char*>(module_of_this_thread().locals);
  return {locals + all.begin, all.end - all.begin};
}

// ---- at a launch

void Profiler::find_memory() {
  const Module module = module_of_this_thread();
  const ThreadLocals& all = thread_locals();
  locals = module.locals, locals_bytes = module.locals_bytes, room = all.room.data();
  statics = (locals + all.begin) / 128 * 128, statics_bytes = locals + all.end - statics;  // in whole rows of banks
  constants = module.constants, constants_end = module.constants_end;
  const auto is_own = [](const Buffer& buffer) { return buffer.name == kDeviceVariables; };
  buffers.erase(std::remove_if(buffers.begin(), buffers.end(), is_own), buffers.end());
  bounded = !buffers.empty();
  if (bounded) buffers.push_back({module.data, module.data_end, kDeviceVariables, {}});
  pthread_attr_t attributes;
  void* low;
  size_t bytes;
  if (pthread_getattr_np(pthread_self(), &attributes)) return;
  if (!pthread_attr_getstack(&attributes, &low, &bytes))
    host_stack = reinterpret_cast<uintptr_t>(low), host_stack_bytes = bytes;
  pthread_attr_destroy(&attributes);
}

}  // namespace simt
