// RoPE: every pair (x0, x1) of every head becomes (x0 cos - x1 sin, x1 cos + x0 sin) (arXiv 2104.09864, eq. 34).
//
// 3 FLOPs an element; compulsory bytes, for elements of e bytes: 2 e T (H + K) d for x and y, 4 T d for the table of
// (cos, sin). Arithmetic in fp32, rounded once. The backward pass is the same kernel with -sin.
//
// The road, in bytes a token issues (32 for each sector of each request) for 32 + 8 heads, d = 128, bf16; compulsory are
// 20480 for x and y and 512 for the table's row:
//
//   version  idea                                   interleaved     half-split      requests for x    launches
//   1        a thread a pair, element by element    40960 + 20480   20480 + 20480   160               2
//   2        two neighbours in one access           20480 + 20480   20480 + 20480   80                2
//   3        16 bytes in one access                 20480 + 20480   20480 + 10240   20                2
//   4        a warp a token: the row once, q and k  20480 + 512     20480 + 512     20                1
//
// Version 1, interleaved, touches every sector of x and y twice, once for either element of a pair. Versions 1 to 3 read
// the row again for every head (version 3, half-split, for every four: a warp has four heads in one request). All of
// it is asserted by tests/simt/test_simt_profile_rope.py. Here are versions 1 to 3, for one contiguous tensor; version 4,
// which the operators launch, is in rope_vectors.cuh.
#pragma once

#include "../launch.h"

namespace minillama::kernels {

constexpr int kRopeThreads = 128;

// N neighbouring elements, loaded and stored at once.
template <class T, int N>
struct alignas(N * sizeof(T)) RopeVector {
  T element[N];
};

template <class T>
__device__ void turn(T& first, T& second, float c, float s) {
  const float x0 = float(first), x1 = float(second);
  first = T(x0 * c - x1 * s);
  second = T(x1 * c + x0 * s);
}

// The pairs that a thread holds: interleaved, whole pairs in one vector `a`; half-split, their firsts in `a` and their
// seconds in `b`, which begins `half` columns later. `at` is the first column.
template <class T, int N, bool interleaved>
struct RopePairs {
  static constexpr int Pairs = interleaved ? N / 2 : N;
  RopeVector<T, N> a, b;

