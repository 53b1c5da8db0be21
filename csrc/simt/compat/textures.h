// Textures and surfaces: point and linear filter, four address modes, objects and (older) references, layers and cubes.
// No mipmaps. The profiler does not count what they read.
#pragma once

#include "arrays.h"

enum cudaTextureAddressMode { cudaAddressModeWrap, cudaAddressModeClamp, cudaAddressModeMirror, cudaAddressModeBorder };
enum cudaTextureFilterMode { cudaFilterModePoint, cudaFilterModeLinear };
enum cudaTextureReadMode { cudaReadModeElementType, cudaReadModeNormalizedFloat };
enum cudaResourceType { cudaResourceTypeArray, cudaResourceTypeMipmappedArray, cudaResourceTypeLinear,
                        cudaResourceTypePitch2D };
enum cudaSurfaceBoundaryMode { cudaBoundaryModeZero, cudaBoundaryModeClamp, cudaBoundaryModeTrap };
constexpr int cudaTextureType1D = 1, cudaTextureType2D = 2, cudaTextureType3D = 3, cudaTextureTypeCubemap = 0x0c,
              cudaTextureType1DLayered = 0xf1, cudaTextureType2DLayered = 0xf2;
struct cudaTextureDesc {
  cudaTextureAddressMode addressMode[3];
  cudaTextureFilterMode filterMode;
  cudaTextureReadMode readMode;
  int sRGB;
  float borderColor[4];
  int normalizedCoords;
  unsigned maxAnisotropy;
  cudaTextureFilterMode mipmapFilterMode;
  float mipmapLevelBias, minMipmapLevelClamp, maxMipmapLevelClamp;
  int disableTrilinearOptimization, seamlessCubemap;
};
struct cudaResourceDesc {
  cudaResourceType resType;
  union {
    struct { cudaArray_t array; } array;
    struct { void* devPtr; cudaChannelFormatDesc desc; size_t sizeInBytes; } linear;
    struct { void* devPtr; cudaChannelFormatDesc desc; size_t width, height, pitchInBytes; } pitch2D;
  } res;
  unsigned flags;
};
struct cudaResourceViewDesc;
using cudaTextureObject_t = unsigned long long;
using cudaSurfaceObject_t = unsigned long long;

namespace simt::program {
struct Texture {  // what is read, and how
  const unsigned char* data = nullptr;
  size_t size[3] = {0, 1, 1}, pitch = 0, slice = 0;
  int channels = 0, bytes = 0;  // of a texel; of a channel
  cudaChannelFormatKind kind = cudaChannelFormatKindNone;
  cudaTextureDesc how = {};
};
Texture texture_of(const cudaResourceDesc& resource, const cudaTextureDesc& how);
void fetch(const Texture& t, int dimensions, const float* at, int layer, float* out);       // four channels, filtered
void fetch_raw(const Texture& t, int dimensions, const float* at, int layer, void* out, size_t bytes);
void fetch_at(const Texture& t, long long index, void* out, size_t bytes, bool as_float);   // tex1Dfetch
int cube_face(const float* direction, float* at);                                          // 0 to 5, and where on it
unsigned char* surface_at(cudaSurfaceObject_t surface, size_t bytes, int x, int y, int z, cudaSurfaceBoundaryMode mode,
                          Where where);
void copy_bytes(void* to, const void* from, size_t bytes);

template <class T>
T from_floats(const float* four) {
  using One = typename Channels<T>::type;
  T result;
  One parts[4] = {One(four[0]), One(four[1]), One(four[2]), One(four[3])};
  copy_bytes(&result, parts, sizeof result);
  return result;
}
template <class T>
SIMT_UNSEEN T read(const Texture& t, int dimensions, float x, float y = 0, float z = 0, int layer = 0) {
  const float at[3] = {x, y, z};
  if (t.how.filterMode == cudaFilterModeLinear || t.how.readMode == cudaReadModeNormalizedFloat) {
    float four[4];
    fetch(t, dimensions, at, layer, four);
    return from_floats<T>(four);
  }
  T result;
  fetch_raw(t, dimensions, at, layer, &result, sizeof result);
  return result;
}
template <class T>
SIMT_UNSEEN T read_at(const Texture& t, long long index) {
  if (t.how.readMode == cudaReadModeNormalizedFloat) {
    float four[4];
    fetch_at(t, index, four, sizeof four, true);
    return from_floats<T>(four);
  }
  T result;
  fetch_at(t, index, &result, sizeof result, false);
  return result;
}
template <class T>
SIMT_UNSEEN T read_cube(const Texture& t, float x, float y, float z, int first_layer) {
  const float direction[3] = {x, y, z};
  float at[2];
  const int face = cube_face(direction, at);
  Texture normalized = t;
  normalized.how.normalizedCoords = 1;
  normalized.how.addressMode[0] = normalized.how.addressMode[1] = cudaAddressModeClamp;
  return read<T>(normalized, 2, at[0], at[1], 0, first_layer + face);
}
inline const Texture& texture_at(cudaTextureObject_t object) { return *reinterpret_cast<const Texture*>(object); }
template <class T> struct Same { using type = T; };
}  // namespace simt::program

