// Products with a weight in NF4, version 3: on tensor cores, for bf16 and fp16 and 8 rows of x or more (version 2 for
// all else: nf4_vectors.cuh; fragments of mma.sync: PTX ISA 9.7.14, as functions in ../simt/tensor.h).
//
// A block takes 16, 32 or 64 rows of x, a warp all of these and 32 rows of W, which are 32 columns of y.
//
//   order of k  A sum may be formed in any order, so a product takes the 16 columns that suit the stored bits: thread t
//               of four has columns 16 t ... 16 t + 15 of a 64, which are 8 neighbouring bytes of codes and 32 of x. Codes
//               become operands in the registers they are read into; each of them is looked up once a block.
//   look-up     Four codes become four levels of 16 bits by byte permutations: eight registers hold the bytes of all
//               levels. No table in memory, so no look-up waits for a bank.
//   scales      Levels are multiplied first; a sum over 64 columns, which have one absmax, is scaled in fp32. Levels
//               wait as level / 64, so that no 64 of them overflow, and the sum is multiplied by 64 at the end.
//   stages      While one step of x and codes is multiplied two more arrive by cp.async; what lies beyond is zeros.
//   split K     Where rows are few, the four warps take 64 columns each of the same 32 rows of W, or two of them do, and
//               add their sums at the end, in a fixed order: more blocks, each of them with less. Up to 16 rows always;
//               up to 64 where there would be fewer than 108 blocks (33 to 64 rows then are two blocks of 32).
//
// Bytes: ceil(M / rows) (N K / 2 + 32 bytes an absmax) of W and ceil(N / columns) 2 M K of x, once each a block. The
// levels are rounded to T (bf16: by up to 1/512, as PyTorch rounds a dequantized weight), sums and scales are fp32.
#pragma once

#include "flash_fragments.cuh"
#include "nf4_one_row.cuh"

namespace minillama::kernels {

constexpr int kNF4Part = 64, kNF4OfWarp = 32;  // columns with one scale; rows of W that a warp takes

template <int Parts>
constexpr int kNF4Wide = kNF4OfWarp * kNF4Warps / Parts;  // rows of W that a block takes, of which Parts warps share 32

// One step: for each part of 64 columns the rows of x, then for each part 32 bytes of codes of the block's rows of W.
template <class T, int Rows, int Parts>
struct NF4Stage {
  static constexpr int kStages = Rows * Parts > 64 ? 2 : 3;  // with all else at most 48 KiB
  T x[Rows * Parts * kNF4Part];
  uint8_t codes[kNF4OfWarp * kNF4Warps * kNF4Part / 2];
};

// Bytes of the levels times a factor as T: low[i] holds the lower ones of levels 4 i ... 4 i + 3, high[i] the upper ones.
struct LevelBytes {
  unsigned low[4] = {}, high[4] = {};
};

template <class T>
__device__ LevelBytes level_bytes(float factor) {
  LevelBytes bytes;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const unsigned bits = packed<T>(kNF4Levels[i] * factor, 0.0f);
    bytes.low[i / 4] |= (bits & 255) << 8 * (i % 4);
    bytes.high[i / 4] |= (bits >> 8) << 8 * (i % 4);
  }
  return bytes;
}

// Four bytes of 16, by four 4-bit numbers: __byte_perm picks four of the 8 bytes of two registers. `seven`: the numbers
// modulo 8; `half`: from which of two picks each of the four bytes comes.
__device__ inline unsigned four_bytes(const unsigned (&of)[4], unsigned seven, unsigned half) {
  return __byte_perm(__byte_perm(of[0], of[1], seven), __byte_perm(of[2], of[3], seven), half);
}

// Four codes -> two registers of two levels each. The first of a byte's two codes lies in its high nibble.
__device__ inline void two_pairs(unsigned (&pairs)[2], const LevelBytes& bytes, unsigned codes) {
  const unsigned seven = codes & 0x7777, half = (codes >> 1 & 0x4444) | 0x3210;
  const unsigned low = four_bytes(bytes.low, seven, half), high = four_bytes(bytes.high, seven, half);
  pairs[0] = __byte_perm(low, high, 0x4051);  // low byte 1, high byte 1; low byte 0, high byte 0
  pairs[1] = __byte_perm(low, high, 0x6273);
}

// Where a row's 16 bytes number `chunk` of 8 lie: two rows' chunks of the same parity, which 8 lanes read, in 32 banks.
__device__ inline int nf4_place(int row, int chunk) { return row * kNF4Part + (chunk ^ row % 2) * 8; }

