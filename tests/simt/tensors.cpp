// Tensor-core and asynchronous instructions against plain loops, and the 16-bit floats.

#include "cases.h"
#include "simt/wmma.h"

// C (16 x 8) = A (16 x 16) B (16 x 8): operands by ldmatrix, B from its transpose [n][k] or, trans, from [k][n].
template <class T, bool trans>
__global__ void small_product(const T* a, const T* b, float* c) {
  __shared__ __align__(16) T rows_a[16][16];
  __shared__ __align__(16) T rows_b[32][16];
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) rows_a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) {
    const int k = i / 8, n = i % 8;
    if (trans) rows_b[k][n] = b[i];
    else rows_b[n][k] = b[i];
  }
  __syncthreads();
  unsigned ra[4], rb[4];
  ldmatrix_x4(ra, &rows_a[lane % 16][8 * (lane / 16)]);
  if (trans) ldmatrix_x4_trans(rb, &rows_b[lane % 16][8 * (lane / 16)]);
  else ldmatrix_x4(rb, &rows_b[lane % 8 + 8 * (lane / 16)][8 * (lane / 8 & 1)]);
  const unsigned first[2] = {rb[0], rb[1]};
  float sum[4] = {1, 1, 1, 1};
  if (sizeof(T) == 2 && float(T(65536.0f)) == 65536.0f) mma_bf16_16816(sum, ra, first);
  else mma_f16_16816(sum, ra, first);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

template <class T, bool trans>
static void check_product() {
  std::vector<T> a(256), b(128);
  std::vector<float> c(128);
  for (int i = 0; i < 256; ++i) a[i] = T(float((i * 37) % 23 - 11));  // small whole numbers: sums are exact
  for (int i = 0; i < 128; ++i) b[i] = T(float((i * 53) % 19 - 9));
  LAUNCH((small_product<T, trans>), 1, 32, 0, nullptr)(a.data(), b.data(), c.data());
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      double wanted = 1;
      for (int k = 0; k < 16; ++k) wanted += double(float(a[m * 16 + k])) * float(b[k * 8 + n]);
      REQUIRE_EQUAL(c[m * 8 + n], wanted);
    }
}

CASE(mma_and_ldmatrix_multiply_matrices) {
  check_product<__nv_bfloat16, false>();
  check_product<__nv_bfloat16, true>();
  check_product<__half, false>();
  check_product<__half, true>();
}

__global__ void raw_fragments(unsigned* out) {  // matrix j, row r, column c holds 64 j + 8 r + c
  __shared__ __align__(16) unsigned short rows[32][8];
  for (int c = 0; c < 8; ++c) rows[threadIdx.x][c] = (unsigned short)(threadIdx.x * 8 + c);
  __syncwarp();
  unsigned r[4];
  ldmatrix_x4(r, rows[threadIdx.x]);
  for (int j = 0; j < 4; ++j) out[8 * threadIdx.x + j] = r[j];
  ldmatrix_x4_trans(r, rows[threadIdx.x]);
  for (int j = 0; j < 4; ++j) out[8 * threadIdx.x + 4 + j] = r[j];
}

CASE(ldmatrix_gives_each_lane_its_pair) {
  unsigned out[256];
  LAUNCH((raw_fragments), 1, 32, 0, nullptr)(out);
  for (int lane = 0; lane < 32; ++lane)
    for (int j = 0; j < 4; ++j) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const int at = 64 * j + 8 * row + column, across = 64 * j + 8 * column + row;
      REQUIRE_EQUAL(out[8 * lane + j], at + (at + 1) * 65536);
      REQUIRE_EQUAL(out[8 * lane + 4 + j], across + (across + 8) * 65536);
    }
}

using namespace nvcuda;

template <class Layout>
__global__ void wmma_product(const __half* a, const __half* b, float* c) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, Layout> fb;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> fc;
  wmma::fill_fragment(fc, 0.5f);
  wmma::load_matrix_sync(fa, a, 16);
  wmma::load_matrix_sync(fb, b, 16);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major);
}

