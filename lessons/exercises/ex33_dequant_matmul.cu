// Exercise 33, third part: y = W x for one token, W in NF4. `python3 run.py check 33` runs it on the emulator.
//
// W is (N, K), K a multiple of 64, so that no block crosses a row. Weight k of row n has its code in byte
// (n K + k) / 2 of codes: in the high four bits if k is even, in the low four if it is odd. Its scale is
// absmax[(n K + k) / 64]. W[n][k] = level[code] * scale, and y[n] is the sum over k of W[n][k] x[k]. All sums in fp32.
// A block of 256 threads, 8 warps, takes 8 neighbouring outputs: a warp for each. N is any number from 1 on.
//
// `DYNAMIC_SHARED(float, X);` is an array of K floats in shared memory, for x, which all 8 warps need. (It stands for
// `extern __shared__ float X[];`: its size comes from the launch.)
//
// Values must agree within 1e-4 in whatever order the threads run, with no race. Where K is a multiple of 256, sectors of
// 32 bytes may be at most 1.1 times the least: codes, scales and y once, x and level once for a block of threads.
// A scale of 4 bytes costs a sector of 32, whether one lane asks for it or all do: let one request fetch several. For
// that a lane may take four bytes at a time: reinterpret_cast<const unsigned*>(codes)[i] is the bytes 4i to 4i + 3 in
// one word, byte 4i in its lowest eight bits.

__global__ void decode(const float* x, const uint8_t* codes, const float* absmax, const float* level, float* y, int N,
                       int K) {
#error your code here
}

extern "C" void product(const float* x, const uint8_t* codes, const float* absmax, const float* level, float* y, int N,
                        int K) {
  LAUNCH((decode), (N + 7) / 8, 256, K * sizeof(float), nullptr)(x, codes, absmax, level, y, N, K);
}
