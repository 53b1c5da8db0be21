// Exercise 30, second part: a transpose. `python3 run.py check 30` runs it on the emulator.
//
// y[c][r] = x[r][c], for x of `rows` rows and `columns` columns, so that y has `columns` rows of `rows` numbers each.
// Both are any numbers from 1 on. Block (blockIdx.x, blockIdx.y) takes the tile of 32 x 32 elements of x that begins at
// column 32 blockIdx.x and row 32 blockIdx.y. It has 32 threads in x and 8 in y: each moves 4 elements of a full tile.
//
// Values must agree in whatever order the threads run, with no race. Where 32 divides rows and columns, each request of
// a warp to global memory must touch 4 sectors and no more. No request to shared memory may have a bank conflict.

__global__ void transpose_kernel(const float* x, float* y, int rows, int columns) {
#error your code here
}

extern "C" void transpose(const float* x, float* y, int rows, int columns) {
  LAUNCH((transpose_kernel), dim3((columns + 31) / 32, (rows + 31) / 32), dim3(32, 8), 0, nullptr)(x, y, rows, columns);
}
