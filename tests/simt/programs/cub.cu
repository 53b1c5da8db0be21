// CUB's reductions and scans of warps and blocks against plain loops: odd block sizes, non-commutative operators.
#include <cub/cub.cuh>
#include <cstdio>
#include <vector>

static int wrong = 0;
#define CHECK(condition, ...)                                                       \
  if (!(condition) && ++wrong < 20) printf("%d: %s: ", __LINE__, #condition), printf(__VA_ARGS__), puts("");

struct Affine { int a, b; };  // x -> a x + b: composing two is associative and not commutative
struct Compose {
  __host__ __device__ Affine operator()(const Affine& f, const Affine& g) const { return {f.a * g.a, g.a * f.b + g.b}; }
};
struct Big { double x[6]; };
struct AddBig {
  __host__ __device__ Big operator()(Big a, const Big& b) const {
    for (int i = 0; i < 6; ++i) a.x[i] += b.x[i];
    return a;
  }
};
static bool operator==(const Affine& f, const Affine& g) { return f.a == g.a && f.b == g.b; }
static Affine affine(int i) { return {i % 3 - 1, i * 7 % 5}; }

template <int X, int Y>
__global__ void reduce_block(const int* in, int* out, int valid) {
  using BlockReduce = cub::BlockReduce<int, X, cub::BLOCK_REDUCE_WARP_REDUCTIONS, Y>;
  __shared__ typename BlockReduce::TempStorage storage;
  const int i = threadIdx.x + X * threadIdx.y;
  const int sum = BlockReduce(storage).Sum(in[i]);
  __syncthreads();
  const int most = BlockReduce(storage).Reduce(in[i], cub::Max(), valid);
  int pair[2] = {in[i], 1};
  __syncthreads();
  const int both = BlockReduce(storage).Sum(pair);
  if (i == 0) out[0] = sum, out[1] = most, out[2] = both;
}
template <int X>
__global__ void reduce_others(Affine* f, Big* big, cub::KeyValuePair<int, float>* least) {
  __shared__ union {
    typename cub::BlockReduce<Affine, X>::TempStorage f;
    typename cub::BlockReduce<Big, X>::TempStorage big;
  } storage;
  const int i = threadIdx.x;
  const Affine all = cub::BlockReduce<Affine, X>(storage.f).Reduce(f[i], Compose());
  const Big sum = cub::BlockReduce<Big, X>(storage.big).Reduce(Big{{1, 2, 3, 4, 5, double(i)}}, AddBig());
  const auto found = cub::BlockReduce<cub::KeyValuePair<int, float>, X>().Reduce({i, float((i * 5 + 3) % 7)}, cub::ArgMin());
  if (i == 0) *f = all, *big = sum, *least = found;
}

struct Running {  // the sum of the tiles before
  int total;
  __device__ int operator()(int tile) {
    const int before = total;
    total += tile;
    return before;
  }
};
template <int X>
__global__ void scan_block(const int* in, int* out, int n, Affine* f, int* sums) {
  using BlockScan = cub::BlockScan<int, X>;
  __shared__ typename BlockScan::TempStorage storage;
  Running running{100};
  for (int at = 0; at < n; at += 2 * X) {
    int two[2];
    for (int k = 0; k < 2; ++k) two[k] = at + 2 * threadIdx.x + k < n ? in[at + 2 * threadIdx.x + k] : 0;
    BlockScan(storage).ExclusiveSum(two, two, running);
    __syncthreads();
    for (int k = 0; k < 2; ++k)
      if (at + 2 * threadIdx.x + k < n) out[at + 2 * threadIdx.x + k] = two[k];
  }
  cub::BlockScan<Affine, X>().InclusiveScan(f[threadIdx.x], f[threadIdx.x], Compose());
  int mine, all;
  BlockScan(storage).InclusiveSum(in[threadIdx.x], mine, all);
  sums[3 * threadIdx.x] = mine, sums[3 * threadIdx.x + 1] = all;
  BlockScan(storage).ExclusiveScan(in[threadIdx.x], mine, -7, cub::Max());
  sums[3 * threadIdx.x + 2] = mine;
}

__global__ void warps(const int* in, int* out) {
  __shared__ cub::WarpReduce<int>::TempStorage reduce[3];
  __shared__ cub::WarpScan<int, 8>::TempStorage scan;
  const int i = threadIdx.x, warp = i / 32;
  out[i] = cub::WarpReduce<int>(reduce[warp]).Sum(in[i]);
  out[80 + i] = cub::WarpReduce<int>(reduce[warp]).HeadSegmentedSum(in[i], i % 5 == 0);
  int exclusive, inclusive, all;
  cub::WarpScan<int, 8>(scan).ExclusiveSum(in[i], exclusive, all);
  cub::WarpScan<int, 8>(scan).InclusiveScan(in[i], inclusive, cub::Min());
  out[160 + i] = exclusive, out[240 + i] = all, out[320 + i] = inclusive;
}

template <class T> static T* managed(size_t n) {
  T* p;
  cudaMallocManaged(&p, n * sizeof(T));
  return p;
}
static int value(int i) { return (i * 37) % 101 - 50; }

template <int X, int Y> static void check_reduce(int valid) {
  int *in = managed<int>(X * Y), *out = managed<int>(3), sum = 0, most = value(0);
  for (int i = 0; i < X * Y; ++i) sum += in[i] = value(i);
  for (int i = 0; i < valid; ++i) most = std::max(most, in[i]);
  reduce_block<X, Y><<<1, dim3(X, Y)>>>(in, out, valid);
  CHECK(!cudaDeviceSynchronize() && out[0] == sum && out[1] == most, "%d x %d: %d %d", X, Y, out[0], out[1])
  CHECK(out[2] == sum + X * Y, "%d x %d: %d", X, Y, out[2])
}
template <int X> static void check_others() {
  Affine *f = managed<Affine>(X), all = affine(0);
  for (int i = 0; i < X; ++i) f[i] = affine(i), all = i ? Compose()(all, f[i]) : all;
  Big* big = managed<Big>(1);
  auto* least = managed<cub::KeyValuePair<int, float>>(1);
  reduce_others<X><<<1, X>>>(f, big, least);
  CHECK(!cudaDeviceSynchronize() && *f == all && big->x[1] == 2 * X && big->x[5] == X * (X - 1) / 2.0, "%d", X)
  CHECK(least->key == 5 && least->value == 0, "%d: %d %g", X, least->key, least->value)  // 5 * 5 + 3 = 28 = 4 * 7
}
template <int X> static void check_scan(int n) {
  int *in = managed<int>(n), *out = managed<int>(n), *sums = managed<int>(3 * X), sum = 100;
  Affine *f = managed<Affine>(X), all = affine(0);
  for (int i = 0; i < n; ++i) in[i] = value(i);
  for (int i = 0; i < X; ++i) f[i] = affine(i);
  scan_block<X><<<1, X>>>(in, out, n, f, sums);
  CHECK(!cudaDeviceSynchronize(), "%d", X)
  for (int i = 0; i < n; sum += in[i++]) CHECK(out[i] == sum, "%d: %d is %d, not %d", X, i, out[i], sum)
  int total = 0, so_far = 0, most = -7;
  for (int i = 0; i < X; ++i) total += in[i];
  for (int i = 0; i < X; ++i) {
    so_far += in[i];
    all = i ? Compose()(all, affine(i)) : all;
    CHECK(f[i] == all && sums[3 * i] == so_far && sums[3 * i + 1] == total && sums[3 * i + 2] == most, "%d: %d", X, i)
    most = std::max(most, in[i]);
  }
}

int main() {
  check_reduce<128, 1>(128), check_reduce<45, 1>(33), check_reduce<1024, 1>(1000), check_reduce<16, 5>(32), check_reduce<7, 1>(1);
  check_others<96>(), check_others<50>();
  check_scan<64>(300), check_scan<37>(150), check_scan<256>(256), check_scan<8>(17);
  int *in = managed<int>(80), *out = managed<int>(400);
  for (int i = 0; i < 80; ++i) in[i] = value(i);
  warps<<<1, 80>>>(in, out);
  CHECK(!cudaDeviceSynchronize(), "warps")
  for (int i = 0; i < 80; ++i) {
    int sum = 0, segment = 0, exclusive = 0, all = 0, least = 1000;
    for (int j = i / 32 * 32; j < std::min(80, i / 32 * 32 + 32); ++j) sum += in[j];
    for (int j = i; j < std::min(80, i / 32 * 32 + 32) && (j == i || j % 5); ++j) segment += in[j];
    for (int j = i / 8 * 8; j < i / 8 * 8 + 8; ++j) {
      all += in[j], exclusive += j < i ? in[j] : 0;
      if (j <= i) least = std::min(least, in[j]);
    }
    CHECK(i % 32 || out[i] == sum, "%d", i)
    CHECK((i % 32 && i % 5) || out[80 + i] == segment, "%d: %d, not %d", i, out[80 + i], segment)
    CHECK(out[160 + i] == exclusive && out[240 + i] == all && out[320 + i] == least, "%d", i)
  }
  printf("%d wrong\n", wrong);
  return wrong > 0;
}
