// Shuffles, votes, matches, reductions, tiles: each against the formula of its lanes.

#include "cases.h"

namespace cg = cooperative_groups;

template <class T>
__global__ void shuffles(T* out) {  // out[operation][thread]
  const int lane = threadIdx.x % 32, n = blockDim.x;
  const T mine = T(int(threadIdx.x) * 3 + 1);
  out[threadIdx.x] = __shfl_sync(~0u, mine, lane * 7 + 2);
  out[n + threadIdx.x] = __shfl_up_sync(~0u, mine, 5);
  out[2 * n + threadIdx.x] = __shfl_down_sync(~0u, mine, 5);
  out[3 * n + threadIdx.x] = __shfl_xor_sync(~0u, mine, 9);
  out[4 * n + threadIdx.x] = __shfl_sync(~0u, mine, 3, 8);
  out[5 * n + threadIdx.x] = __shfl_down_sync(~0u, mine, 3, 8);
  out[6 * n + threadIdx.x] = __shfl_up_sync(~0u, mine, 3, 8);
}

template <class T>
static void check_shuffles() {
  constexpr int n = 96;
  std::vector<T> out(7 * n);
  LAUNCH((shuffles<T>), 1, n, 0, nullptr)(out.data());
  for (int i = 0; i < n; ++i) {
    const int warp = i / 32 * 32, lane = i % 32, section = lane / 8 * 8;
    const int from[7] = {(lane * 7 + 2) % 32, lane < 5 ? lane : lane - 5, lane > 26 ? lane : lane + 5, lane ^ 9,
                         section + 3, lane % 8 + 3 > 7 ? lane : lane + 3, lane % 8 < 3 ? lane : lane - 3};
    for (int operation = 0; operation < 7; ++operation)
      REQUIRE_EQUAL(out[operation * n + i], T((warp + from[operation]) * 3 + 1));
  }
}

__global__ void odd_distances(int* out) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_up_sync(~0u, lane, -2, 16);
  out[32 + lane] = __shfl_down_sync(~0u, lane, 33, 16);
  out[64 + lane] = __shfl_xor_sync(~0u, lane, -8, 16);
  out[96 + lane] = __shfl_xor_sync(~0u, lane, 35);
}

CASE(of_a_distance_the_lower_five_bits_count) {
  int out[128];
  LAUNCH((odd_distances), 1, 32, 0, nullptr)(out);
  for (int lane = 0; lane < 32; ++lane) {
    REQUIRE(out[lane] == lane);                                // 30 back is outside a section of 16
    REQUIRE(out[32 + lane] == (lane % 16 < 15 ? lane + 1 : lane));
    REQUIRE(out[64 + lane] == (lane < 16 ? lane : lane ^ 24));  // an earlier section may be read, a later one not
    REQUIRE(out[96 + lane] == (lane ^ 3));
  }
}

CASE(shuffles_read_the_lane_they_name) {
  check_shuffles<int>();
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<unsigned char>();
  check_shuffles<__half>();
}

__global__ void votes(unsigned* out) {
  const int i = threadIdx.x;
  out[8 * i] = __ballot_sync(~0u, i % 3 == 0);
  out[8 * i + 1] = __any_sync(~0u, i == 41);
  out[8 * i + 2] = __all_sync(~0u, i != 41);
  out[8 * i + 3] = __match_any_sync(~0u, i / 10);
  int equal;
  out[8 * i + 4] = __match_all_sync(~0u, i / 32, &equal);
  out[8 * i + 5] = __reduce_add_sync(~0u, unsigned(i));
  out[8 * i + 6] = unsigned(__reduce_min_sync(~0u, -i));
  out[8 * i + 7] = __reduce_xor_sync(~0u, 1u << i % 32);
}