  __device__ void load(const T* head, int at, int half) {
    a = *reinterpret_cast<const RopeVector<T, N>*>(head + at);
    if (!interleaved) b = *reinterpret_cast<const RopeVector<T, N>*>(head + half + at);
  }
  __device__ void turn_by(const float (&c)[Pairs], const float (&s)[Pairs]) {
#pragma unroll
    for (int j = 0; j < Pairs; ++j) {
      if (interleaved)
        turn(a.element[2 * j % N], a.element[(2 * j + 1) % N], c[j], s[j]);
      else
        turn(a.element[j], b.element[j], c[j], s[j]);
    }
  }
  __device__ void store(T* head, int at, int half) const {
    *reinterpret_cast<RopeVector<T, N>*>(head + at) = a;
    if (!interleaved) *reinterpret_cast<RopeVector<T, N>*>(head + half + at) = b;
  }
};

template <class T, bool interleaved>
__global__ void rope_v1(const T* __restrict__ x, const float2* __restrict__ rotations, T* __restrict__ y, int heads,
                        int half) {
  const int64_t token = blockIdx.x, start = token * heads * (2 * half);
  for (int pair = threadIdx.x; pair < heads * half; pair += kRopeThreads) {
    const int head = pair / half, i = pair % half;
    const int64_t first = start + head * (2 * half) + (interleaved ? 2 * i : i);
    const int64_t second = first + (interleaved ? 1 : half);
    const float2 angle = rotations[token * half + i];
    const float x0 = float(x[first]), x1 = float(x[second]);
    y[first] = T(x0 * angle.x - x1 * angle.y);
    y[second] = T(x1 * angle.x + x0 * angle.y);
  }
}

// What versions 2 and 3 have in common: N elements in one access, and the table's row again for every head.
template <class T, int N, bool interleaved>
__device__ void turn_token(const T* x, const float2* rotations, T* y, int heads, int half) {
  constexpr int Pairs = RopePairs<T, N, interleaved>::Pairs, Together = Pairs < 2 ? 1 : 2;
  const int64_t token = blockIdx.x, start = token * heads * (2 * half);
  const int chunks = half / Pairs;
  for (int i = threadIdx.x; i < heads * chunks; i += kRopeThreads) {
    const int head = i / chunks, chunk = i % chunks;
    const int64_t begin = start + head * (2 * half);
    float c[Pairs], s[Pairs];
#pragma unroll
    for (int j = 0; j < Pairs; j += Together) {  // (cos, sin) of two pairs are 16 bytes
      const float2* from = rotations + token * half + chunk * Pairs + j;
      const auto angles = *reinterpret_cast<const RopeVector<float, 2 * Together>*>(from);
#pragma unroll
      for (int n = 0; n < Together; ++n) c[j + n] = angles.element[2 * n], s[j + n] = angles.element[2 * n + 1];
    }
    RopePairs<T, N, interleaved> pairs;
    pairs.load(x + begin, chunk * N, half);
    pairs.turn_by(c, s);
    pairs.store(y + begin, chunk * N, half);
  }
}

template <class T, bool interleaved>
__global__ void rope_v2(const T* __restrict__ x, const float2* __restrict__ rotations, T* __restrict__ y, int heads,
                        int half) {
  turn_token<T, 2, interleaved>(x, rotations, y, heads, half);
}

template <class T, bool interleaved>
__global__ void rope_v3(const T* __restrict__ x, const float2* __restrict__ rotations, T* __restrict__ y, int heads,
                        int half) {
  turn_token<T, 16 / sizeof(T), interleaved>(x, rotations, y, heads, half);
}

template <class T, bool interleaved>
void launch_rope_version(int version, const void* x_, const float* rotations_, void* y_, int64_t tokens, int heads,
                         int half, cudaStream_t stream) {
  const auto* x = static_cast<const T*>(x_);
  const auto* rotations = reinterpret_cast<const float2*>(rotations_);
  auto* y = static_cast<T*>(y_);
  const dim3 blocks{unsigned(tokens)};
  if (version == 1) LAUNCH((rope_v1<T, interleaved>), blocks, kRopeThreads, 0, stream)(x, rotations, y, heads, half);
  if (version == 2) LAUNCH((rope_v2<T, interleaved>), blocks, kRopeThreads, 0, stream)(x, rotations, y, heads, half);
  if (version == 3) LAUNCH((rope_v3<T, interleaved>), blocks, kRopeThreads, 0, stream)(x, rotations, y, heads, half);
}

inline bool on_16_bytes(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

void rope_version(int version, DType dtype, const void* x, const float* rotations, void* y, int64_t tokens,
                  int64_t heads, int64_t half, bool interleaved, void* stream) {
  const int64_t vector = version == 3 ? (dtype == DType::f32 ? 4 : 8) : version;  // elements in one access
  if (version < 1 || version > 3 || half % vector || !on_16_bytes(x) || !on_16_bytes(y) || !on_16_bytes(rotations) ||
      tokens > INT32_MAX || heads * half > INT32_MAX / 2)
    throw std::runtime_error("rope_version: versions 1, 2 and 3 want half a multiple of their 1, 2 and 8 (fp32: 4) "
                             "elements, and memory at multiples of 16 bytes");
  if (tokens * heads * half == 0) return;
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto run = interleaved ? launch_rope_version<T, true> : launch_rope_version<T, false>;
    run(version, x, rotations, y, tokens, int(heads), int(half), static_cast<cudaStream_t>(stream));
  });
  check_launch("rope_version");
}

}  // namespace minillama::kernels
