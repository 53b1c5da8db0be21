// Memory of whole programs. All of it is the host's; what cudaMalloc gives reads as NaN until it is written.
#pragma once

#include "device.h"

enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice,
                      cudaMemcpyDefault };
enum cudaMemoryAdvise { cudaMemAdviseSetReadMostly = 1, cudaMemAdviseUnsetReadMostly, cudaMemAdviseSetPreferredLocation,
                        cudaMemAdviseUnsetPreferredLocation, cudaMemAdviseSetAccessedBy, cudaMemAdviseUnsetAccessedBy };
constexpr unsigned cudaHostAllocDefault = 0, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2,
                   cudaHostAllocWriteCombined = 4, cudaHostRegisterDefault = 0, cudaHostRegisterPortable = 1,
                   cudaHostRegisterMapped = 2, cudaMemAttachGlobal = 1, cudaMemAttachHost = 2, cudaMemAttachSingle = 4;
constexpr int cudaCpuDeviceId = -1, cudaInvalidDeviceId = -2;
struct cudaExtent { size_t width, height, depth; };
struct cudaPitchedPtr { void* ptr; size_t pitch, xsize, ysize; };

namespace simt::program {
enum class Kind { none, host, device, managed, registered, variable };
cudaError_t allocate(void** pointer, size_t bytes, int fill, const char* name, Kind kind, unsigned flags = 0);
cudaError_t release(void* pointer, bool host);
cudaError_t register_host(void* pointer, size_t bytes, unsigned flags);
cudaError_t unregister_host(void* pointer);
cudaError_t device_pointer_of(void** device, void* host);
size_t bytes_in_use();
size_t device_memory();  // bytes
void note_variable(const void* variable, size_t bytes);  // that the program asked for the device's address of
const cudaStream_t kAnyStream = cudaStream_t(~uintptr_t{0});  // it is not known which: nothing is unordered
cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream = kAnyStream, bool waits = true);
cudaError_t set(void* to, int value, size_t bytes, cudaStream_t stream = kAnyStream);
cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      cudaStream_t stream = kAnyStream, bool waits = true);
template <class T>
cudaError_t allocate_as(T** pointer, size_t bytes, int fill, const char* name, Kind kind = Kind::device,
                        unsigned flags = 0) {
  void* memory = nullptr;
  const cudaError_t error = allocate(pointer ? &memory : nullptr, bytes, fill, name, kind, flags);
  if (!error) *pointer = static_cast<T*>(memory);
  return error;
}
}  // namespace simt::program

template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  return simt::program::allocate_as(pointer, bytes, 0xff, "memory of cudaMalloc");
}
// As C has them, for whom gives NULL or a function that allocates as void*.
inline cudaError_t cudaMalloc(void** pointer, size_t bytes) { return cudaMalloc<void>(pointer, bytes); }
template <class T>
cudaError_t cudaMallocAsync(T** pointer, size_t bytes, cudaStream_t) {
  return simt::program::allocate_as(pointer, bytes, 0xff, "memory of cudaMallocAsync");
}
template <class T>
cudaError_t cudaMallocManaged(T** pointer, size_t bytes, unsigned = cudaMemAttachGlobal) {
  return simt::program::allocate_as(pointer, bytes, 0, "memory of cudaMallocManaged", simt::program::Kind::managed);
}
inline cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned flags = cudaMemAttachGlobal) {
  return cudaMallocManaged<void>(pointer, bytes, flags);
}
template <class T>
cudaError_t cudaMallocHost(T** pointer, size_t bytes, unsigned flags = 0) {
  return simt::program::allocate_as(pointer, bytes, 0, "memory of cudaMallocHost", simt::program::Kind::host, flags);
}
inline cudaError_t cudaMallocHost(void** pointer, size_t bytes, unsigned flags = 0) {
  return cudaMallocHost<void>(pointer, bytes, flags);
}
template <class T>
cudaError_t cudaHostAlloc(T** pointer, size_t bytes, unsigned flags) {
  return simt::program::allocate_as(pointer, bytes, 0, "memory of cudaHostAlloc", simt::program::Kind::host, flags);
}
template <class T>
cudaError_t cudaHostGetDevicePointer(T** device, void* host, unsigned) {
  void* same = nullptr;
  const cudaError_t error = simt::program::device_pointer_of(&same, host);
  if (!error) *device = static_cast<T*>(same);
  return error;
}
template <class T>
cudaError_t cudaMallocPitch(T** pointer, size_t* pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return simt::program::allocate_as(pointer, *pitch * height, 0xff, "memory of cudaMallocPitch");
}
inline cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return simt::program::register_host(pointer, bytes, flags);
}
inline cudaError_t cudaHostUnregister(void* pointer) { return simt::program::unregister_host(pointer); }
SIMT_INLINE cudaError_t cudaFree(void* pointer) { return simt::program::release(pointer, false); }
SIMT_INLINE cudaError_t cudaFreeHost(void* pointer) { return simt::program::release(pointer, true); }
SIMT_INLINE cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return simt::program::release(pointer, false); }
SIMT_INLINE cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return simt::program::copy(to, from, bytes, nullptr);
}
SIMT_INLINE cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                        cudaStream_t stream = nullptr) {
  return simt::program::copy(to, from, bytes, stream, false);
}
SIMT_INLINE cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return simt::program::set(to, value, bytes, nullptr);
}
SIMT_INLINE cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream = nullptr) {
  return simt::program::set(to, value, bytes, stream);
}
inline cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t height, cudaMemcpyKind) {
  return simt::program::copy_rows(to, to_pitch, from, from_pitch, width, height, nullptr);
}
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t stream = nullptr) {
  return simt::program::copy_rows(to, to_pitch, from, from_pitch, width, height, stream, false);
}
inline cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  for (size_t row = 0; row < height; ++row)
    if (const cudaError_t error = simt::program::set(static_cast<char*>(to) + row * pitch, value, width)) return error;
  return simt::program::checked();
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
SIMT_ANSWER(cudaMemPrefetchAsync(const void*, size_t, int, cudaStream_t = nullptr), )
SIMT_ANSWER(cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, int), )
SIMT_ANSWER(cudaStreamAttachMemAsync(cudaStream_t, void*, size_t = 0, unsigned = cudaMemAttachSingle), )

