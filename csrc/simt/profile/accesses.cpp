// Every load and store of a kernel arrives here: with -fsanitize=thread the compiler calls __tsan_read4(address) and its
// like before each, and this file stands in for the sanitizer's own library. Kernels need no change.

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "profiler.h"

namespace simt {

Profiler profiler;

// ---- where an address lies

template <Op op>
inline void Profiler::note(const void* pointer, int bytes, bool aligned, const void* pc) {
  if (!active) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address - stack < kStackBytes) return;  // a local variable
  if (doubt.address) settle();
  const bool is_static = address - statics < statics_bytes, is_dynamic = address - dynamic < dynamic_bytes;
  if (is_static && no_memory[(address - statics) / 4]) return;
  if (++patience > kPatience) {
    patience = 0;
    scheduler().give_way();
  }
  if (aligned && (address & uintptr_t(bytes - 1)))
    stop("misaligned", pc, std::string(op == Op::load ? "reads " : "writes ") + std::to_string(bytes) +
         " bytes at an address that is no multiple of that (" + distance(address) + ")");
  if (is_static) note_shared(address, address - statics, bytes, op, pc);
  else if (is_dynamic && address + uintptr_t(bytes) <= dynamic + dynamic_bytes)
    note_shared(address, (statics_bytes + 127) / 128 * 128 + (address - dynamic), bytes, op, pc);
  else note_global(address, bytes, op, pc);
}

inline void Profiler::note_shared(uintptr_t address, size_t offset, int bytes, Op op, const void* pc) {
  Site& site = site_of(pc, op, kShared, bytes);
  shadow(offset, bytes, site, address);
  group(site, address);
}

inline void Profiler::note_global(uintptr_t address, int bytes, Op op, const void* pc) {
  if (address - host_stack < host_stack_bytes) return;  // the kernel's parameters
  if (address - constants < constants_end - constants) return;
  if (bounded && !buffer_of(address, bytes))
    stop("out of bounds", pc, std::string(op == Op::load ? "reads " : op == Op::store ? "writes " : "updates ") +
         std::to_string(bytes) + " bytes, " + distance(address));
  group(site_of(pc, op, kGlobal, bytes), address);
}

Buffer* Profiler::buffer_of(uintptr_t address, int bytes) {
  if (last_buffer && address >= last_buffer->begin && address + uintptr_t(bytes) <= last_buffer->end)
    return last_buffer;
  for (Buffer& buffer : buffers)
    if (address >= buffer.begin && address + uintptr_t(bytes) <= buffer.end) return last_buffer = &buffer;
  return nullptr;
}

// ---- the life of a launch

static const char* const kDeviceVariables = "__device__ variables";

struct Module {  // the library or program that this file is part of
  uintptr_t statics = 0, statics_bytes = 0, constants = 0, constants_end = 0, data = 0, data_end = 0;
};

static int look_at(dl_phdr_info* info, size_t, void* result) {
  const uintptr_t me = reinterpret_cast<uintptr_t>(&profiler);
  Module found;
  bool mine = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + part.p_vaddr, end = begin + part.p_memsz;
    if (part.p_type == PT_TLS) {
      found.statics = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
      found.statics_bytes = part.p_memsz;
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

// Where this module's thread-local guard variables lie: g++ makes one for an array of a class with constructors, however
// empty, and reads it each time. Offsets into its thread-local memory, from the symbols of its file.
static std::vector<size_t> guards() {
  std::vector<size_t> found;
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&guards), &info)) return found;
  std::ifstream file(info.dli_fname, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  const auto lies_in = [&](uint64_t at, uint64_t count) { return at <= bytes.size() && count <= bytes.size() - at; };
  if (!lies_in(0, sizeof(ElfW(Ehdr)))) return found;
  const auto& head = *reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  if (!lies_in(head.e_shoff, head.e_shnum * sizeof(ElfW(Shdr)))) return found;
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + head.e_shoff);
  for (int i = 0; i < head.e_shnum; ++i) {
    const auto& table = sections[i];
    if (table.sh_type != SHT_SYMTAB || table.sh_link >= head.e_shnum || !lies_in(table.sh_offset, table.sh_size)) continue;
    const auto& names = sections[table.sh_link];
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + table.sh_offset);
    for (size_t s = 0; s < table.sh_size / sizeof *symbols; ++s)
      if ((symbols[s].st_info & 15) == STT_TLS && lies_in(names.sh_offset + symbols[s].st_name, 4) &&
          !bytes.compare(names.sh_offset + symbols[s].st_name, 4, "_ZGV"))
        found.push_back(symbols[s].st_value);
  }
  return found;
}

