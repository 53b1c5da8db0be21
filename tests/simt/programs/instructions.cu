// Inline PTX, each instruction beside the same in plain C++. A word of `bad` is a lane; a bit of it a check that failed.
#include <cstdio>
#include <cstdlib>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned u32;
typedef unsigned long long u64;

__device__ __forceinline__ u32 shared_address(const void *p) {
  u32 address;
  asm volatile("{ .reg .u64 wide; cvta.to.shared.u64 wide, %1; cvt.u32.u64 %0, wide; }" : "=r"(address) : "l"(p));
  return address;
}

__global__ void integers(u32 *bad) {
  const u32 x = threadIdx.x * 2654435761u + 12345, y = x ^ 0x9e3779b9u;
  const int s = int(x), t = int(y);
  u32 a, b, c, d, e, f, g, h, i, j, k, l;
  u64 w;
  asm("add.s32 %0, %1, %2;" : "=r"(a) : "r"(x), "r"(y));
  asm("mul.hi.u32 %0, %1, %2;" : "=r"(b) : "r"(x), "r"(y));
  asm("mad.lo.s32 %0, %1, %2, %3;" : "=r"(c) : "r"(x), "r"(y), "r"(7));
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(w) : "r"(x), "r"(y));
  asm("bfe.u32 %0, %1, 4, 8;" : "=r"(d) : "r"(x));
  asm("bfe.s32 %0, %1, 24, 8;" : "=r"(e) : "r"(x));
  asm("bfi.b32 %0, %1, %2, 8, 4;" : "=r"(f) : "r"(x), "r"(y));
  asm("prmt.b32 %0, %1, %2, 0x0123;" : "=r"(g) : "r"(x), "r"(y));
  asm("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(h) : "r"(x), "r"(y), "r"(0x0f0f0f0fu));
  asm("shf.r.wrap.b32 %0, %1, %2, 13;" : "=r"(i) : "r"(x), "r"(y));
  asm("shl.b32 %0, %1, 33;" : "=r"(j) : "r"(x));
  asm("max.s32 %0, %1, %2;" : "=r"(k) : "r"(s), "r"(t));
  asm("popc.b32 %0, %1;" : "=r"(l) : "r"(x));
  u32 m, n;
  asm("bfind.u32 %0, %1;" : "=r"(m) : "r"(x >> 3));
  asm("{\n .reg .pred p, q;\n setp.lt.and.u32 p|q, %1, 16, 1;\n selp.u32 %0, 7, 9, p;\n @p add.u32 %0, %0, 100;\n}"
      : "=r"(n) : "r"(threadIdx.x));
  const u32 z = 0x0f0f0f0fu, moved = (y & ~0xf00u) | (x & 15) << 8;
  const u32 majority = (x & y) | (x & z) | (y & z);
  bad[threadIdx.x] |= (a != x + y) | (b != u32(u64(x) * y >> 32)) << 1 | (c != x * y + 7) << 2 |
      (w != u64(x) * y) << 3 | (d != (x >> 4 & 255)) << 4 | (e != u32(s >> 24)) << 5 | (f != moved) << 6 |
      (g != __byte_perm(x, y, 0x0123)) << 7 | (h != majority) << 8 | (i != (x >> 13 | y << 19)) << 9 | (j != 0) << 10 |
      (k != u32(s > t ? s : t)) << 11 | (l != u32(__popc(x))) << 12 | (m != u32(31 - __clz(x >> 3))) << 13 |
      (n != (threadIdx.x < 16 ? 107 : 9)) << 14;
}

__global__ void floats(u32 *bad) {
  const float x = threadIdx.x * 0.37f - 3;
  float a, b, c, d;
  u32 halves, rounded;
  int nearest;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(x));
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(b) : "f"(x), "f"(x), "f"(1.5f));
  asm("max.f32 %0, %1, 0f40000000;" : "=f"(c) : "f"(x));  // 2.0
  asm("rcp.approx.f32 %0, %1;" : "=f"(d) : "f"(x));
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(x), "f"(2 * x));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  asm("cvt.rni.s32.f32 %0, %1;" : "=r"(nearest) : "f"(x));
  const u32 pair = u32(__half_as_ushort(__float2half(x))) << 16 | __half_as_ushort(__float2half(2 * x));
  bad[threadIdx.x] |= (a != exp2f(x)) | (b != fmaf(x, x, 1.5f)) << 1 | (c != fmaxf(x, 2)) << 2 | (d != 1 / x) << 3 |
      (halves != pair) << 4 | (rounded & 0x1fff) << 5 | (fabsf(__uint_as_float(rounded) - x) > fabsf(x) / 2048) << 6 |
      (nearest != __float2int_rn(x)) << 7;
}

