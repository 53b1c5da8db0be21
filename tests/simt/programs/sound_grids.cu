// Sound programs about matrices, images and grids of points. Each prints one line, which a comment foretells by arithmetic.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define IDX2C(i, j, ld) (((j) * (ld)) + (i))

// prints: matmul 0 wrong
template <int BS>
__global__ void MatrixMul(float *C, const float *A, const float *B, int wA, int wB) {
  int bx = blockIdx.x, by = blockIdx.y, tx = threadIdx.x, ty = threadIdx.y;
  int aBegin = wA * BS * by, aEnd = aBegin + wA - 1, aStep = BS, bBegin = BS * bx, bStep = BS * wB;
  float Csub = 0;
  for (int a = aBegin, b = bBegin; a <= aEnd; a += aStep, b += bStep) {
    __shared__ float As[BS][BS];
    __shared__ float Bs[BS][BS];
    As[ty][tx] = A[a + wA * ty + tx];
    Bs[ty][tx] = B[b + wB * ty + tx];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BS; ++k) Csub += As[ty][k] * Bs[k][tx];
    __syncthreads();
  }
  C[wB * BS * by + BS * bx + wB * ty + tx] = Csub;
}

// prints: register tiles 0 wrong
template <int BM, int BN, int BK, int TM, int TN>
__global__ void register_tiles(const float *A, const float *B, float *C, int K, int N) {
  __shared__ float a_tile[BM * BK], b_tile[BK * BN];
  float result[TM * TN] = {0.0f}, column[TM], row[TN];
  const int tid = threadIdx.x, tr = tid / (BN / TN), tc = tid % (BN / TN), threads = (BM / TM) * (BN / TN);
  A += blockIdx.y * BM * K, B += blockIdx.x * BN, C += blockIdx.y * BM * N + blockIdx.x * BN;
  for (int at = 0; at < K; at += BK) {
    for (int i = tid; i < BM * BK; i += threads) a_tile[i] = A[(i / BK) * K + at + i % BK];
    for (int i = tid; i < BK * BN; i += threads) b_tile[i] = B[(at + i / BN) * N + i % BN];
    __syncthreads();
    for (int k = 0; k < BK; ++k) {
      for (int i = 0; i < TM; ++i) column[i] = a_tile[(tr * TM + i) * BK + k];
      for (int j = 0; j < TN; ++j) row[j] = b_tile[k * BN + tc * TN + j];
      for (int i = 0; i < TM; ++i)
        for (int j = 0; j < TN; ++j) result[i * TN + j] += column[i] * row[j];
    }
    __syncthreads();
  }
  for (int i = 0; i < TM; ++i)
    for (int j = 0; j < TN; ++j) C[(tr * TM + i) * N + tc * TN + j] = result[i * TN + j];
}

// prints: transpose 0 wrong
const int TILE_DIM = 16, BLOCK_ROWS = 4;
__global__ void transpose(float *odata, const float *idata, int width, int height) {
  __shared__ float tile[TILE_DIM][TILE_DIM + 1];
  int x = blockIdx.x * TILE_DIM + threadIdx.x, y = blockIdx.y * TILE_DIM + threadIdx.y;
  for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
    if (x < width && y + j < height) tile[threadIdx.y + j][threadIdx.x] = idata[(y + j) * width + x];
  __syncthreads();
  x = blockIdx.y * TILE_DIM + threadIdx.x;
  y = blockIdx.x * TILE_DIM + threadIdx.y;
  for (int j = 0; j < TILE_DIM; j += BLOCK_ROWS)
    if (x < height && y + j < width) odata[(y + j) * height + x] = tile[threadIdx.x][threadIdx.y + j];
}

// prints: column major 21 28
__global__ void scale_column(double *m, int ld, int column, double by) {
  for (int i = threadIdx.x; i < ld; i += blockDim.x) m[IDX2C(i, column, ld)] *= by;
}

// prints: volume 4095 1365
__global__ void volume(unsigned short *v, dim3 size) {
  unsigned x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y,
           z = blockIdx.z * blockDim.z + threadIdx.z;
  if (x >= size.x || y >= size.y || z >= size.z) return;
  v[(z * size.y + y) * size.x + x] = x + 16 * y + 256 * z;
}