// Begins to copy the step that starts at column k; what lies beyond the rows of x and W and the columns becomes 0.
template <int Rows, int Parts, class T>
__device__ void copy_step(NF4Stage<T, Rows, Parts>& stage, const T* x, const NF4& w, int64_t m0, int64_t n0, int64_t k, int64_t M) {
  constexpr int Threads = 32 * kNF4Warps, Wide = kNF4Wide<Parts>;
  const int64_t K = w.columns;
  const int rows = M - m0 < Rows ? int(M - m0) : Rows, wide = w.rows - n0 < Wide ? int(w.rows - n0) : Wide;
  const int parts = K - k < Parts * kNF4Part ? int(K - k) / kNF4Part : Parts;
  const T* from = x + m0 * K + k;
  const uint8_t* codes = w.codes + (n0 * K + k) / 2;
#pragma unroll (Rows == 64 ? 1 : 8)  // a warp with 64 rows has no register left for more addresses
  for (int first = 0; first < Rows * Parts * kNF4Part / 8; first += Threads) {
    const int i = first + threadIdx.x, row = i / 8 % Rows, part = i / 8 / Rows, chunk = i % 8;
    const T* here = from + row * K + part * kNF4Part + chunk * 8;
    cp_async<16>(stage.x + nf4_place(i / 8, chunk), here, row < rows && part < parts ? 16 : 0);
  }
#pragma unroll (Rows == 64 ? 1 : 2)
  for (int first = 0; first < int(sizeof stage.codes) / 16; first += Threads) {
    const int i = first + threadIdx.x, row = i / 2 % Wide, part = i / 2 / Wide;
    const uint8_t* here = codes + (row * K + part * kNF4Part) / 2 + i % 2 * 16;
    cp_async<16>(stage.codes + i * 16, here, row < wide && part < parts ? 16 : 0);
  }
}

// A warp's rows of x with 64 columns: A[m][s] is the operand of product s, for rows 16 m ... 16 m + 15.
template <int Rows, class T>
__device__ void load_rows(unsigned (&A)[Rows / 16][4][4], const T* x) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int m = 0; m < Rows / 16; ++m)
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
      const uint4 upper = *reinterpret_cast<const uint4*>(x + nf4_place(16 * m + g, 2 * t + s / 2));
      const uint4 lower = *reinterpret_cast<const uint4*>(x + nf4_place(16 * m + g + 8, 2 * t + s / 2));
      A[m][s][0] = upper.x, A[m][s][1] = lower.x, A[m][s][2] = upper.y, A[m][s][3] = lower.y;
      A[m][s + 1][0] = upper.z, A[m][s + 1][1] = lower.z, A[m][s + 1][2] = upper.w, A[m][s + 1][3] = lower.w;
    }
}

// sums += x times 32 rows of W, over 64 columns. absmax: that of row `lane` of these 32.
template <int Rows, class T>
__device__ void add_products(float (&sums)[Rows / 16][4][4], const T* x, const uint8_t* codes, const LevelBytes& bytes,
                             float absmax) {
  const int lane = threadIdx.x % 32, t = lane % 4;
  unsigned A[Rows / 16][4][4];
  load_rows<Rows>(A, x);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const uint2 of_lane = *reinterpret_cast<const uint2*>(codes + (8 * n + lane / 4) * (kNF4Part / 2) + t * 8);
    float part[Rows / 16][4] = {};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      unsigned B[2];
      two_pairs(B, bytes, (s < 2 ? of_lane.x : of_lane.y) >> 16 * (s % 2));
#pragma unroll
      for (int m = 0; m < Rows / 16; ++m) multiply_add<T>(part[m], A[m][s], B[0], B[1]);
    }
    const float left = __shfl_sync(kAllLanes, absmax, 8 * n + 2 * t);
    const float right = __shfl_sync(kAllLanes, absmax, 8 * n + 2 * t + 1);
#pragma unroll
    for (int m = 0; m < Rows / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] += part[m][i] * (i % 2 ? right : left);
  }
}

template <class T, int Rows, int Parts>
__global__ void __launch_bounds__(32 * kNF4Warps, 2)
nf4_matmul_v3(const T* __restrict__ x, NF4 w, int log_block, T* __restrict__ y, int64_t M) {
  constexpr int Wide = kNF4Wide<Parts>, Apart = Wide + 8, kStages = NF4Stage<T, Rows, Parts>::kStages;  // 4 rows' 8 floats lie in 32 banks
  __shared__ NF4Tables tables;
  __shared__ __align__(128) union {
    NF4Stage<T, Rows, Parts> stages[kStages];
    float sums[Parts][Rows][Apart];
  } memory;
  load_tables(tables);
  const LevelBytes bytes = level_bytes<T>(kNF4Shrink);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = warp % Parts, across = warp / Parts * kNF4OfWarp;
  const unsigned tiles = unsigned((M + Rows - 1) / Rows);  // of rows: neighbouring blocks read the same codes
  const int64_t m0 = int64_t(blockIdx.x % tiles) * Rows, n0 = int64_t(blockIdx.x / tiles) * Wide, K = w.columns;
  const int64_t step = Parts * kNF4Part, mine = n0 + across + lane;  // the row of W whose absmax this lane reads
  float sums[Rows / 16][4][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i * step < K) copy_step<Rows, Parts>(memory.stages[i], x, w, m0, n0, i * step, M);
    cp_async_commit();
  }
  int stage = 0;
