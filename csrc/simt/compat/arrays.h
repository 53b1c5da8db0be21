// CUDA arrays, and copies to, from and within volumes. An array is rows one behind another, slice behind slice.
#pragma once

#include "memory.h"

enum cudaChannelFormatKind { cudaChannelFormatKindSigned, cudaChannelFormatKindUnsigned, cudaChannelFormatKindFloat,
                             cudaChannelFormatKindNone };
struct cudaChannelFormatDesc { int x, y, z, w; cudaChannelFormatKind f; };
struct cudaArray {
  cudaChannelFormatDesc desc;
  cudaExtent extent;  // in elements; 0 where it has no such dimension
  unsigned flags;
  size_t element;     // bytes
  unsigned char* data;
  size_t pitch() const { return extent.width * element; }
  size_t rows() const { return extent.height ? extent.height : 1; }
  size_t slices() const { return extent.depth ? extent.depth : 1; }
};
using cudaArray_t = cudaArray*;
using cudaArray_const_t = const cudaArray*;
constexpr unsigned cudaArrayDefault = 0, cudaArrayLayered = 1, cudaArraySurfaceLoadStore = 2, cudaArrayCubemap = 4,
                   cudaArrayTextureGather = 8;
struct cudaPos { size_t x, y, z; };
struct cudaMemcpy3DParms {
  cudaArray_t srcArray; cudaPos srcPos; cudaPitchedPtr srcPtr;
  cudaArray_t dstArray; cudaPos dstPos; cudaPitchedPtr dstPtr;
  cudaExtent extent; cudaMemcpyKind kind;
};
inline cudaExtent make_cudaExtent(size_t w, size_t h, size_t d) { return {w, h, d}; }
inline cudaPos make_cudaPos(size_t x, size_t y, size_t z) { return {x, y, z}; }
inline cudaPitchedPtr make_cudaPitchedPtr(void* p, size_t pitch, size_t w, size_t h) { return {p, pitch, w, h}; }
inline cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w, cudaChannelFormatKind f) {
  return {x, y, z, w, f};
}

namespace simt::program {
template <class T> struct Channels { using type = T; static constexpr int count = 1; };
#define SIMT_CHANNELS(T, name)                                                           \
  template <> struct Channels<name##1> { using type = T; static constexpr int count = 1; }; \
  template <> struct Channels<name##2> { using type = T; static constexpr int count = 2; }; \
  template <> struct Channels<name##3> { using type = T; static constexpr int count = 3; }; \
  template <> struct Channels<name##4> { using type = T; static constexpr int count = 4; };
SIMT_CHANNELS(signed char, char)
SIMT_CHANNELS(unsigned char, uchar)
SIMT_CHANNELS(short, short)
SIMT_CHANNELS(unsigned short, ushort)
SIMT_CHANNELS(int, int)
SIMT_CHANNELS(unsigned, uint)
SIMT_CHANNELS(float, float)
#undef SIMT_CHANNELS
}  // namespace simt::program
template <class T>
cudaChannelFormatDesc cudaCreateChannelDesc() {
  using One = typename simt::program::Channels<T>::type;
  const int bits = 8 * sizeof(One), n = simt::program::Channels<T>::count;
  return {bits, n > 1 ? bits : 0, n > 2 ? bits : 0, n > 3 ? bits : 0,
          !std::is_integral_v<One> ? cudaChannelFormatKindFloat
          : std::is_signed_v<One>  ? cudaChannelFormatKindSigned : cudaChannelFormatKindUnsigned};
}

cudaError_t cudaMalloc3DArray(cudaArray_t* array, const cudaChannelFormatDesc* desc, cudaExtent extent,
                              unsigned flags = 0);
inline cudaError_t cudaMallocArray(cudaArray_t* array, const cudaChannelFormatDesc* desc, size_t width,
                                   size_t height = 0, unsigned flags = 0) {
  return cudaMalloc3DArray(array, desc, {width, height, 0}, flags);
}
cudaError_t cudaFreeArray(cudaArray_t array);
SIMT_ANSWER(cudaGetChannelDesc(cudaChannelFormatDesc* desc, cudaArray_const_t array), *desc = array->desc)
inline cudaError_t cudaArrayGetInfo(cudaChannelFormatDesc* desc, cudaExtent* extent, unsigned* flags, cudaArray_t array) {
  if (desc) *desc = array->desc;
  if (extent) *extent = array->extent;
  if (flags) *flags = array->flags;
  return simt::program::checked();
}
cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* p);
inline cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* p, cudaStream_t = nullptr) { return cudaMemcpy3D(p); }
cudaError_t cudaMemcpy2DToArray(cudaArray_t to, size_t x, size_t y, const void* from, size_t pitch, size_t width,
                                size_t height, cudaMemcpyKind);
cudaError_t cudaMemcpy2DFromArray(void* to, size_t pitch, cudaArray_const_t from, size_t x, size_t y, size_t width,
                                  size_t height, cudaMemcpyKind);
cudaError_t cudaMemcpyToArray(cudaArray_t to, size_t x, size_t y, const void* from, size_t bytes, cudaMemcpyKind);
cudaError_t cudaMemcpyFromArray(void* to, cudaArray_const_t from, size_t x, size_t y, size_t bytes, cudaMemcpyKind);
inline cudaError_t cudaMemcpy2DToArrayAsync(cudaArray_t to, size_t x, size_t y, const void* from, size_t pitch,
                                            size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpy2DToArray(to, x, y, from, pitch, width, height, kind);
}
inline cudaError_t cudaMalloc3D(cudaPitchedPtr* p, cudaExtent extent) {
  p->xsize = extent.width, p->ysize = extent.height;
  return cudaMallocPitch(&p->ptr, &p->pitch, extent.width, extent.height * extent.depth);
}
inline cudaError_t cudaMemset3D(cudaPitchedPtr p, int value, cudaExtent extent) {
  for (size_t z = 0; z < extent.depth; ++z)
    cudaMemset2D(static_cast<char*>(p.ptr) + z * p.pitch * p.ysize, p.pitch, value, extent.width, extent.height);
  return simt::program::checked();
}