// prints: stencil 4 4 9 15
#define RADIUS 3
#define BLOCK 32
__constant__ int weights[2 * RADIUS + 1];
__global__ void stencil_1d(const int *in, int *out, int n) {
  __shared__ int temp[BLOCK + 2 * RADIUS];
  int g = threadIdx.x + blockIdx.x * blockDim.x, l = threadIdx.x + RADIUS;
  temp[l] = g < n ? in[g] : 0;
  if (threadIdx.x < RADIUS) {
    temp[l - RADIUS] = g >= RADIUS ? in[g - RADIUS] : 0;
    temp[l + BLOCK] = g + BLOCK < n ? in[g + BLOCK] : 0;
  }
  __syncthreads();
  int result = 0;
  for (int offset = -RADIUS; offset <= RADIUS; offset++) result += weights[offset + RADIUS] * temp[l + offset];
  if (g < n) out[g] = result;
}

// prints: heat 100 50 0
__global__ void heat_step(const double *now, double *next, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i == 0 || i == n - 1) next[i] = now[i];
  else if (i < n) next[i] = 0.5 * (now[i - 1] + now[i + 1]);
}

// prints: pitched 190 7
__global__ void pitched(float *rows, size_t pitch, int width, int height) {
  for (int r = blockIdx.y; r < height; r += gridDim.y) {
    float *row = (float *)((char *)rows + r * pitch);
    for (int c = threadIdx.x; c < width; c += blockDim.x) row[c] = r + c;
  }
}

// prints: mandelbrot 64 1
struct cuComplex_ {
  float r, i;
  __device__ cuComplex_(float a, float b) : r(a), i(b) {}
  __device__ float magnitude2(void) { return r * r + i * i; }
  __device__ cuComplex_ operator*(const cuComplex_ &a) { return cuComplex_(r * a.r - i * a.i, i * a.r + r * a.i); }
  __device__ cuComplex_ operator+(const cuComplex_ &a) { return cuComplex_(r + a.r, i + a.i); }
};
__device__ int escape(float x, float y) {
  cuComplex_ c(x, y), z(0, 0);
  int steps = 0;
  for (; steps < 64 && z.magnitude2() < 4; ++steps) z = z * z + c;
  return steps;
}
__global__ void mandelbrot(unsigned char *pixels, int width) {
  const int x = threadIdx.x + blockIdx.x * blockDim.x, y = threadIdx.y + blockIdx.y * blockDim.y;
  pixels[y * width + x] = escape(-2 + 4.0f * x / width, -2 + 4.0f * y / width);
}

// prints: life 3 3
__global__ void life(const bool *now, bool *next, int n) {
  const int x = threadIdx.x, y = threadIdx.y;
  int around = 0;
  for (int dy = -1; dy <= 1; ++dy)
    for (int dx = -1; dx <= 1; ++dx)
      if (dx || dy) around += now[(y + dy + n) % n * n + (x + dx + n) % n];
  next[y * n + x] = around == 3 || (around == 2 && now[y * n + x]);
}

int wrong_products(const float *a, const float *b, const float *c, int m, int k, int n) {
  int wrong = 0;
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l) sum += a[i * k + l] * b[l * n + j];
      wrong += sum != c[i * n + j];  // all are small integers, so sums are exact
    }
  return wrong;
}

