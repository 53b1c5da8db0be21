// Sound programs about types: structs, unions, templates, lambdas, halves, textures. Each prints one line, which a comment
// foretells by arithmetic.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>
#include <vector>

template <class T>
class Managed {
  T *at_ = nullptr;
  int size_;

 public:
  explicit Managed(int n) : size_(n) {
    cudaMallocManaged(&at_, n * sizeof(T));
    for (int i = 0; i < n; ++i) at_[i] = T();
  }
  ~Managed() { cudaFree(at_); }
  __host__ __device__ T &operator[](int i) { return at_[i]; }
  T *get() { return at_; }
};

// prints: vectors 30 14
class Vec3 {
 public:
  float x, y, z;
  __host__ __device__ Vec3() : x(0), y(0), z(0) {}
  __host__ __device__ Vec3(float a, float b, float c) : x(a), y(b), z(c) {}
  __host__ __device__ Vec3 operator+(const Vec3 &o) const { return Vec3(x + o.x, y + o.y, z + o.z); }
  __host__ __device__ float dot(const Vec3 &o) const { return x * o.x + y * o.y + z * o.z; }
};
__global__ void vectors(Vec3 *out) {
  Vec3 all[4], sum;
  for (int i = 0; i < 4; i++) all[i] = Vec3(i, i + 1, i + 2);
  for (int i = 0; i < 4; i++) sum = sum + all[i];
  out[threadIdx.x] = sum;
}

// prints: padding 7 2.5 1
struct Record {
  char tag;  // three bytes of padding follow
  int id;
  double weight;
  bool used;  // and seven more
};
__global__ void make_records(Record *all) {
  all[threadIdx.x].tag = 'a';
  all[threadIdx.x].id = threadIdx.x;
  all[threadIdx.x].weight = threadIdx.x * 0.5;
  all[threadIdx.x].used = threadIdx.x % 2;
}
__global__ void move_records(const Record *from, Record *to) {
  Record mine = from[threadIdx.x];
  mine.id += 2;
  to[31 - threadIdx.x] = mine;
}

// prints: bit fields 5 9 1
struct Flags {
  unsigned kind : 3, level : 5, rest : 23, on : 1;
};
__global__ void set_flags(Flags *f) {
  f[threadIdx.x].kind = 5;
  f[threadIdx.x].level = threadIdx.x;
  f[threadIdx.x].on = true;
}

// prints: union 1065353216 1.5
union Word {
  float f;
  int i;
  unsigned char bytes[4];
};
__global__ void reinterpret(Word *w) {
  Word mine;
  mine.f = 1.0f;
  w[0].i = mine.i;
  mine.bytes[2] = 0xc0;
  w[1] = mine;
}

// prints: functors 3 12 15
struct Scale {
  int by;
  __device__ int operator()(int x) const { return by * x; }
};
template <class F>
__global__ void apply(int *x, F f) {
  x[threadIdx.x] = f(x[threadIdx.x]);
}

// prints: dispatch 6 9
enum class Kind { sum, square };
template <Kind K, typename... Ts>
__device__ int combine(int first, Ts... rest) {
  if constexpr (K == Kind::sum) {
    if constexpr (sizeof...(rest) == 0) return first;
    else return first + combine<K>(rest...);
  } else {
    return first * first;
  }
}
__global__ void dispatch(int *out) { out[0] = combine<Kind::sum>(1, 2, 3), out[1] = combine<Kind::square>(3); }

// prints: halves 4.25 0.333252 2048
__global__ void halves(const __half *x, __half *y) {
  const int i = threadIdx.x;
  __half2 pair = __halves2half2(x[i], x[i + 1]);
  pair = __hfma2(pair, pair, __float2half2_rn(0.5f));
  y[i] = __hadd(__low2half(pair), __high2half(pair));
  if (i == 0) y[1] = __hdiv(__float2half(1.0f), __float2half(3.0f)), y[2] = __float2half(2049.0f);
}

