// The gradients of flash attention: P is computed again from q, k and each row's maximum and sum, nothing of size T x S is
// kept.
//   delta_i = sum_c dO_ic O_ic - dLSE_i,   dV = P^T dO,   dS = P (dO v^T - delta),   dQ = scale dS k,   dK = scale dS^T q
// (arXiv 2205.14135, appendix B.4; a gradient of LSE adds P dLSE to dS, hence its place in delta).
//
// Cost: 14 B H T S d FLOPs where the least possible is 10: S and dO v^T are formed in both kernels, and in return no
// sum needs an atomic, so that the same inputs give the same bits. All sums in fp32.
//
//   version 1: three kernels in the form of the forward pass: delta by a warp per query; dQ by 16 queries walking over
//   keys; dK and dV by 16 keys walking over the queries of every head that shares them.
#pragma once

#include "flash_attention.cuh"

namespace minillama::kernels {

// P from a score before its scale, by the numbers of the forward pass: c = scale log2(e), and (maximum, sum) of the row.
// Exact where it matters: close to the maximum the difference has no rounding.
__device__ inline float share(float score, float2 row, float c) { return exp2f((score - row.x) * c) / row.y; }

template <class T>
__global__ void flash_delta_v1(Strided d_out, const T* __restrict__ out, const float* __restrict__ d_lse,
                               float* __restrict__ delta, AttentionShape shape) {
  const int lane = threadIdx.x % 32, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kDeltaRows, shape.heads);
  const int64_t query = first + threadIdx.x / 32;
  if (query >= shape.queries) return;  // a whole warp leaves
  const int64_t place = (batch * shape.heads + head) * shape.queries + query;
  const T* gradient = head_of<T>(d_out, batch, head) + query * d_out.row;
  float sum = 0;
  for (int c = lane; c < d; c += 32) sum += float(gradient[c]) * float(out[place * d + c]);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (lane == 0) delta[place] = sum - (d_lse ? d_lse[place] : 0.0f);
}

template <class T, int D>
__global__ void __launch_bounds__(kTileThreads<D>, kBlocks)
flash_dq_v1(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
            const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dq, AttentionShape shape) {
  __shared__ Tile<D> Q, dO, K, V;
  __shared__ float dS[kTile<D>][kTile<D> + 1];
  const int row = threadIdx.x / kTeam, member = threadIdx.x % kTeam, d = int(shape.width);
  const auto [first, head, batch] = TileOfHead(shape.queries, kTile<D>, shape.heads);
  const int64_t kv_head = head / (shape.heads / shape.kv_heads), query = first + row;
  const int64_t place = (batch * shape.heads + head) * shape.queries + query;
  const bool inside = query < shape.queries;
  const float2 my_row = inside ? rows[place] : float2{0, 1};
  const float my_delta = inside ? delta[place] : 0, c = shape.scale * kLog2E;
  load_tile<D>(Q, head_of<T>(q, batch, head), q.row, first, shape.queries, d);
  load_tile<D>(dO, head_of<T>(d_out, batch, head), d_out.row, first, shape.queries, d);
  float sum[D / kTeam] = {};
  for (int64_t start = 0; start < keys_end(shape, first, kTile<D>); start += kTile<D>) {
    __syncthreads();
    load_tile<D>(K, head_of<T>(k, batch, kv_head), k.row, start, shape.keys, d);
    load_tile<D>(V, head_of<T>(v, batch, kv_head), v.row, start, shape.keys, d);
    __syncthreads();
    for (int key = member; key < kTile<D>; key += kTeam) {
      const bool visible = sees(shape, seen, batch, query, start + key);
      const float p = visible ? share(dot<D>(Q[row], K[key]), my_row, c) : 0.0f;
      dS[row][key] = visible ? p * (dot<D>(dO[row], V[key]) - my_delta) : 0.0f;
    }
    __syncwarp();
#pragma unroll
    for (int e = 0; e < D / kTeam; ++e) {
      float part = 0;
      for (int j = 0; j < kTile<D>; ++j) part += dS[row][j] * K[j][member + kTeam * e];
      sum[e] += part;
    }
  }
  if (!inside) return;
#pragma unroll
  for (int e = 0; e < D / kTeam; ++e)
    if (member + kTeam * e < d) dq[place * d + member + kTeam * e] = T(sum[e] * shape.scale);
}

template <class T, int D>
__global__ void __launch_bounds__(kTileThreads<D>, kBlocks)
flash_dkv_v1(Strided q, Strided k, Strided v, Strided d_out, const unsigned* __restrict__ seen,
             const float2* __restrict__ rows, const float* __restrict__ delta, T* __restrict__ dk, T* __restrict__ dv,
             AttentionShape shape) {
  __shared__ Tile<D> Q, dO, K, V;
  __shared__ float P[kTile<D>][kTile<D> + 1], dS[kTile<D>][kTile<D> + 1];
  const int row = threadIdx.x / kTeam, member = threadIdx.x % kTeam, d = int(shape.width);
  const auto [first, kv_head, batch] = TileOfHead(shape.keys, kTile<D>, shape.kv_heads);
  const int64_t key = first + row, group = shape.heads / shape.kv_heads, shift = shape.keys - shape.queries;
  const float c = shape.scale * kLog2E;
  const int64_t unseen = shape.causal && first > shift ? (first - shift) / kTile<D> * kTile<D> : 0;  // queries
  load_tile<D>(K, head_of<T>(k, batch, kv_head), k.row, first, shape.keys, d);
  load_tile<D>(V, head_of<T>(v, batch, kv_head), v.row, first, shape.keys, d);
  float sum_k[D / kTeam] = {}, sum_v[D / kTeam] = {};
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const int64_t of_head = (batch * shape.heads + head) * shape.queries;
    for (int64_t start = unseen; start < shape.queries; start += kTile<D>) {
      __syncthreads();
      load_tile<D>(Q, head_of<T>(q, batch, head), q.row, start, shape.queries, d);
      load_tile<D>(dO, head_of<T>(d_out, batch, head), d_out.row, start, shape.queries, d);
      __syncthreads();
      for (int i = member; i < kTile<D>; i += kTeam) {
        const int64_t query = start + i;
        const bool visible = query < shape.queries && sees(shape, seen, batch, query, key);
        const float p = visible ? share(dot<D>(Q[i], K[row]), rows[of_head + query], c) : 0.0f;
        P[row][i] = p;
        dS[row][i] = visible ? p * (dot<D>(dO[i], V[row]) - delta[of_head + query]) : 0.0f;
      }
      __syncwarp();
#pragma unroll
      for (int e = 0; e < D / kTeam; ++e) {
        float part_k = 0, part_v = 0;
        for (int i = 0; i < kTile<D>; ++i) {
          part_k += dS[row][i] * Q[i][member + kTeam * e];
          part_v += P[row][i] * dO[i][member + kTeam * e];
        }
        sum_k[e] += part_k;
        sum_v[e] += part_v;
      }
    }
  }
  if (key >= shape.keys) return;
  const int64_t place = ((batch * shape.kv_heads + kv_head) * shape.keys + key) * d;
#pragma unroll
  for (int e = 0; e < D / kTeam; ++e) {
    if (member + kTeam * e >= d) continue;
    dk[place + member + kTeam * e] = T(sum_k[e] * shape.scale);
    dv[place + member + kTeam * e] = T(sum_v[e]);
  }
}

}  // namespace minillama::kernels
