// Arithmetic of 16-bit floats, one operation to a row of `out`; the test compares each with exact rationals.
template <class T>
__device__ void all_of(T a, T b, T c, T* out, int i, int n) {
  const T results[] = {a + b, a - b, a * b, a / b, __hfma(a, b, c), __hadd(a, b), __hsub(a, b), __hmul(a, b)};
  for (int k = 0; k < 8; ++k) out[k * n + i] = results[k];
  T x = a;
  x += b, out[8 * n + i] = x, x = a;
  x -= b, out[9 * n + i] = x, x = a;
  x *= b, out[10 * n + i] = x, x = a;
  x /= b, out[11 * n + i] = x;
  out[16 * n + i] = T(fmaf(float(a), float(b), float(c)));  // two roundings: what the table must tell from one
}

template <class T, class Pair>
__device__ void pairs_of(T a, T b, T c, T* out, int i, int n) {
  const Pair two_a(c, a), two_b(c, b), two_c(a, c);
  out[12 * n + i] = __hadd2(two_a, two_b).y;
  out[13 * n + i] = __hmul2(two_a, two_b).y;
  out[14 * n + i] = __hfma2(two_a, two_b, two_c).y;
  out[15 * n + i] = (two_a - two_b).y;
}

template <class T, class Pair>
__global__ void arithmetic(const T* a, const T* b, const T* c, T* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  all_of(a[i], b[i], c[i], out, i, n);
  pairs_of<T, Pair>(a[i], b[i], c[i], out, i, n);
}

template <class T>
__global__ void conversions(const double* d, const int64_t* l, T* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = T(d[i]), out[n + i] = T((long long)l[i]), out[2 * n + i] = T(float(d[i]));
}

extern "C" void halves(const __half* a, const __half* b, const __half* c, __half* out, int n) {
  LAUNCH((arithmetic<__half, __half2>), (n + 255) / 256, 256, 0, nullptr)(a, b, c, out, n);
}
extern "C" void brains(const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c, __nv_bfloat16* out, int n) {
  LAUNCH((arithmetic<__nv_bfloat16, __nv_bfloat162>), (n + 255) / 256, 256, 0, nullptr)(a, b, c, out, n);
}
extern "C" void to_halves(const double* d, const int64_t* l, __half* out, int n) {
  LAUNCH((conversions<__half>), (n + 255) / 256, 256, 0, nullptr)(d, l, out, n);
}
extern "C" void to_brains(const double* d, const int64_t* l, __nv_bfloat16* out, int n) {
  LAUNCH((conversions<__nv_bfloat16>), (n + 255) / 256, 256, 0, nullptr)(d, l, out, n);
}
