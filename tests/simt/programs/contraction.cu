// a * b + c is 2^-24 where the product is not rounded, and 0 where it is.
#include <cstdio>

struct Line {
  float offset;
  __device__ float at(float a, float b) const { return a * b + offset; }
};
template <class T> __device__ T muladd(T a, T b, T c) { return a * b + c; }
__host__ __device__ __forceinline__ float both(float a, float b, float c) { return a * b + c; }

__global__ void fused(const float* x, const float* y, const float* z, float* out) {
  auto inside = [=](int i) { return x[i] * y[i] + z[i]; };
  const float product = x[5] * y[5];
  float asked;
  out[0] = x[0] * y[0] + z[0];
  out[1] = muladd(x[1], y[1], z[1]);
  out[2] = both(x[2], y[2], z[2]);
  out[3] = Line{z[3]}.at(x[3], y[3]);
  out[4] = inside(4);
  out[5] = product - -z[5];
  out[6] = -(z[6] - -x[6] * y[6]);
  asm("mul.f32 %0, %1, %2;" : "=f"(asked) : "f"(x[7]), "f"(y[7]));
  out[7] = asked + z[7];
}
__global__ void named(const float* x, const float* y, const float* z, float* out) {
  float asked;
  out[0] = __fadd_rn(x[0] * y[0], z[0]);
  out[1] = __fmul_rn(x[1], y[1]) + z[1];
  out[2] = __fsub_rn(x[2] * y[2], -z[2]);
  asm("mul.rn.f32 %0, %1, %2;" : "=f"(asked) : "f"(x[3]), "f"(y[3]));
  out[3] = asked + z[3];
  asm("add.rn.f32 %0, %1, %2;" : "=f"(asked) : "f"(x[4] * y[4]), "f"(z[4]));
  out[4] = asked;
}
__global__ void wide(const double* x, const double* y, const double* z, double* out) {
  out[0] = x[0] * y[0] + z[0];
  out[1] = __dmul_rn(x[1], y[1]) + z[1];
  out[2] = __dadd_rn(x[2] * y[2], z[2]);
  out[3] = __dsub_rn(x[3] * y[3], -z[3]);
}

template <class T> void fill(T*& x, T value) {
  cudaMallocManaged(&x, 8 * sizeof(T));
  for (int i = 0; i < 8; ++i) x[i] = value;
}
template <class T> void print(const char* name, const T* x, int count) {
  printf("%s", name);
  for (int i = 0; i < count; ++i) printf(" %g", x[i]);
  printf("\n");
}

int main() {
  float *x, *y, *z, *out;
  double *dx, *dy, *dz, *dout;
  fill(x, 1 + 0x1p-12f), fill(y, 1 + 0x1p-12f), fill(z, -(1 + 0x1p-11f)), fill(out, 9.0f);
  fill(dx, 1 + 0x1p-27), fill(dy, 1 + 0x1p-27), fill(dz, -(1 + 0x1p-26)), fill(dout, 9.0);
  fused<<<1, 1>>>(x, y, z, out);
  cudaDeviceSynchronize(), print("fused", out, 8);
  named<<<1, 1>>>(x, y, z, out);
  cudaDeviceSynchronize(), print("named", out, 5);
  wide<<<1, 1>>>(dx, dy, dz, dout);
  cudaDeviceSynchronize(), print("wide", dout, 4);
  out[0] = x[0] * y[0] + z[0], out[1] = both(x[1], y[1], z[1]);
  print("host", out, 2);
}