CASE(wmma_multiplies_matrices) {
  __half a[256], b[256];
  float by_rows[256], by_columns[256];
  for (int i = 0; i < 256; ++i) a[i] = __half(float(i % 13 - 6)), b[i] = __half(float(i % 7 - 3));
  LAUNCH((wmma_product<wmma::row_major>), 1, 32, 0, nullptr)(a, b, by_rows);
  LAUNCH((wmma_product<wmma::col_major>), 1, 32, 0, nullptr)(a, b, by_columns);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      double rows = 0.5, columns = 0.5;
      for (int k = 0; k < 16; ++k) rows += float(a[m * 16 + k]) * float(b[k * 16 + n]);
      for (int k = 0; k < 16; ++k) columns += float(a[m * 16 + k]) * float(b[n * 16 + k]);
      REQUIRE_EQUAL(by_rows[m * 16 + n], rows);
      REQUIRE_EQUAL(by_columns[m * 16 + n], columns);
    }
}

// Two copies of 16 bytes by each thread, the second of only 8; read after waiting for all but `in_flight` of them.
template <int in_flight>
__global__ void copy_and_read(const float* in, float* out) {
  __shared__ __align__(16) float tile[2][32][4];
  for (int stage = 0; stage < 2; ++stage) {
    cp_async<16>(tile[stage][threadIdx.x], in + 4 * threadIdx.x, stage ? 8 : 16);
    cp_async_commit();
  }
  cp_async_wait<in_flight>();
  for (int i = 0; i < 8; ++i) out[8 * threadIdx.x + i] = tile[i / 4][threadIdx.x][i % 4];
}

CASE(an_async_copy_arrives_at_its_wait_and_not_before) {
  alignas(16) float in[128];
  float out[256];
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  LAUNCH((copy_and_read<0>), 1, 32, 0, nullptr)(in, out);
  for (int i = 0; i < 256; ++i) REQUIRE_EQUAL(out[i], i % 8 < 6 ? i / 8 * 4 + i % 4 : 0);
  LAUNCH((copy_and_read<1>), 1, 32, 0, nullptr)(in, out);
  for (int i = 0; i < 256; ++i) REQUIRE(i % 8 < 4 ? out[i] == float(i / 8 * 4 + i % 4) : std::isnan(out[i]));
  LAUNCH((copy_and_read<2>), 1, 32, 0, nullptr)(in, out);
  for (float value : out) REQUIRE(std::isnan(value));
}

CASE(encode) {  // floats on stdin; for each its half and its bfloat16 on stdout
  for (float value; std::fread(&value, 4, 1, stdin) == 1;) {
    const uint16_t both[2] = {__float2half(value).bits, __float2bfloat16(value).bits};
    std::fwrite(both, 2, 2, stdout);
  }
}

CASE(decode) {  // all 65536 patterns as half and as bfloat16
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    __half half;
    __nv_bfloat16 brain;
    half.bits = brain.bits = uint16_t(bits);
    const float both[2] = {float(half), float(brain)};
    std::fwrite(both, 4, 2, stdout);
  }
}

CASE(bit_tricks) {
  REQUIRE_EQUAL(__popc(0xf0f1u), 9);
  REQUIRE_EQUAL(__clz(1), 31);
  REQUIRE_EQUAL(__clz(0), 32);
  REQUIRE_EQUAL(__ffs(8), 4);
  REQUIRE_EQUAL(__brev(1u), 0x80000000u);
  REQUIRE_EQUAL(__byte_perm(0x33221100u, 0x77665544u, 0x7041u), 0x77004411u);
  REQUIRE_EQUAL(__byte_perm(0x33228000u, 0, 0x0009u), 0xffu);
  REQUIRE_EQUAL(__int_as_float(0x3f800000), 1);
  REQUIRE_EQUAL(__umulhi(0x80000000u, 6u), 3);
}