static void find_memory(Profiler& my) {
  threadIdx = {0, 0, 0};  // touched, so that this OS thread has its thread-local segment
  Module module;
  dl_iterate_phdr(look_at, &module);
  my.statics = module.statics, my.statics_bytes = module.statics_bytes;
  my.constants = module.constants, my.constants_end = module.constants_end;
  my.no_memory.assign(my.statics_bytes / 4 + 4, false);
  const std::pair<void*, size_t> known[] = {{&threadIdx, sizeof threadIdx}, {&blockIdx, sizeof blockIdx},
                                            {&blockDim, sizeof blockDim}, {&gridDim, sizeof gridDim}};
  for (const auto& [variable, bytes] : known)
    for (size_t i = 0; i < bytes; i += 4)
      my.no_memory[(reinterpret_cast<uintptr_t>(variable) + i - my.statics) / 4] = true;
  static const std::vector<size_t> hidden = guards();
  for (const size_t offset : hidden)
    if (offset + 8 <= my.statics_bytes) my.no_memory[offset / 4] = my.no_memory[offset / 4 + 1] = true;
  pthread_attr_t attributes;
  void* low;
  size_t bytes;
  if (pthread_getattr_np(pthread_self(), &attributes)) return;
  if (!pthread_attr_getstack(&attributes, &low, &bytes))
    my.host_stack = reinterpret_cast<uintptr_t>(low), my.host_stack_bytes = bytes;
  pthread_attr_destroy(&attributes);
  const auto is_own = [](const Buffer& buffer) { return buffer.name == kDeviceVariables; };
  my.buffers.erase(std::remove_if(my.buffers.begin(), my.buffers.end(), is_own), my.buffers.end());
  my.bounded = !my.buffers.empty();
  if (my.bounded) my.buffers.push_back({module.data, module.data_end, kDeviceVariables, {}});
}

