// Exercise 34, third part: causal attention in one pass. `python3 run.py check 34` runs it on the emulator.
//
// q, k, v and o are (T, 32) in fp32, contiguous; lse is (T). For each query i, over the keys j <= i:
//   s_j = q_i . k_j / sqrt(32),  lse[i] = log sum_j exp(s_j),  o[i] = sum_j exp(s_j - lse[i]) v_j
// A block of 256 threads, 8 warps, takes 8 neighbouring queries: a warp for each. T is any number from 1 on.
//
// A plan: copy 32 keys and 32 values into shared memory. Lane n of a warp computes the score of key n; shuffles find the
// largest (lesson 31). Then lane n turns to column n of the output. m, l and o live in registers.
//
// Values must agree within 1e-5 in whatever order the threads run, with no race, also where scores are in the hundreds.
// Of global memory a block reads its queries once, and once each tile of 32 keys and values in which it sees a key.

__global__ void attend(const float* q, const float* k, const float* v, float* o, float* lse, int T) {
#error your code here
}

extern "C" void attention(const float* q, const float* k, const float* v, float* o, float* lse, int T) {
  LAUNCH((attend), (T + 7) / 8, 256, 0, nullptr)(q, k, v, o, lse, T);
}