int main(void) {
  const int m = 32, k = 48, n = 16;
  float *h_A = (float *)malloc(m * k * sizeof(float)), *h_B = (float *)malloc(k * n * sizeof(float)),
        *h_C = (float *)malloc(m * k * sizeof(float)), *d_A, *d_B, *d_C;
  for (int i = 0; i < m * k; i++) h_A[i] = i % 5 - 2;
  for (int i = 0; i < k * n; i++) h_B[i] = i % 7 - 3;
  cudaMalloc((void **)&d_A, m * k * sizeof(float));
  cudaMalloc((void **)&d_B, k * n * sizeof(float));
  cudaMalloc((void **)&d_C, m * k * sizeof(float));
  cudaMemcpy(d_A, h_A, m * k * sizeof(float), cudaMemcpyHostToDevice);
  cudaMemcpy(d_B, h_B, k * n * sizeof(float), cudaMemcpyHostToDevice);
  MatrixMul<16><<<dim3(n / 16, m / 16), dim3(16, 16)>>>(d_C, d_A, d_B, k, n);
  cudaMemcpy(h_C, d_C, m * n * sizeof(float), cudaMemcpyDeviceToHost);
  printf("matmul %d wrong\n", wrong_products(h_A, h_B, h_C, m, k, n));
  register_tiles<16, 16, 8, 4, 2><<<dim3(n / 16, m / 16), 32>>>(d_A, d_B, d_C, k, n);
  cudaMemcpy(h_C, d_C, m * n * sizeof(float), cudaMemcpyDeviceToHost);
  printf("register tiles %d wrong\n", wrong_products(h_A, h_B, h_C, m, k, n));

  transpose<<<dim3(3, 2), dim3(TILE_DIM, BLOCK_ROWS)>>>(d_C, d_A, k, m - 1);
  cudaMemcpy(h_C, d_C, (m - 1) * k * sizeof(float), cudaMemcpyDeviceToHost);
  int wrong = 0;
  for (int i = 0; i < m - 1; ++i)
    for (int j = 0; j < k; ++j) wrong += h_C[j * (m - 1) + i] != h_A[i * k + j];
  printf("transpose %d wrong\n", wrong);

  double columns[21], *d_columns;
  for (int i = 0; i < 21; ++i) columns[i] = i + 1;
  cudaMalloc(&d_columns, sizeof columns);
  cudaMemcpy(d_columns, columns, sizeof columns, cudaMemcpyHostToDevice);
  scale_column<<<1, 4>>>(d_columns, 7, 1, 2.0);
  cudaMemcpy(columns, d_columns, sizeof(columns), cudaMemcpyDeviceToHost);
  printf("column major %g %g\n", columns[20], columns[13]);

  unsigned short *d_v, h_v[16 * 16 * 16];
  cudaMalloc(&d_v, sizeof h_v);
  volume<<<dim3(3, 4, 2), dim3(6, 4, 8)>>>(d_v, dim3(16, 16, 16));
  cudaMemcpy(h_v, d_v, sizeof h_v, cudaMemcpyDeviceToHost);
  printf("volume %d %d\n", h_v[4095], h_v[1365]);

  int line[100], *d_in, *d_out, w[2 * RADIUS + 1] = {1, 1, 1, 1, 1, 1, 1};
  for (int i = 0; i < 100; ++i) line[i] = i < 50 ? i % 2 : 3;
  cudaMalloc(&d_in, sizeof line), cudaMalloc(&d_out, sizeof line);
  cudaMemcpyToSymbol(weights, w, sizeof w);
  cudaMemcpy(d_in, line, sizeof line, cudaMemcpyHostToDevice);
  stencil_1d<<<(100 + BLOCK - 1) / BLOCK, BLOCK>>>(d_in, d_out, 100);
  cudaMemcpy(line, d_out, sizeof line, cudaMemcpyDeviceToHost);
  printf("stencil %d %d %d %d\n", line[10], line[4], line[48], line[98]);

  double rod[33], *d_now, *d_next;
  for (int i = 0; i < 33; ++i) rod[i] = i == 0 ? 100 : 0;
  cudaMalloc(&d_now, sizeof rod), cudaMalloc(&d_next, sizeof rod);
  cudaMemcpy(d_now, rod, sizeof rod, cudaMemcpyHostToDevice);
  for (int step = 0; step < 3000; ++step) {
    heat_step<<<2, 32>>>(d_now, d_next, 33);
    double *swap = d_now;
    d_now = d_next, d_next = swap;
  }
  cudaMemcpy(rod, d_now, sizeof rod, cudaMemcpyDeviceToHost);
  printf("heat %.0f %.0f %.0f\n", rod[0], rod[16], rod[32]);

  float *rows, out[10][7];
  size_t pitch;
  cudaMallocPitch(&rows, &pitch, 7 * sizeof(float), 10);
  pitched<<<dim3(1, 4), 32>>>(rows, pitch, 7, 10);
  cudaMemcpy2D(out, sizeof out[0], rows, pitch, sizeof out[0], 10, cudaMemcpyDeviceToHost);
  float total = 0;
  for (auto &row : out) total += row[0] + row[6] + row[4];
  printf("pitched %g %g\n", total - 45, out[3][4]);

  unsigned char *d_pixels, pixels[32 * 32];
  cudaMalloc(&d_pixels, sizeof pixels);
  mandelbrot<<<dim3(2, 4), dim3(16, 8)>>>(d_pixels, 32);
  cudaMemcpy(pixels, d_pixels, sizeof pixels, cudaMemcpyDeviceToHost);
  printf("mandelbrot %d %d\n", pixels[16 * 32 + 16], pixels[0]);

  bool field[64] = {}, *d_a, *d_b;
  field[8 * 2 + 1] = field[8 * 2 + 2] = field[8 * 2 + 3] = true;  // a blinker
  cudaMalloc(&d_a, 64), cudaMalloc(&d_b, 64);
  cudaMemcpy(d_a, field, 64, cudaMemcpyHostToDevice);
  life<<<1, dim3(8, 8)>>>(d_a, d_b, 8);
  cudaMemcpy(field, d_b, 64, cudaMemcpyDeviceToHost);
  int alive = 0;
  for (bool one : field) alive += one;
  printf("life %d %d\n", alive, field[8 * 1 + 2] + field[8 * 2 + 2] + field[8 * 3 + 2]);
  free(h_A), free(h_B), free(h_C);
  return 0;
}
