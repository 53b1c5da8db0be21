// What a GPU answers, as CUDA's documents say: each check prints a line that ends in "ok" or "WRONG".
#include <cstdio>
#include <cuda_fp16.h>

__host__ __device__ void check(const char *what, long long got, long long want) {
  printf("%s: %lld, wanted %lld: %s\n", what, got, want, got == want ? "ok" : "WRONG");
}

// ---- narrower types moved 16 bytes at a time

__global__ void twice(const __half *x, __half *y) {
  const int i = threadIdx.x * 8;
  __half in[8], out[8];
  *reinterpret_cast<float4 *>(in) = *reinterpret_cast<const float4 *>(x + i);
  for (int k = 0; k < 8; k += 2)
    *reinterpret_cast<half2 *>(&out[k]) = __hadd2(*reinterpret_cast<half2 *>(&in[k]), *reinterpret_cast<half2 *>(&in[k]));
  *reinterpret_cast<float4 *>(y + i) = *reinterpret_cast<float4 *>(out);
}

__global__ void bytes_by_words(const unsigned char *x, int *sums) {
  __shared__ unsigned char tile[512];
  *reinterpret_cast<uint4 *>(&tile[threadIdx.x * 16]) = *reinterpret_cast<const uint4 *>(&x[threadIdx.x * 16]);
  __syncthreads();
  short pair[8];
  *reinterpret_cast<uint4 *>(pair) = *reinterpret_cast<uint4 *>(&tile[threadIdx.x * 16]);
  pair[3] += 256;
  sums[threadIdx.x] = reinterpret_cast<unsigned *>(pair)[1];
}

template <class T>
__global__ void places(int *bad) {
  static __shared__ char a[3];
  __shared__ __align__(128) float b[5];
  float __shared__ c[7];
  __align__(8) __shared__ char d[3];
  __shared__ volatile T e[3];
  __shared__ alignas(64) double f[2];
  extern __shared__ T g[];
  auto off = [](const volatile void *p, int n) { return reinterpret_cast<size_t>(p) % n != 0; };
  *bad = off(a, 16) + off(b, 128) + off(c, 16) + off(d, 16) + off(e, 16) + off(f, 64) + off(g, 16);
}

void narrow_types() {
  __half *x, *y;
  cudaMallocManaged(&x, 512), cudaMallocManaged(&y, 512);
  for (int i = 0; i < 256; ++i) x[i] = __float2half(i), y[i] = __float2half(-1);
  twice<<<1, 32>>>(x, y);
  cudaDeviceSynchronize();
  int wrong = 0;
  for (int i = 0; i < 256; ++i) wrong += __half2float(y[i]) != 2.0f * i;
  check("halves copied as float4", wrong, 0);
  unsigned char *bytes;
  int *sums;
  cudaMallocManaged(&bytes, 512), cudaMallocManaged(&sums, 512);
  for (int i = 0; i < 512; ++i) bytes[i] = i;
  bytes_by_words<<<1, 32>>>(bytes, sums);
  cudaDeviceSynchronize();
  check("shorts read as unsigned", sums[2], 0x28262524);
  places<char><<<1, 1, 64>>>(sums);
  places<short><<<1, 1, 64>>>(sums + 1);
  cudaDeviceSynchronize();
  check("shared variables off 16 bytes", sums[0] + sums[1], 0);
}

// ---- numbers beyond the range of an integer

__device__ int implied(float x) { return x; }
__device__ unsigned char byte_of(float x) { return x; }
__device__ long long passed(long long n) { return n; }
template <class T> __device__ T made(double x) { return T(x); }
enum Kind : unsigned { none };

