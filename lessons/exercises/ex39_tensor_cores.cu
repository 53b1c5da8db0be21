// Exercise 39, third part: a product on tensor cores. `python3 run.py check 39` runs it on the emulator.
//
// y (M, N), fp32, = x (M, K) w (N, K)^T, both bf16, all contiguous. M and N are any numbers from 1 on, K a multiple of 8.
// A block of 128 threads, 4 warps, takes 64 rows of x and 64 rows of w: blockIdx.y and blockIdx.x say which.
//
// mma_bf16_16816(c, a, b), ldmatrix_x4(registers, row), cp_async<16>(to, from, wanted), cp_async_commit() and
// cp_async_wait<left>() are those of the lesson; of 16 bytes only `wanted`, 0 or 16, are read, the rest becomes zeros.
//
// Values must agree within 1e-3 in whatever order the threads run, with no race. All products run on tensor cores. No
// read of shared memory has a bank conflict; a block reads its rows of x and w once; and it passes one barrier for each
// 64 columns of K, and at most one more.

__global__ void multiply(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int M, int N, int K) {
#error your code here
}

extern "C" void product(const __nv_bfloat16* x, const __nv_bfloat16* w, float* y, int M, int N, int K) {
  LAUNCH((multiply), dim3((N + 63) / 64, (M + 63) / 64), 128, 0, nullptr)(x, w, y, M, N, K);
}
