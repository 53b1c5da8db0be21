// How arrays are kept and textures read. Filtering follows the CUDA programming guide, "Texture Fetching": the weights of a
// linear filter have 8 bits behind the point.

#include "textures.h"

#include <cmath>

cudaError_t cudaMalloc3DArray(cudaArray_t* array, const cudaChannelFormatDesc* desc, cudaExtent extent, unsigned flags) {
  auto* made = new cudaArray{*desc, extent, flags, size_t(desc->x + desc->y + desc->z + desc->w) / 8, nullptr};
  const size_t bytes = made->pitch() * made->rows() * made->slices();
  made->data = static_cast<unsigned char*>(std::calloc(bytes ? bytes : 1, 1));
  if (!made->data) {
    delete made;
    return simt::program::fail_with(cudaErrorMemoryAllocation);
  }
  *array = made;
  return simt::program::checked();
}

cudaError_t cudaFreeArray(cudaArray_t array) {
  if (array) std::free(array->data);
  delete array;
  return simt::program::checked();
}

// Rows of a rectangle; false if it does not lie in the array. x and width in bytes.
static bool lies_in(const cudaArray& a, size_t x, size_t y, size_t z, size_t width, size_t height, size_t depth) {
  return x <= a.pitch() && width <= a.pitch() - x && y + height <= a.rows() && z + depth <= a.slices();
}

static unsigned char* at(const cudaArray& a, size_t x, size_t y, size_t z) {
  return a.data + (z * a.rows() + y) * a.pitch() + x;
}

cudaError_t cudaMemcpy2DToArray(cudaArray_t to, size_t x, size_t y, const void* from, size_t pitch, size_t width,
                                size_t height, cudaMemcpyKind) {
  if (!lies_in(*to, x, y, 0, width, height, 1)) return simt::program::fail_with(cudaErrorInvalidValue);
  return simt::program::copy_rows(at(*to, x, y, 0), to->pitch(), from, pitch, width, height);
}

cudaError_t cudaMemcpy2DFromArray(void* to, size_t pitch, cudaArray_const_t from, size_t x, size_t y, size_t width,
                                  size_t height, cudaMemcpyKind) {
  if (!lies_in(*from, x, y, 0, width, height, 1)) return simt::program::fail_with(cudaErrorInvalidValue);
  return simt::program::copy_rows(to, pitch, at(*from, x, y, 0), from->pitch(), width, height);
}

static bool holds(const cudaArray& a, size_t x, size_t y, size_t bytes) {
  const size_t begin = y * a.pitch() + x, all = a.pitch() * a.rows() * a.slices();
  return begin <= all && bytes <= all - begin;
}

cudaError_t cudaMemcpyToArray(cudaArray_t to, size_t x, size_t y, const void* from, size_t bytes, cudaMemcpyKind) {
  if (!holds(*to, x, y, bytes)) return simt::program::fail_with(cudaErrorInvalidValue);
  return simt::program::copy(at(*to, x, y, 0), from, bytes);
}

cudaError_t cudaMemcpyFromArray(void* to, cudaArray_const_t from, size_t x, size_t y, size_t bytes, cudaMemcpyKind) {
  if (!holds(*from, x, y, bytes)) return simt::program::fail_with(cudaErrorInvalidValue);
  return simt::program::copy(to, at(*from, x, y, 0), bytes);
}

// The extent counts elements if an array takes part, bytes otherwise; a position in an array counts elements.
cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* p) {
  const cudaArray* array = p->srcArray ? p->srcArray : p->dstArray;
  const size_t element = array ? array->element : 1, width = p->extent.width * element;
  const auto place = [&](cudaArray_t a, const cudaPitchedPtr& pointer, const cudaPos& pos, size_t z) {
    if (a) return at(*a, pos.x * element, pos.y, pos.z + z);
    return static_cast<unsigned char*>(pointer.ptr) + ((pos.z + z) * pointer.ysize + pos.y) * pointer.pitch + pos.x;
  };
  for (auto [a, pos] : {std::pair{p->srcArray, p->srcPos}, {p->dstArray, p->dstPos}})
    if (a && !lies_in(*a, pos.x * element, pos.y, pos.z, width, p->extent.height, p->extent.depth))
      return simt::program::fail_with(cudaErrorInvalidValue);
  for (size_t z = 0; z < p->extent.depth; ++z)
    simt::program::copy_rows(place(p->dstArray, p->dstPtr, p->dstPos, z),
                             p->dstArray ? p->dstArray->pitch() : p->dstPtr.pitch,
                             place(p->srcArray, p->srcPtr, p->srcPos, z),
                             p->srcArray ? p->srcArray->pitch() : p->srcPtr.pitch, width, p->extent.height);
  return simt::program::checked();
}

