// Memory of whole programs: who asked for which, and so what a pointer is.

#include "cuda_runtime.h"

#include <map>

#include "../hooks.h"
#include "spaced.h"

extern "C" char __start_simt_managed[] __attribute__((weak, visibility("hidden")));  // by the linker, around all that is
extern "C" char __stop_simt_managed[] __attribute__((weak, visibility("hidden")));   // __managed__

namespace simt::program {

struct Piece {
  size_t bytes;
  Kind kind;
  unsigned flags;  // of host memory
};
static std::map<const char*, Piece>& pieces() {
  static auto* all = new std::map<const char*, Piece>;  // outlives whatever frees memory at the end
  return *all;
}

// The piece that an address lies in, or null.
static const std::pair<const char* const, Piece>* piece_of(const void* address) {
  const char* const place = static_cast<const char*>(address);
  auto next = pieces().upper_bound(place);
  if (next == pieces().begin()) return nullptr;
  --next;
  return size_t(place - next->first) < next->second.bytes ? &*next : nullptr;
}

cudaError_t allocate(void** pointer, size_t bytes, int fill, const char* name, Kind kind, unsigned flags) {
  if (const cudaError_t error = checked()) return error;
  if (!pointer) return fail_with(cudaErrorInvalidValue);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  void* memory = spaced_alloc(bytes);
  if (!memory) return fail_with(cudaErrorMemoryAllocation);
  std::memset(memory, fill, bytes);
  on_allocated(memory, bytes, name, fill != 0);
  pieces()[static_cast<char*>(memory)] = {bytes, kind, flags};
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t release(void* pointer, bool host) {
  if (!pointer) return checked();
  const auto found = pieces().find(static_cast<char*>(pointer));
  if (found == pieces().end()) {
    if (is_freed(pointer)) on_misuse("double free", "frees memory that was freed before", __builtin_return_address(0));
    return fail_with(cudaErrorInvalidValue);
  }
  const Kind kind = found->second.kind;  // what was only registered, and variables, did not come from here
  if (host ? kind != Kind::host : kind != Kind::device && kind != Kind::managed) return fail_with(cudaErrorInvalidValue);
  pieces().erase(found);
  on_wait_all();
  std::vector<void*> unused;
  on_freed(pointer, unused);
  for (void* memory : unused) spaced_free(memory);
  return checked();
}

cudaError_t register_host(void* pointer, size_t bytes, unsigned flags) {
  if (!pointer || !bytes) return fail_with(cudaErrorInvalidValue);
  if (piece_of(pointer)) return fail_with(cudaErrorHostMemoryAlreadyRegistered);
  pieces()[static_cast<char*>(pointer)] = {bytes, Kind::registered, flags};
  watch(pointer, bytes, "registered host memory");
  return checked();
}

cudaError_t unregister_host(void* pointer) {
  const auto found = pieces().find(static_cast<char*>(pointer));
  if (found == pieces().end()) return fail_with(cudaErrorHostMemoryNotRegistered);
  if (found->second.kind != Kind::registered) return fail_with(cudaErrorInvalidValue);
  pieces().erase(found);
  forget(pointer);
  return checked();
}

void note_variable(const void* variable, size_t bytes) {
  if (!piece_of(variable)) pieces()[static_cast<const char*>(variable)] = {bytes, Kind::variable, 0};
}

static bool is_managed_variable(const void* pointer) {
  const char* const place = static_cast<const char*>(pointer);
  return __start_simt_managed && place >= __start_simt_managed && place < __stop_simt_managed;
}

static Kind kind_of(const void* pointer) {
  if (is_managed_variable(pointer)) return Kind::managed;
  const auto* piece = piece_of(pointer);
  return piece ? piece->second.kind : Kind::none;
}

size_t bytes_in_use() {
  size_t bytes = 0;
  for (const auto& [address, piece] : pieces())
    if (piece.kind == Kind::device || piece.kind == Kind::managed) bytes += piece.bytes;
  return bytes;
}

// Whether the memory that an address lies in, if anybody asked for it, has room for so many bytes.
static bool has_room(const void* address, size_t bytes) {
  const auto* piece = piece_of(address);
  return !piece || bytes <= piece->second.bytes - size_t(static_cast<const char*>(address) - piece->first);
}

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream, bool waits) {
  if (const cudaError_t error = checked()) return error;
  if (bytes == 0) return cudaSuccess;
  if (!to || !from || !has_room(to, bytes) || !has_room(from, bytes)) return fail_with(cudaErrorInvalidValue);
  for (const void* one : {const_cast<const void*>(to), from})
    if (is_freed(one)) {
      on_misuse("use after free", "copies from or to memory that was freed", __builtin_return_address(0));
      return fail_with(cudaErrorInvalidValue);
    }
  std::memmove(to, from, bytes);
  on_copied(to, from, bytes);
  if (stream == kAnyStream) on_wait_all();
  else on_transfer(to, from, bytes, stream_known(stream), waits, __builtin_return_address(0));
  return cudaSuccess;
}

cudaError_t set(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = checked()) return error;
  if (bytes == 0) return cudaSuccess;
  if (!to || !has_room(to, bytes)) return fail_with(cudaErrorInvalidValue);
  if (is_freed(to)) {
    on_misuse("use after free", "sets memory that was freed", __builtin_return_address(0));
    return fail_with(cudaErrorInvalidValue);
  }
  std::memset(to, value, bytes);
  on_written(to, bytes);
  if (stream == kAnyStream) on_wait_all();
  else on_transfer(to, nullptr, bytes, stream_known(stream), false, __builtin_return_address(0));
  return cudaSuccess;
}

cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      cudaStream_t stream, bool waits) {
  if (width > to_pitch || width > from_pitch) return fail_with(cudaErrorInvalidPitchValue);
  for (size_t row = 0; row < height; ++row)
    if (const cudaError_t error = copy(static_cast<char*>(to) + row * to_pitch,
                                       static_cast<const char*>(from) + row * from_pitch, width, stream, waits))
      return error;
  return checked();
}

}  // namespace simt::program

using namespace simt::program;

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* all, const void* pointer) {
  if (!all) return fail_with(cudaErrorInvalidValue);
  void* const place = const_cast<void*>(pointer);
  switch (kind_of(pointer)) {
    case Kind::none: *all = {cudaMemoryTypeUnregistered, cudaInvalidDeviceId, nullptr, place}; break;
    case Kind::device:
    case Kind::variable: *all = {cudaMemoryTypeDevice, 0, place, nullptr}; break;
    case Kind::managed: *all = {cudaMemoryTypeManaged, 0, place, place}; break;
    case Kind::host:
    case Kind::registered: *all = {cudaMemoryTypeHost, 0, place, place}; break;
  }
  return checked();
}

cudaError_t cudaHostGetFlags(unsigned* flags, void* pointer) {
  const auto* piece = piece_of(pointer);
  if (!flags || !piece || piece->second.kind != Kind::host) return fail_with(cudaErrorInvalidValue);
  *flags = piece->second.flags | cudaHostAllocMapped;  // all host memory is mapped where addresses are unified
  return checked();
}

namespace simt::program {
cudaError_t device_pointer_of(void** device, void* host) {
  const Kind kind = kind_of(host);
  if (!device || (kind != Kind::host && kind != Kind::registered)) return fail_with(cudaErrorInvalidValue);
  *device = host;
  return checked();
}
}  // namespace simt::program