__global__ void casts(const float *x, const double *d, int n) {
  const float big = x[0], low = x[1], nan = x[2], some = x[3];
  check("(int)1e20f", (int)big, 2147483647);
  check("(int)-1e20f", (int)-big, -2147483648ll);
  check("(int)NaN", (int)nan, 0);
  check("int(1e20f)", int(big), 2147483647);
  check("static_cast<int>(1e20f)", static_cast<int>(big), 2147483647);
  check("(unsigned)-1.f", (unsigned)low, 0);
  check("unsigned(1e10f)", unsigned(1e-10f * big), 4294967295ll);
  check("unsigned(3e9f)", unsigned(some), 3000000000ll);
  check("(int)3e9f", (int)some, 2147483647);
  check("unsigned(NaN)", unsigned(nan), 0);
  check("(long long)1e300", (long long)d[0], 9223372036854775807ll);
  check("(long long)-1e300", (long long)-d[0], -9223372036854775807ll - 1);
  check("(unsigned long long)1e300", (unsigned long long)d[0], -1);
  check("(unsigned long long)1e19", (unsigned long long)d[1], (long long)10000000000000000000ull);
  check("(unsigned long long)-1.f", (unsigned long long)low, 0);
  check("(unsigned long long)NaN", (unsigned long long)nan, 0);
  check("(unsigned long long)1e20f", (unsigned long long)big, -1);
  check("(short)1e20f", (short)big, -1);             // the lower bits of 2147483647, as nvcc compiles it
  check("(short)70000.f", (short)x[4], 4464);
  check("(signed char)-1e20f", (signed char)-big, 0);
  check("(unsigned char)300.f", (unsigned char)x[5], 44);
  check("(unsigned char)-3.f", (unsigned char)(3 * low), 0);
  check("(unsigned short)1e20f", (unsigned short)big, 65535);
  check("(bool)1e20f", (bool)big, 1);
  check("(Kind)-1.f", (Kind)low, 0);
  int implicit = big;
  check("int i = 1e20f", implicit, 2147483647);
  unsigned below = low;
  check("unsigned u = -1.f", below, 0);
  check("returned as int", implied(-big), -2147483648ll);
  check("returned as unsigned char", byte_of(low), 0);
  check("passed as long long", passed(big), 9223372036854775807ll);
  int sum = 5;
  sum += big;
  check("int += 1e20f", sum, 2147483647);
  unsigned long long product = 2;
  product *= low;
  check("unsigned long long *= -1.f", product, 0);
  check("a template's T(x)", made<unsigned>(d[0]) + 1u, 0);
  check("(int)(half)infinity", (int)__float2half(big), 2147483647);
  check("__float2int_rn(1e20f)", __float2int_rn(big), 2147483647);
  check("__float2int_rz(NaN)", __float2int_rz(nan), 0);
  check("__float2int_rd(-1e20f)", __float2int_rd(-big), -2147483648ll);
  check("__float2uint_rn(-1.f)", __float2uint_rn(low), 0);
  check("__double2ll_ru(1e300)", __double2ll_ru(d[0]), 9223372036854775807ll);
  check("__half2int_rz(infinity)", __half2int_rz(__float2half(big)), 2147483647);
  check("__half2int_rn(NaN)", __half2int_rn(__float2half(nan)), 0);
  int wrong = 0;
  for (int i = 0; i < n; ++i) {  // the same number each time: its conversion is not to be moved out of the loop
    unsigned at = low;
    int other = i + big;
    wrong += (at != 0) + (other != 2147483647) + ((unsigned)(i + 0.5f) != unsigned(i)) + ((int)(-i - 0.5f) != -i);
  }
  check("in a loop", wrong, 0);
  short both = n ? (short)big : (short)low;
  check("on one side of a choice", both, -1);
}

void conversions() {
  float h[6] = {1e20f, -1, __builtin_nanf(""), 3e9f, 70000, 300}, *x;
  double g[2] = {1e300, 1e19}, *d;
  cudaMalloc(&x, sizeof h), cudaMalloc(&d, sizeof g);
  cudaMemcpy(x, h, sizeof h, cudaMemcpyHostToDevice), cudaMemcpy(d, g, sizeof g, cudaMemcpyHostToDevice);
  casts<<<1, 1>>>(x, d, 50);
  cudaDeviceSynchronize();
}

// ---- what a pointer is

__managed__ int managed[4];
__device__ int variable[4];

int type_of(const void *p) {
  cudaPointerAttributes all;
  all.type = (cudaMemoryType)9;
  return cudaPointerGetAttributes(&all, p) ? -1 : (int)all.type;
}

void pointers() {
  int local, *device, *both, *pinned, *plain = (int *)malloc(64), *symbol, *same;
  cudaMalloc(&device, 64), cudaMallocManaged(&both, 64), cudaMallocHost(&pinned, 64);
  cudaGetSymbolAddress((void **)&symbol, variable);
  check("type of cudaMalloc", type_of(device), 2);
  check("type of its last byte", type_of((char *)device + 63), 2);
  check("type of what lies behind", type_of((char *)device + 64), 0);
  check("type of cudaMallocManaged", type_of(both), 3);
  check("type of __managed__", type_of(&managed[3]), 3);
  check("type of __device__", type_of(symbol + 3), 2);
  check("type of cudaMallocHost", type_of(pinned), 1);
  check("type of the stack", type_of(&local), 0);
  check("type of malloc", type_of(plain), 0);
  check("registered", cudaHostRegister(plain, 64, 0), cudaSuccess);
  check("type of registered", type_of(plain), 1);
  check("registered twice", cudaHostRegister(plain, 64, 0), cudaErrorHostMemoryAlreadyRegistered);
  check("device's pointer of it", cudaHostGetDevicePointer(&same, plain, 0) || same != plain, 0);
  check("cudaFree of registered", cudaFree(plain), cudaErrorInvalidValue);
  check("cudaFree of __device__", cudaFree(symbol), cudaErrorInvalidValue);
  check("unregistered", cudaHostUnregister(plain), cudaSuccess);
  check("type of unregistered", type_of(plain), 0);
  check("unregistered twice", cudaHostUnregister(plain), cudaErrorHostMemoryNotRegistered);
  check("device's pointer of the stack", cudaHostGetDevicePointer(&same, &local, 0), cudaErrorInvalidValue);
  cudaPointerAttributes all;
  cudaPointerGetAttributes(&all, device);
  check("device memory on the host", all.hostPointer == nullptr && all.devicePointer == device && all.device == 0, 1);
  check("cudaFree of host memory", cudaFree(pinned), cudaErrorInvalidValue);
  check("cudaFreeHost of device memory", cudaFreeHost(device), cudaErrorInvalidValue);
  check("cudaFree", cudaFree(device), cudaSuccess);
  check("cudaFree twice", cudaFree(device), cudaErrorInvalidValue);
  check("type of freed", type_of(device), 0);
  check("last error", cudaGetLastError(), cudaErrorInvalidValue);
}