cudaError_t cudaCreateTextureObject(cudaTextureObject_t* object, const cudaResourceDesc* resource,
                                    const cudaTextureDesc* how, const cudaResourceViewDesc*);
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t object);
inline cudaError_t cudaCreateSurfaceObject(cudaSurfaceObject_t* object, const cudaResourceDesc* resource) {
  *object = reinterpret_cast<cudaSurfaceObject_t>(resource->res.array.array);
  return simt::program::checked();
}
SIMT_ANSWER(cudaDestroySurfaceObject(cudaSurfaceObject_t), )

// ---- reading: by object, tex2D<float>(object, x, y) or tex2D(&value, object, x, y); by reference, tex2D(reference, x, y)

template <class T, int Dimensions = 1, cudaTextureReadMode Mode = cudaReadModeElementType>
struct texture {
  int normalized = 0;
  cudaTextureFilterMode filterMode = cudaFilterModePoint;
  cudaTextureAddressMode addressMode[3] = {cudaAddressModeClamp, cudaAddressModeClamp, cudaAddressModeClamp};
  cudaChannelFormatDesc channelDesc = cudaCreateChannelDesc<T>();
  simt::program::Texture bound = {};

  texture(int normalized = 0, cudaTextureFilterMode filter = cudaFilterModePoint,
          cudaTextureAddressMode mode = cudaAddressModeClamp, cudaChannelFormatDesc desc = cudaCreateChannelDesc<T>())
      : normalized(normalized), filterMode(filter), addressMode{mode, mode, mode}, channelDesc(desc) {}
  SIMT_UNSEEN const simt::program::Texture& now() {  // attributes may be changed after binding
    bound.how = {};
    std::copy(addressMode, addressMode + 3, bound.how.addressMode);
    bound.how.filterMode = filterMode, bound.how.readMode = Mode, bound.how.normalizedCoords = normalized;
    return bound;
  }
};
namespace simt::program {
template <class T, cudaTextureReadMode Mode> struct Result { using type = T; };
template <> struct Result<uchar4, cudaReadModeNormalizedFloat> { using type = float4; };
template <> struct Result<uchar2, cudaReadModeNormalizedFloat> { using type = float2; };
template <> struct Result<unsigned char, cudaReadModeNormalizedFloat> { using type = float; };
template <> struct Result<unsigned short, cudaReadModeNormalizedFloat> { using type = float; };
template <> struct Result<char4, cudaReadModeNormalizedFloat> { using type = float4; };
template <> struct Result<short, cudaReadModeNormalizedFloat> { using type = float; };
}  // namespace simt::program

#define SIMT_TEXTURE(name, parameters, call)                                                                          \
  template <class T> T name(cudaTextureObject_t object, SIMT_BARE parameters) {                                       \
    const auto& texture = simt::program::texture_at(object);                                                          \
    return simt::program::call;                                                                                       \
  }                                                                                                                   \
  template <class T> void name(T* result, cudaTextureObject_t object, SIMT_BARE parameters) {                         \
    const auto& texture = simt::program::texture_at(object);                                                          \
    *result = simt::program::call;                                                                                    \
  }                                                                                                                   \
  template <class E, int D, cudaTextureReadMode M> auto name(::texture<E, D, M>& reference, SIMT_BARE parameters) {   \
    using T = typename simt::program::Result<E, M>::type;                                                             \
    const auto& texture = reference.now();                                                                            \
    return simt::program::call;                                                                                       \
  }
SIMT_TEXTURE(tex1Dfetch, (int x), read_at<T>(texture, x))
SIMT_TEXTURE(tex1D, (float x), read<T>(texture, 1, x))
SIMT_TEXTURE(tex2D, (float x, float y), read<T>(texture, 2, x, y))
SIMT_TEXTURE(tex3D, (float x, float y, float z), read<T>(texture, 3, x, y, z))
SIMT_TEXTURE(tex1DLayered, (float x, int layer), read<T>(texture, 1, x, 0, 0, layer))
SIMT_TEXTURE(tex2DLayered, (float x, float y, int layer), read<T>(texture, 2, x, y, 0, layer))
SIMT_TEXTURE(texCubemap, (float x, float y, float z), read_cube<T>(texture, x, y, z, 0))
SIMT_TEXTURE(texCubemapLayered, (float x, float y, float z, int layer), read_cube<T>(texture, x, y, z, 6 * layer))
#undef SIMT_TEXTURE