// prints: bfloat 3.14062 256
__global__ void bfloats(__nv_bfloat16 *y) {
  y[0] = __float2bfloat16(3.14159265f);
  y[1] = __hmul(__float2bfloat16(16.0f), __float2bfloat16(16.0f)) + __float2bfloat16(0.5f);
}

// prints: vector loads 136 16
__global__ void vector_loads(const float4 *in, float4 *out) {
  float4 v = in[threadIdx.x], w;
  w.x = v.w, w.y = v.z, w.z = v.y, w.w = v.x;
  out[threadIdx.x] = w;
}

// prints: pointers 12 7
typedef int (*Operation)(int, int);
__device__ int plus(int a, int b) { return a + b; }
__device__ int times(int a, int b) { return a * b; }
__device__ Operation operations[2] = {times, plus};
__global__ void pointers(int *out) { out[threadIdx.x] = operations[threadIdx.x](3, 4); }

// prints: recursion 55
__device__ int fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
__global__ void recursion(int *out) { *out = fibonacci(10); }

// prints: texture 2.5 4
__global__ void sample(cudaTextureObject_t texture, float *out) {
  out[0] = tex2D<float>(texture, 1.5f, 1.0f);  // halfway between two rows
  out[1] = tex2D<float>(texture, 0.5f, 2.5f);
}

// prints: list 10
struct Node {
  int value;
  Node *next;
};
__global__ void build_list(Node *pool, Node **head) {
  Node *last = nullptr;
  for (int i = 0; i < 5; ++i) {
    Node *one = &pool[i];
    one->value = i;
    one->next = last;
    last = one;
  }
  *head = last;
}
__global__ void walk(Node **head, int *sum) {
  int all;
  all = 0;
  for (Node *at = *head; at; at = at->next) all += at->value;
  *sum = all;
}

// prints: on the heap 496
__global__ void on_the_heap(int *out) {
  int *mine = new int[4];
  for (int i = 0; i < 4; ++i) mine[i] = threadIdx.x / 4 + (i == 3 ? threadIdx.x % 4 : 0);
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += mine[i];
  delete[] mine;
  atomicAdd(out, sum);
}

// prints: device malloc 120
__global__ void device_malloc(int **kept) {
  kept[threadIdx.x] = (int *)malloc(16 * sizeof(int));
  for (int i = 0; i < 16; ++i) kept[threadIdx.x][i] = i;
}
__global__ void use_and_free(int **kept, int *out) {
  for (int i = 0; i < 16; ++i) out[threadIdx.x] += kept[threadIdx.x][i];
  free(kept[threadIdx.x]);
}

