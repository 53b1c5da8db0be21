// Whose memory an address is. Static shared memory is thread-local memory of the library or program that this file is part
// of; its symbols say where each __shared__ variable lies. Around these variables, and around dynamic shared memory, kGuard
// bytes belong to nobody, so that an index which misses its array by less is not taken for another array's.

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdlib>

#include "../symbols.h"
#include "profiler.h"

namespace simt {

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

// What kernels read without being asked about it: the index variables, and the compiler's notes on what it has constructed
// (g++ makes one for an array of a class with constructors, however empty, and reads it each time).
static bool is_emulators(const std::string& symbol) {
  for (const char* known : {"threadIdx", "blockIdx", "blockDim", "gridDim", "__tls_guard"})
    if (symbol == known) return true;
  return symbol.rfind("_ZGV", 0) == 0;
}

const ThreadLocals& thread_locals() {
  static const ThreadLocals all = [] {
    ThreadLocals found;
    found.room.assign(module_of_this_thread().locals_bytes, 0);
    found.begin = found.room.size();
    each_symbol([&](const Symbol& one) {
      if (one.kind != SymbolKind::thread_local_variable) return;
      const auto [name, offset, bytes, kind] = one;
      if (is_emulators_own(name) || offset > found.room.size() || bytes > found.room.size() - offset) return;
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
  const auto is_variable = [](const Buffer& buffer) { return buffer.variable; };
  buffers.erase(std::remove_if(buffers.begin(), buffers.end(), is_variable), buffers.end());
  bounded = !buffers.empty();
  if (bounded)  // then what else the launch may touch is variables of the program: of the device, if it is CUDA
    for (const Variable& one : variables()) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(one.address);
      if (begin >= module.data && begin < module.data_end) buffers.push_back({begin, begin + one.bytes, one.name, {}, true});
    }
  pthread_attr_t attributes;
  void* low;
  size_t bytes;
  if (pthread_getattr_np(pthread_self(), &attributes)) return;
  if (!pthread_attr_getstack(&attributes, &low, &bytes))
    host_stack = reinterpret_cast<uintptr_t>(low), host_stack_bytes = bytes;
  pthread_attr_destroy(&attributes);
}

}  // namespace simt