// ---- textures

namespace simt::program {

void copy_bytes(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

Texture texture_of(const cudaResourceDesc& resource, const cudaTextureDesc& how) {
  Texture t;
  t.how = how;
  const auto channels = [&](const cudaChannelFormatDesc& d) {
    t.channels = (d.x > 0) + (d.y > 0) + (d.z > 0) + (d.w > 0);
    t.bytes = d.x / 8;
    t.kind = d.f;
  };
  if (resource.resType == cudaResourceTypeArray) {
    const cudaArray& a = *resource.res.array.array;
    channels(a.desc);
    t.data = a.data, t.pitch = a.pitch(), t.slice = a.pitch() * a.rows();
    t.size[0] = a.extent.width, t.size[1] = a.rows(), t.size[2] = a.slices();
  } else if (resource.resType == cudaResourceTypeLinear) {
    const auto& linear = resource.res.linear;
    channels(linear.desc);
    t.data = static_cast<const unsigned char*>(linear.devPtr);
    t.size[0] = linear.sizeInBytes / size_t(t.bytes * t.channels);
  } else {
    const auto& rows = resource.res.pitch2D;
    channels(rows.desc);
    t.data = static_cast<const unsigned char*>(rows.devPtr);
    t.size[0] = rows.width, t.size[1] = rows.height, t.pitch = rows.pitchInBytes;
  }
  return t;
}

// The texel that coordinate i stands for, or -1: the border.
static long long wrapped(const Texture& t, int dimension, long long i) {
  const long long n = (long long)t.size[dimension];
  auto mode = t.how.addressMode[dimension];
  if (i >= 0 && i < n) return i;
  if (!t.how.normalizedCoords && mode != cudaAddressModeBorder) mode = cudaAddressModeClamp;
  if (mode == cudaAddressModeBorder) return -1;
  if (mode == cudaAddressModeClamp) return i < 0 ? 0 : n - 1;
  const long long period = mode == cudaAddressModeMirror ? 2 * n : n, within = (i % period + period) % period;
  return within < n ? within : period - 1 - within;
}

static float channel(const Texture& t, const unsigned char* from) {
  const bool normalized = t.how.readMode == cudaReadModeNormalizedFloat;
  const auto as = [&](auto zero) {
    decltype(zero) value;
    std::memcpy(&value, from, sizeof value);
    if (!normalized || !std::is_integral_v<decltype(zero)>) return float(value);
    return std::max(-1.0f, float(value) / float(std::numeric_limits<decltype(zero)>::max()));
  };
  if (t.kind == cudaChannelFormatKindFloat) return t.bytes == 2 ? from_half(*reinterpret_cast<const uint16_t*>(from)) : as(0.0f);
  if (t.kind == cudaChannelFormatKindSigned) return t.bytes == 1 ? as(int8_t{}) : t.bytes == 2 ? as(int16_t{}) : as(int32_t{});
  return t.bytes == 1 ? as(uint8_t{}) : t.bytes == 2 ? as(uint16_t{}) : as(uint32_t{});
}

static const unsigned char* texel(const Texture& t, const long long* i, int layer) {
  for (int k = 0; k < 3; ++k)
    if (i[k] < 0) return nullptr;
  const size_t z = layer > 0 ? std::min(size_t(layer), t.size[2] - 1) : size_t(i[2]);
  return t.data + z * t.slice + size_t(i[1]) * t.pitch + size_t(i[0]) * size_t(t.bytes * t.channels);
}

static float scaled(const Texture& t, int k, float at) {
  return t.how.normalizedCoords ? at * float(t.size[k]) : at;
}

void fetch_raw(const Texture& t, int dimensions, const float* at, int layer, void* out, size_t bytes) {
  long long i[3] = {0, 0, 0};
  for (int k = 0; k < dimensions; ++k) i[k] = wrapped(t, k, (long long)std::floor(scaled(t, k, at[k])));
  const unsigned char* from = t.data ? texel(t, i, layer) : nullptr;
  std::memset(out, 0, bytes);
  if (from) std::memcpy(out, from, std::min(bytes, size_t(t.bytes * t.channels)));
}

void fetch(const Texture& t, int dimensions, const float* at, int layer, float* out) {
  long long low[3] = {0, 0, 0};
  float weight[3] = {0, 0, 0};
  const bool linear = t.how.filterMode == cudaFilterModeLinear;
  for (int k = 0; k < dimensions; ++k) {
    const float x = scaled(t, k, at[k]) - (linear ? 0.5f : 0);
    low[k] = (long long)std::floor(x);
    if (linear) weight[k] = std::round((x - std::floor(x)) * 256) / 256;
  }
  for (int c = 0; c < 4; ++c) out[c] = 0;
  for (int corner = 0; corner < 1 << (linear ? dimensions : 0); ++corner) {
    long long i[3] = {0, 0, 0};
    float share = 1;
    for (int k = 0; k < dimensions; ++k) {
      const bool high = corner >> k & 1;
      i[k] = wrapped(t, k, low[k] + high);
      share *= high ? weight[k] : 1 - weight[k];
    }
    const unsigned char* from = t.data ? texel(t, i, layer) : nullptr;
    for (int c = 0; c < t.channels && share != 0; ++c)
      out[c] += share * (from ? channel(t, from + c * t.bytes) : t.how.borderColor[c]);
  }
}

void fetch_at(const Texture& t, long long index, void* out, size_t bytes, bool as_float) {
  const bool there = t.data && index >= 0 && index < (long long)t.size[0];
  const unsigned char* from = t.data + size_t(there ? index : 0) * size_t(t.bytes * t.channels);
  std::memset(out, 0, bytes);
  if (!there) return;
  if (!as_float) return void(std::memcpy(out, from, std::min(bytes, size_t(t.bytes * t.channels))));
  for (int c = 0; c < t.channels; ++c) static_cast<float*>(out)[c] = channel(t, from + c * t.bytes);
}

int cube_face(const float* d, float* at) {  // CUDA programming guide, table "Cubemap Fetch"
  const float x = std::fabs(d[0]), y = std::fabs(d[1]), z = std::fabs(d[2]);
  int face;
  float m, s, t;
  if (x >= y && x >= z) face = d[0] < 0, m = x, s = face ? d[2] : -d[2], t = -d[1];
  else if (y >= z) face = 2 + (d[1] < 0), m = y, s = d[0], t = face == 3 ? -d[2] : d[2];
  else face = 4 + (d[2] < 0), m = z, s = face == 5 ? -d[0] : d[0], t = -d[1];
  at[0] = (s / m + 1) / 2, at[1] = (t / m + 1) / 2;
  return face;
}

unsigned char* surface_at(cudaSurfaceObject_t surface, size_t bytes, int x, int y, int z, cudaSurfaceBoundaryMode mode,
                          Where where) {
  const cudaArray& a = *reinterpret_cast<const cudaArray*>(surface);
  const bool inside = x >= 0 && y >= 0 && z >= 0 && lies_in(a, size_t(x), size_t(y), size_t(z), bytes, 1, 1);
  if (inside) return at(a, size_t(x), size_t(y), size_t(z));
  if (mode == cudaBoundaryModeTrap) fail("access to a surface beyond its edge", where);
  if (mode == cudaBoundaryModeZero) return nullptr;
  const auto within = [](int i, size_t n) { return i < 0 ? 0 : std::min(size_t(i), n - 1); };
  return at(a, std::min(size_t(std::max(x, 0)), a.pitch() - bytes), within(y, a.rows()), within(z, a.slices()));
}

}  // namespace simt::program

cudaError_t cudaCreateTextureObject(cudaTextureObject_t* object, const cudaResourceDesc* resource,
                                    const cudaTextureDesc* how, const cudaResourceViewDesc*) {
  if (resource->resType == cudaResourceTypeMipmappedArray) return simt::program::fail_with(cudaErrorNotSupported);
  *object = reinterpret_cast<cudaTextureObject_t>(new simt::program::Texture(simt::program::texture_of(*resource, *how)));
  return simt::program::checked();
}

cudaError_t cudaDestroyTextureObject(cudaTextureObject_t object) {
  delete reinterpret_cast<simt::program::Texture*>(object);
  return simt::program::checked();
}