// ---- variables of the device are variables of the program

#define __managed__ __attribute__((section("simt_managed")))  // between two names that the linker knows
namespace simt::program {
template <class Symbol>
char* within(const Symbol& symbol, size_t bytes, size_t offset) {
  if (offset > sizeof(Symbol) || bytes > sizeof(Symbol) - offset) return nullptr;
  return reinterpret_cast<char*>(const_cast<Symbol*>(&symbol)) + offset;
}
}  // namespace simt::program
template <class Symbol>
cudaError_t cudaMemcpyToSymbol(const Symbol& symbol, const void* from, size_t bytes, size_t offset = 0,
                               cudaMemcpyKind = cudaMemcpyHostToDevice) {
  char* to = simt::program::within(symbol, bytes, offset);
  return to ? simt::program::copy(to, from, bytes) : simt::program::fail_with(cudaErrorInvalidValue);
}
template <class Symbol>
cudaError_t cudaMemcpyFromSymbol(void* to, const Symbol& symbol, size_t bytes, size_t offset = 0,
                                 cudaMemcpyKind = cudaMemcpyDeviceToHost) {
  const char* from = simt::program::within(symbol, bytes, offset);
  return from ? simt::program::copy(to, from, bytes) : simt::program::fail_with(cudaErrorInvalidValue);
}
template <class Symbol>
cudaError_t cudaMemcpyToSymbolAsync(const Symbol& symbol, const void* from, size_t bytes, size_t offset = 0,
                                    cudaMemcpyKind kind = cudaMemcpyHostToDevice, cudaStream_t = nullptr) {
  return cudaMemcpyToSymbol(symbol, from, bytes, offset, kind);
}
template <class Symbol>
cudaError_t cudaMemcpyFromSymbolAsync(void* to, const Symbol& symbol, size_t bytes, size_t offset = 0,
                                      cudaMemcpyKind kind = cudaMemcpyDeviceToHost, cudaStream_t = nullptr) {
  return cudaMemcpyFromSymbol(to, symbol, bytes, offset, kind);
}
template <class T, class Symbol>
cudaError_t cudaGetSymbolAddress(T** pointer, const Symbol& symbol) {
  *pointer = (T*)(const_cast<Symbol*>(&symbol));
  simt::program::note_variable(*pointer, sizeof(Symbol));
  return simt::program::checked();
}
template <class Symbol>
cudaError_t cudaGetSymbolSize(size_t* bytes, const Symbol&) {
  *bytes = sizeof(Symbol);
  return simt::program::checked();
}