// ---- events

void events() {
  cudaEvent_t a, b, untimed;
  float ms = -1;
  cudaEventCreate(&a), cudaEventCreate(&b), cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming);
  check("elapsed of none recorded", cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
  check("query of none recorded", cudaEventQuery(a), cudaSuccess);
  cudaEventRecord(a);
  check("elapsed of one recorded", cudaEventElapsedTime(&ms, a, b), cudaErrorInvalidResourceHandle);
  cudaEventRecord(b), cudaEventRecord(untimed);
  check("elapsed of two recorded", cudaEventElapsedTime(&ms, a, b) || !(ms >= 0), 0);
  check("elapsed of an untimed one", cudaEventElapsedTime(&ms, a, untimed), cudaErrorInvalidResourceHandle);
  check("shared between processes and timed", cudaEventCreateWithFlags(&b, cudaEventInterprocess), cudaErrorInvalidValue);
  check("unknown flag", cudaEventCreateWithFlags(&b, 8), cudaErrorInvalidValue);
  check("destroyed", cudaEventDestroy(a), cudaSuccess);
  check("recorded once destroyed", cudaEventRecord(a), cudaErrorInvalidResourceHandle);
  check("null", cudaEventSynchronize(nullptr), cudaErrorInvalidResourceHandle);
  cudaGetLastError();
}

// ---- limits, of static shared memory too

template <int N> __global__ void with_static(float *x) {
  __shared__ float tile[N];
  tile[threadIdx.x] = 1;
  __syncthreads();
  x[0] = tile[0];
}
extern "C" __global__ void by_c_name(float *x) {
  __shared__ float tile[100];
  tile[threadIdx.x] = 1;
  __syncthreads();
  x[0] = tile[0];
}

void limits() {
  float *x;
  cudaMalloc(&x, 4);
  with_static<12288><<<1, 32>>>(x);
  check("48 KiB of static shared memory", cudaGetLastError(), cudaSuccess);
  with_static<12289><<<1, 32>>>(x);
  check("4 bytes more", cudaGetLastError(), cudaErrorInvalidValue);
  with_static<8000><<<1, 32, 17152>>>(x);
  check("48 KiB of both kinds", cudaGetLastError(), cudaSuccess);
  with_static<8000><<<1, 32, 17153>>>(x);
  check("and a byte more", cudaGetLastError(), cudaErrorInvalidValue);
  auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  check("more is allowed", cudaFuncSetAttribute(with_static<8000>, attribute, 69376), cudaSuccess);
  check("but no more than there is", cudaFuncSetAttribute(with_static<8000>, attribute, 69377), cudaErrorInvalidValue);
  cudaGetLastError();
  with_static<8000><<<1, 32, 69376>>>(x);
  check("all there is", cudaGetLastError(), cudaSuccess);
  cudaFuncAttributes all;
  cudaFuncGetAttributes(&all, with_static<8000>);
  check("static bytes", all.sharedSizeBytes, 32000);
  cudaFuncGetAttributes(&all, by_c_name);
  check("static bytes of extern C", all.sharedSizeBytes, 400);
  check("dynamic bytes left", all.maxDynamicSharedSizeBytes, 48 * 1024 - 400);
  size_t value;
  cudaDeviceGetLimit(&value, cudaLimitPrintfFifoSize);
  check("printf's buffer", value, 1 << 20);
  cudaDeviceSetLimit(cudaLimitMallocHeapSize, 1 << 25), cudaDeviceGetLimit(&value, cudaLimitMallocHeapSize);
  check("a limit that was set", value, 1 << 25);
  check("an unknown limit", cudaDeviceGetLimit(&value, (cudaLimit)77), cudaErrorUnsupportedLimit);
  cudaGetLastError();
}

int main() {
  narrow_types();
  conversions();
  pointers();
  events();
  limits();
}