int main() {
  Managed<int> ints(64);
  Managed<Vec3> sums(2);
  vectors<<<1, 2>>>(sums.get());
  cudaDeviceSynchronize();
  printf("vectors %g %g\n", sums[1].dot(Vec3(1, 1, 1)), sums[0].z);
  Record *records, *moved, host_records[32];
  cudaMalloc(&records, sizeof host_records), cudaMalloc(&moved, sizeof host_records);
  make_records<<<1, 32>>>(records);
  move_records<<<1, 32>>>(records, moved);
  cudaMemcpy(host_records, moved, sizeof host_records, cudaMemcpyDeviceToHost);
  printf("padding %d %g %d\n", host_records[26].id, host_records[26].weight, host_records[26].used);
  Flags *flags, host_flags[16];
  cudaMalloc(&flags, sizeof host_flags);
  set_flags<<<1, 16>>>(flags);
  cudaMemcpy(host_flags, flags, sizeof host_flags, cudaMemcpyDeviceToHost);
  printf("bit fields %d %d %d\n", host_flags[9].kind, host_flags[9].level, host_flags[9].on);
  Managed<Word> words(2);
  reinterpret<<<1, 1>>>(words.get());
  cudaDeviceSynchronize();
  printf("union %d %g\n", words[0].i, words[1].f);
  for (int i = 0; i < 3; ++i) ints[i] = i + 1;
  apply<<<1, 3>>>(ints.get(), Scale{3});
  int offset = 6;
  apply<<<1, 2>>>(ints.get() + 1, [offset] __device__(int x) { return x + offset; });
  cudaDeviceSynchronize();
  printf("functors %d %d %d\n", ints[0], ints[1], ints[2]);
  dispatch<<<1, 1>>>(ints.get());
  cudaDeviceSynchronize();
  printf("dispatch %d %d\n", ints[0], ints[1]);
  Managed<__half> in(4), out(4);
  in[0] = __float2half(1.0f), in[1] = __float2half(1.5f);
  halves<<<1, 1>>>(in.get(), out.get());
  cudaDeviceSynchronize();
  printf("halves %g %g %g\n", __half2float(out[0]), __half2float(out[1]), __half2float(out[2]));
  Managed<__nv_bfloat16> brain(2);
  bfloats<<<1, 1>>>(brain.get());
  cudaDeviceSynchronize();
  printf("bfloat %g %g\n", __bfloat162float(brain[0]), __bfloat162float(brain[1]));
  std::vector<float> numbers(16);
  for (int i = 0; i < 16; ++i) numbers[i] = i + 1;
  float4 *a, *b;
  cudaMalloc(&a, 64), cudaMalloc(&b, 64);
  cudaMemcpy(a, numbers.data(), 64, cudaMemcpyHostToDevice);
  vector_loads<<<1, 4>>>(a, b);
  cudaMemcpy(numbers.data(), b, 64, cudaMemcpyDeviceToHost);
  float sum = 0;
  for (float one : numbers) sum += one;
  printf("vector loads %g %g\n", sum, numbers[12]);
  pointers<<<1, 2>>>(ints.get());
  cudaDeviceSynchronize();
  printf("pointers %d %d\n", ints[0], ints[1]);
  recursion<<<1, 1>>>(ints.get());
  cudaDeviceSynchronize();
  printf("recursion %d\n", ints[0]);
  cudaArray_t array;
  const auto description = cudaCreateChannelDesc<float>();
  cudaMallocArray(&array, &description, 2, 3);
  const float texels[6] = {0, 1, 2, 4, 4, 8};
  cudaMemcpy2DToArray(array, 0, 0, texels, 8, 8, 3, cudaMemcpyHostToDevice);
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray, resource.res.array.array = array;
  cudaTextureDesc how = {};
  how.filterMode = cudaFilterModeLinear;
  cudaTextureObject_t texture;
  cudaCreateTextureObject(&texture, &resource, &how, nullptr);
  Managed<float> sampled(2);
  sample<<<1, 1>>>(texture, sampled.get());
  cudaDeviceSynchronize();
  printf("texture %g %g\n", sampled[0], sampled[1]);
  Node *pool, **head;
  cudaMalloc(&pool, 5 * sizeof(Node)), cudaMalloc(&head, sizeof(Node *));
  build_list<<<1, 1>>>(pool, head);
  walk<<<1, 1>>>(head, ints.get());
  cudaDeviceSynchronize();
  printf("list %d\n", ints[0]);
  ints[0] = 0;
  on_the_heap<<<1, 32>>>(ints.get());
  cudaDeviceSynchronize();
  printf("on the heap %d\n", ints[0]);
  ints[0] = ints[1] = 0;
  int **kept;
  cudaMalloc(&kept, 2 * sizeof(int *));
  device_malloc<<<1, 2>>>(kept);
  use_and_free<<<1, 2>>>(kept, ints.get());
  cudaDeviceSynchronize();
  printf("device malloc %d\n", ints[1]);
  cudaDestroyTextureObject(texture), cudaFreeArray(array);
  return cudaGetLastError();
}
