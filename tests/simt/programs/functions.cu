// Special functions of the numbers in a file: `functions FROM TO` writes one row of results for each function.
#include <cstdio>
#include <vector>

constexpr int kDoubles = 9, kFloats = 12;

__global__ void doubles(const double *x, double *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double all[kDoubles] = {sinpi(x[i]), cospi(x[i]), normcdf(x[i]), erfcx(x[i]), erfinv(x[i]), erfcinv(x[i]),
                                normcdfinv(x[i]), rcbrt(x[i]), rhypot(x[i], 3.0)};
  for (int k = 0; k < kDoubles; ++k) out[k * n + i] = all[k];
}

__global__ void floats(const double *x, double *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float f = float(x[i]);
  const float all[kFloats] = {sinpif(f), cospif(f), normcdff(f), erfcxf(f), erfinvf(f), erfcinvf(f), normcdfinvf(f), rcbrtf(f),
                              rhypotf(f, 3.0f), norm3df(f, 2, 3), rnorm3df(f, 2, 3), norm4df(f, 1, 2, 3)};
  for (int k = 0; k < kFloats; ++k) out[k * n + i] = all[k];
}

int main(int, char **argv) {
  std::vector<double> values(1 << 16);
  FILE *from = fopen(argv[1], "rb"), *to = fopen(argv[2], "wb");
  const int n = int(fread(values.data(), 8, values.size(), from));
  double *x, *out;
  cudaMallocManaged(&x, n * 8), cudaMallocManaged(&out, n * 8 * (kDoubles + kFloats));
  for (int i = 0; i < n; ++i) x[i] = values[i];
  doubles<<<(n + 127) / 128, 128>>>(x, out, n);
  floats<<<(n + 127) / 128, 128>>>(x, out + n * kDoubles, n);
  if (cudaDeviceSynchronize()) return 1;
  fwrite(out, 8, size_t(n) * (kDoubles + kFloats), to);
  return fclose(to);
}
