// Exercise 29, second part: two kernels. `python3 run.py check 29` runs them on the emulator.
//
// scale: y[i] = a * x[i] + shift for i from 0 to n - 1. Blocks have 128 threads; n is any number from 1 on. Say how many
// blocks that takes.
//
// add_row: y[r][c] = x[r][c] + row[c]. x and y are matrices of R rows and C columns, one row after the other in memory,
// and row has C numbers. Blocks have 32 threads in x and 8 in y; R and C are any numbers from 1 on. Where 32 divides C,
// a request of a warp must touch 4 sectors (its 32 lanes take 32 neighbours in memory).

__global__ void scale_kernel(const float* x, float* y, int n, float a, float shift) {
#error your code here
}

int blocks_for(int n) {
#error your code here
}

__global__ void add_row_kernel(const float* x, const float* row, float* y, int R, int C) {
#error your code here
}

extern "C" void scale(const float* x, float* y, int n, float a, float shift) {
  LAUNCH((scale_kernel), blocks_for(n), 128, 0, nullptr)(x, y, n, a, shift);
}

extern "C" void add_row(const float* x, const float* row, float* y, int R, int C) {
  LAUNCH((add_row_kernel), dim3((C + 31) / 32, (R + 7) / 8), dim3(32, 8), 0, nullptr)(x, row, y, R, C);
}