void on_launch(const LaunchConfig& config, const unsigned char* shared) {
  Profiler& my = profiler;
  if (!my.wanted) return;
  my.one_at_a_time.lock();
  std::string name = config.kernel;
  if (name.size() > 1 && name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
  find_memory(my);
  my.dynamic = reinterpret_cast<uintptr_t>(shared), my.dynamic_bytes = config.shared_bytes;
  my.make_shadow((my.statics_bytes + 127) / 128 * 128 + my.dynamic_bytes + 128);
  my.last_buffer = nullptr;
  for (Buffer& buffer : my.buffers)
    for (auto& bits : buffer.touched) bits.assign((buffer.end - buffer.begin) / 64 + 2, 0);
  my.config = &config;
  my.kernel = &my.kernels[name];
  my.timed = my.kernel->launches++ == 0;
  my.kernel->name = name;
  my.kernel->grid = config.grid, my.kernel->block = config.block, my.kernel->shared_bytes = config.shared_bytes;
}

void on_launch_end() {
  Profiler& my = profiler;
  if (!my.kernel) return;
  my.fold();
  my.kernel = nullptr;
  my.one_at_a_time.unlock();
}

void on_block(int threads, const unsigned char* shared, bool resumed) {
  Profiler& my = profiler;
  if (!my.kernel) return;
  my.block_epoch = ++my.epoch;
  if (resumed) my.block_epoch = 1;  // what it wrote before it waited for the grid is written, and ordered
  my.dynamic = reinterpret_cast<uintptr_t>(shared);
  my.patience = 0;
  for (int w = 0; w < kMaxWarps; ++w) {
    const int lanes = std::max(0, std::min(kWarp, threads - w * kWarp));
    my.gone[w] = lanes == kWarp ? 0 : ~0u << lanes;
    my.clock[w] = my.all_met[w] = 0;
    if (my.met_in_part[w]) std::memset(my.met[w], 0, sizeof my.met[w]);
    my.met_in_part[w] = false;
  }
  std::memset(my.steps, 0, sizeof my.steps);
  my.active = true;
}

void on_block_end() {
  Profiler& my = profiler;
  if (!my.active) return;
  my.settle();
  for (int w = 0; w < kMaxWarps; ++w) my.flush(w);
  my.active = my.timed = false;
}

void on_turn(int thread, const char* stack) {
  Profiler& my = profiler;
  if (my.doubt.address) my.settle();
  my.thread = thread, my.warp = thread / kWarp, my.lane = thread % kWarp;
  my.stack = reinterpret_cast<uintptr_t>(stack);
  my.patience = 0;
}

void on_gone(int thread) {
  if (profiler.active) profiler.gone[thread / kWarp] |= 1u << thread % kWarp;
}

void on_barrier(Where where, int threads) {
  Profiler& my = profiler;
  if (!my.active) return;
  my.settle();
  for (int w = 0; w * kWarp < int(my.config->block.x * my.config->block.y * my.config->block.z); ++w) my.flush(w);
  ++my.epoch;
  Event& event = my.kernel->events[{where.file, where.line}]["barrier"];
  ++event.times;
  event.lanes += uint64_t(threads);
}

void on_meeting(int warp, uint32_t lanes, const char* what, Where where) {
  Profiler& my = profiler;
  if (!my.active) return;
  my.settle();
  if (!options().strict || std::strcmp(what, "__syncwarp()") == 0) my.meet(warp, lanes);
  if (lanes == ~my.gone[warp]) my.flush(warp);
  if (std::strcmp(what, "end of ldmatrix") == 0) return;
  Event& event = my.kernel->events[{where.file, where.line}][what];
  ++event.times;
  event.lanes += uint64_t(__builtin_popcount(lanes));
}

void on_access(const void* address, int bytes, Op op, Where where) {
  const void* pc = stand_in(where);
  if (op == Op::load) profiler.note<Op::load>(address, bytes, true, pc);
  if (op == Op::store) profiler.note<Op::store>(address, bytes, true, pc);
  if (op == Op::atomic) profiler.note<Op::atomic>(address, bytes, true, pc);
}

void on_copy(const AsyncCopy& copy, Where where) {
  const void* pc = stand_in(where);
  if (copy.wanted > 0) profiler.note<Op::load>(copy.from, copy.wanted, false, pc);
  profiler.note<Op::store>(copy.to, copy.bytes, true, pc);
  profiler.fly(copy, true);
}

void look_away(bool away) {
  if (profiler.kernel) profiler.active = !away;
}

void on_copy_arrives(const AsyncCopy& copy) { profiler.fly(copy, false); }

}  // namespace simt

// ---- the compiler's calls

#define SIMT_NOTE(op, bytes, aligned) simt::profiler.note<simt::Op::op>(p, bytes, aligned, __builtin_return_address(0))
#define SIMT_SIZE(n)                                                                 \
  void __tsan_read##n(void* p) { SIMT_NOTE(load, n, true); }                         \
  void __tsan_write##n(void* p) { SIMT_NOTE(store, n, true); }                       \
  void __tsan_volatile_read##n(void* p) { SIMT_NOTE(load, n, true); }                \
  void __tsan_volatile_write##n(void* p) { SIMT_NOTE(store, n, true); }              \
  void __tsan_unaligned_read##n(void* p) { SIMT_NOTE(load, n, false); }              \
  void __tsan_unaligned_write##n(void* p) { SIMT_NOTE(store, n, false); }
extern "C" {
SIMT_SIZE(1)
SIMT_SIZE(2)
SIMT_SIZE(4)
SIMT_SIZE(8)
SIMT_SIZE(16)
void __tsan_read_range(void* p, size_t bytes) { SIMT_NOTE(load, int(bytes), false); }
void __tsan_write_range(void* p, size_t bytes) { SIMT_NOTE(store, int(bytes), false); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