__global__ void warps(u32 *bad, u32 *memory) {
  const u32 lane = threadIdx.x;
  u32 id, below, next, other, votes, sum;
  asm("mov.u32 %0, %%laneid;" : "=r"(id));
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(below));
  asm volatile("shfl.sync.down.b32 %0, %1, 1, 0x1f, 0xffffffff;" : "=r"(next) : "r"(lane));
  asm volatile("shfl.sync.bfly.b32 %0, %1, 2, 0x1f, -1;" : "=r"(other) : "r"(lane));
  asm volatile("{ .reg .pred p; setp.gt.u32 p, %1, 9; vote.sync.ballot.b32 %0, p, 0xffffffff; }"
               : "=r"(votes) : "r"(lane));
  asm volatile("redux.sync.add.u32 %0, %1, 0xffffffff;" : "=r"(sum) : "r"(lane));
  __shared__ uint4 tile[32];
  u32 r[4], old;
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(&tile[lane])), "r"(lane), "r"(lane + 1),
               "r"(lane + 2), "r"(lane + 3) : "memory");
  asm volatile("bar.sync 0;");
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(&tile[31 - lane])));
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1+4];" : "=r"(id) : "l"(memory));
  asm volatile("membar.gl; red.global.add.u32 [%0], 1;" ::"l"(memory) : "memory");
  asm volatile("atom.global.cas.b32 %0, [%1], 5, 6;" : "=r"(old) : "l"(memory + 1) : "memory");
  bad[lane] |= (id != 5 && id != 6) | (below != (1u << lane) - 1) << 1 | (next != (lane < 31 ? lane + 1 : 31)) << 2 |
      (other != (lane ^ 2)) << 3 | (votes != ~0x3ffu) << 4 | (sum != 496) << 5 | (r[0] != 31 - lane) << 6 |
      (r[3] != 34 - lane) << 7 | (old != 5 && old != 6) << 8;
}

// 16 x 8 = 16 x 16 times 16 x 8, the operands by cp.async and ldmatrix.
template <typename T>
__global__ void product(const T *a, const T *b, float *c) {
  __shared__ __align__(16) T rows[16][16], columns[16][8];
  const int lane = threadIdx.x;
  asm volatile("cp.async.cg.shared.global [%0], [%1], %2;\n" ::"r"(shared_address(&rows[lane / 2][lane % 2 * 8])),
               "l"(a + lane * 8), "n"(16));
  if (lane < 16)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(&columns[lane][0])), "l"(b + lane * 8));
  asm volatile("cp.async.commit_group;\n" ::);
  asm volatile("cp.async.wait_group %0;\n" ::"n"(0));
  __syncthreads();
  u32 ra[4], rb[2];
  float d[4] = {0, 0, 0, 0};
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
               : "r"(shared_address(&rows[lane % 16][lane / 16 * 8])));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(rb[0]), "=r"(rb[1])
               : "r"(shared_address(&columns[lane % 16][0])));
  if (sizeof(T) == 2 && __half2float(__half(T(1.00390625f))) == 1)  // bfloat16 has no such number
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

template <typename T>
int wrong_products() {
  T *a, *b;
  float *c;
  cudaMallocManaged(&a, 512), cudaMallocManaged(&b, 256), cudaMallocManaged(&c, 512);
  for (int i = 0; i < 256; ++i) a[i] = T(float(rand() % 7 - 3));
  for (int i = 0; i < 128; ++i) b[i] = T(float(rand() % 7 - 3));
  product<<<1, 32>>>(a, b, c);
  int wrong = cudaDeviceSynchronize() != cudaSuccess;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += float(a[i * 16 + k]) * float(b[k * 8 + j]);
      wrong += sum != c[i * 8 + j];
    }
  return wrong;
}

int main() {
  u32 *bad, *memory;
  cudaMallocManaged(&bad, 3 * 128), cudaMallocManaged(&memory, 8);
  cudaMemset(bad, 0, 3 * 128);
  memory[0] = 0, memory[1] = 5;
  integers<<<1, 32>>>(bad);
  floats<<<1, 32>>>(bad + 32);
  warps<<<1, 32>>>(bad + 64, memory);
  int wrong = cudaDeviceSynchronize() != cudaSuccess;
  for (int i = 0; i < 96; ++i)
    if (bad[i]) printf("kernel %d, lane %d: %x\n", i / 32, i % 32, bad[i]), ++wrong;
  wrong += memory[0] != 32 || memory[1] != 6;
  const int products = wrong_products<__half>() + wrong_products<__nv_bfloat16>();
  printf("%d wrong, %d wrong products\n", wrong, products);
  return wrong || products;
}