#pragma unroll 1
  for (int64_t k0 = 0; k0 < K; k0 += step, stage = (stage + 1) % kStages) {
    const int64_t k = k0 + part * kNF4Part, ahead = k0 + (kStages - 1) * step;
    const float absmax = k < K && mine < w.rows ? nf4_absmax(w, tables, mine * K + k >> log_block) : 0;
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this step is complete, and the stage of the one before is read by all
    if (ahead < K) copy_step<Rows, Parts>(memory.stages[(stage + kStages - 1) % kStages], x, w, m0, n0, ahead, M);
    cp_async_commit();
    if (k >= K) continue;
    const NF4Stage<T, Rows, Parts>& now = memory.stages[stage];
    const uint8_t* codes = now.codes + (part * Wide + across) * (kNF4Part / 2);
    add_products<Rows>(sums, now.x + part * Rows * kNF4Part, codes, bytes, absmax);
  }
  __syncthreads();  // the last step is read: sums take its place
#pragma unroll
  for (int m = 0; m < Rows / 16; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(&memory.sums[part][16 * m + lane / 4 + 8 * half][across + 8 * n + lane % 4 * 2]) =
            float2{sums[m][n][2 * half], sums[m][n][2 * half + 1]};
  __syncthreads();  // the sums are complete
#pragma unroll 1
  for (int i = threadIdx.x; i < Rows * Wide; i += 32 * kNF4Warps) {
    const int row = i / Wide, column = i % Wide;
    float sum = 0;
#pragma unroll
    for (int p = 0; p < Parts; ++p) sum += memory.sums[p][row][column];
    if (m0 + row < M && n0 + column < w.rows) y[(m0 + row) * w.rows + n0 + column] = T(sum / kNF4Shrink);
  }
}

template <int Rows, int Parts, class T>
void launch_nf4_tensor_cores(const T* x, NF4 w, int log_block, T* y, int64_t M, cudaStream_t stream) {
  const unsigned blocks = ceil_div(M, Rows) * ceil_div(w.rows, kNF4Wide<Parts>);
  LAUNCH((nf4_matmul_v3<T, Rows, Parts>), blocks, 32 * kNF4Warps, 0, stream)(x, w, log_block, y, M);
}

constexpr int kNF4FewestRows = 8;  // of x, from which on tensor cores multiply
constexpr unsigned kNF4FewestBlocks = 108;  // the SMs of an A100: with fewer, blocks become narrower

void nf4_matmul(DType dtype, const void* x_, NF4 w, void* y_, int64_t M, void* stream_) {
  if (M * w.rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const unsigned blocks = ceil_div(w.rows, kNF4Warps * kNF4Rows);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto* x = static_cast<const T*>(x_);
    auto* y = static_cast<T*>(y_);
    if constexpr (sizeof(T) == 2)
      if (const int log = nf4_log_block(x, w, kNF4Part); log >= 0 && M >= kNF4FewestRows) {
        const unsigned wide = ceil_div(w.rows, M <= 32 ? kNF4Wide<2> : kNF4Wide<1>);  // blocks of 32 or of 64 rows
        if (M <= 16) return launch_nf4_tensor_cores<16, 4>(x, w, log, y, M, stream);
        if (M <= 64 && wide < kNF4FewestBlocks) return launch_nf4_tensor_cores<32, 4>(x, w, log, y, M, stream);
        if (M <= 32) return launch_nf4_tensor_cores<32, 2>(x, w, log, y, M, stream);
        return launch_nf4_tensor_cores<64, 1>(x, w, log, y, M, stream);
      }
    const int log = nf4_log_block(x, w, kNF4Lane);
    if (log < 0)
      LAUNCH((nf4_matmul_v1<T>), nf4_grid(ceil_div(w.rows, kNF4Threads), M), kNF4Threads, 0, stream)(x, w, y, M);
    else if (M == 1)
      if constexpr (sizeof(T) == 2)
        LAUNCH((nf4_matvec_v1<T>), ceil_div(w.rows, kOneRows), 32 * kNF4Warps, 0, stream)(x, w, log, y);
      else
        LAUNCH((nf4_matmul_v2<T, 1>), nf4_grid(blocks, 1), 32 * kNF4Warps, 0, stream)(x, w, log, y, M);
    else
      LAUNCH((nf4_matmul_v2<T, kNF4Many>), nf4_grid(blocks, ceil_div(M, kNF4Many)), 32 * kNF4Warps, 0, stream)
      (x, w, log, y, M);
  });
  check_launch("nf4_matmul");
}

}  // namespace minillama::kernels