template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture(size_t* offset, texture<T, D, M>& reference, const void* data,
                            const cudaChannelFormatDesc& desc, size_t bytes = ~size_t{0} >> 1) {
  cudaResourceDesc linear = {cudaResourceTypeLinear, {}, 0};
  linear.res.linear = {const_cast<void*>(data), desc, bytes};
  reference.bound = simt::program::texture_of(linear, {});
  if (offset) *offset = 0;
  return simt::program::checked();
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture(size_t* offset, texture<T, D, M>& reference, const void* data,
                            size_t bytes = ~size_t{0} >> 1) {
  return cudaBindTexture(offset, reference, data, cudaCreateChannelDesc<T>(), bytes);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture2D(size_t* offset, texture<T, D, M>& reference, const void* data,
                              const cudaChannelFormatDesc& desc, size_t width, size_t height, size_t pitch) {
  cudaResourceDesc rows = {cudaResourceTypePitch2D, {}, 0};
  rows.res.pitch2D = {const_cast<void*>(data), desc, width, height, pitch};
  reference.bound = simt::program::texture_of(rows, {});
  if (offset) *offset = 0;
  return simt::program::checked();
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture2D(size_t* offset, texture<T, D, M>& reference, const void* data, size_t width,
                              size_t height, size_t pitch) {
  return cudaBindTexture2D(offset, reference, data, cudaCreateChannelDesc<T>(), width, height, pitch);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTextureToArray(texture<T, D, M>& reference, cudaArray_const_t array) {
  cudaResourceDesc whole = {cudaResourceTypeArray, {}, 0};
  whole.res.array.array = const_cast<cudaArray_t>(array);
  reference.bound = simt::program::texture_of(whole, {});
  return simt::program::checked();
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTextureToArray(texture<T, D, M>& reference, cudaArray_const_t array, const cudaChannelFormatDesc&) {
  return cudaBindTextureToArray(reference, array);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaUnbindTexture(texture<T, D, M>& reference) {
  reference.bound = {};
  return simt::program::checked();
}

// The same by pointers, as C has them.
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture(size_t* offset, texture<T, D, M>* reference, const void* data,
                            const cudaChannelFormatDesc* desc, size_t bytes = ~size_t{0} >> 1) {
  return cudaBindTexture(offset, *reference, data, *desc, bytes);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTexture2D(size_t* offset, texture<T, D, M>* reference, const void* data,
                              const cudaChannelFormatDesc* desc, size_t width, size_t height, size_t pitch) {
  return cudaBindTexture2D(offset, *reference, data, *desc, width, height, pitch);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaBindTextureToArray(texture<T, D, M>* reference, cudaArray_const_t array, const cudaChannelFormatDesc*) {
  return cudaBindTextureToArray(*reference, array);
}
template <class T, int D, cudaTextureReadMode M>
cudaError_t cudaUnbindTexture(texture<T, D, M>* reference) { return cudaUnbindTexture(*reference); }

// ---- surfaces: x counts bytes

#define SIMT_SURFACE(dimensions, parameters, x, y, z)                                                                 \
  template <class T> T surf##dimensions##read(cudaSurfaceObject_t surface, SIMT_BARE parameters,                      \
                                              cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, SIMT_HERE) {       \
    T value{};                                                                                                        \
    if (auto* there = simt::program::surface_at(surface, sizeof(T), x, y, z, mode, where))                            \
      simt::program::copy_bytes(&value, there, sizeof value);                                                         \
    return value;                                                                                                     \
  }                                                                                                                   \
  template <class T> void surf##dimensions##read(T* value, cudaSurfaceObject_t surface, SIMT_BARE parameters,         \
                                                 cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, SIMT_HERE) {    \
    *value = surf##dimensions##read<T>(surface, x, SIMT_BARE_##dimensions mode, where);                               \
  }                                                                                                                   \
  template <class T> void surf##dimensions##write(T value, cudaSurfaceObject_t surface, SIMT_BARE parameters,         \
                                                  cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap, SIMT_HERE) {   \
    if (auto* there = simt::program::surface_at(surface, sizeof(T), x, y, z, mode, where))                            \
      simt::program::copy_bytes(there, &value, sizeof value);                                                         \
  }
#define SIMT_BARE_1D
#define SIMT_BARE_2D y,
#define SIMT_BARE_3D y, z,
SIMT_SURFACE(1D, (int x), x, 0, 0)
SIMT_SURFACE(2D, (int x, int y), x, y, 0)
SIMT_SURFACE(3D, (int x, int y, int z), x, y, z)
#undef SIMT_SURFACE