CASE(votes_see_the_lanes_that_exist) {  // 45 threads: the second warp has 13 lanes
  std::vector<unsigned> out(45 * 8);
  LAUNCH((votes), 1, 45, 0, nullptr)(out.data());
  for (int i = 0; i < 45; ++i) {
    const int first = i / 32 * 32, last = std::min(first + 32, 45);
    unsigned third = 0, tens = 0, sum = 0, all = 0;
    for (int j = first; j < last; ++j) {
      third |= unsigned(j % 3 == 0) << (j - first);
      tens |= unsigned(j / 10 == i / 10) << (j - first);
      all |= 1u << (j - first);
      sum += unsigned(j);
    }
    const unsigned wanted[] = {third, unsigned(first == 32), unsigned(first == 0), tens, all, sum, unsigned(1 - last),
                               all};
    for (int k = 0; k < 8; ++k) REQUIRE_EQUAL(out[8 * i + k], wanted[k]);
  }
}

__global__ void lanes_that_leave(int* out) {
  if (threadIdx.x % 4 == 1) return;
  out[threadIdx.x] = __popc(__ballot_sync(~0u, 1));
  __syncwarp();
  out[threadIdx.x] += 100 * __reduce_add_sync(~0u, 1);
}

CASE(returned_lanes_are_not_waited_for) {
  int out[32] = {};
  LAUNCH((lanes_that_leave), 1, 32, 0, nullptr)(out);
  for (int i = 0; i < 32; ++i) REQUIRE_EQUAL(out[i], i % 4 == 1 ? 0 : 2424);
}

__global__ void halves(int* out) {  // the two halves of a warp meet separately, one more often than the other
  const unsigned mask = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  int value = threadIdx.x;
  for (int i = 0; i < (threadIdx.x < 16 ? 1 : 3); ++i) value = __shfl_xor_sync(mask, value, 1);
  out[threadIdx.x] = value;
}

CASE(different_masks_are_different_meetings) {
  int out[32];
  LAUNCH((halves), 1, 32, 0, nullptr)(out);
  for (int i = 0; i < 32; ++i) REQUIRE_EQUAL(out[i], i ^ 1);
}

__global__ void tiles(int* out) {
  const auto block = cg::this_thread_block();
  const auto tile = cg::tiled_partition<8>(block);
  const int i = int(block.thread_rank());
  out[8 * i] = int(tile.thread_rank() + 100 * tile.meta_group_rank());
  out[8 * i + 1] = cg::reduce(tile, i, cg::plus<int>());
  out[8 * i + 2] = cg::inclusive_scan(tile, i, cg::plus<int>());
  out[8 * i + 3] = cg::exclusive_scan(tile, i);
  out[8 * i + 4] = int(tile.ballot(i % 2));
  out[8 * i + 5] = tile.shfl(i, 2);
  out[8 * i + 6] = tile.any(i == 12);
  out[8 * i + 7] = cg::reduce(cg::tiled_partition<32>(block), i, cg::greater<int>());
}

CASE(tiles_are_small_warps) {
  int out[64 * 8];
  LAUNCH((tiles), 1, 64, 0, nullptr)(out);
  for (int i = 0; i < 64; ++i) {
    const int first = i / 8 * 8, place = i % 8, sum = (place + 1) * first + place * (place + 1) / 2;
    const int wanted[] = {place + 100 * (i / 8), 8 * first + 28, sum, sum - i, 0xaa, first + 2, first == 8,
                          i / 32 * 32 + 31};
    for (int k = 0; k < 8; ++k) REQUIRE_EQUAL(out[8 * i + k], wanted[k]);
  }
}

__global__ void last_warp_sum(const float* in, float* out) {  // 1024 threads, two levels of shuffles
  __shared__ float of_warp[32];
  float sum = in[threadIdx.x];
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = of_warp[threadIdx.x];
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (threadIdx.x == 0) *out = sum;
}

CASE(a_thousand_threads_are_summed_by_shuffles) {
  std::vector<float> in(1024);
  float out;
  for (int i = 0; i < 1024; ++i) in[i] = float(i % 17);
  LAUNCH((last_warp_sum), 1, 1024, 0, nullptr)(in.data(), &out);
  REQUIRE_EQUAL(out, 1024 / 17 * 136 + 6);  // 1024 = 60 * 17 + 4: 60 full rounds of 136 and 0 + 1 + 2 + 3
}
