// Which of its kernels computes attention: on tensor cores in 16 bits (flash_tensor_cores.cuh; heads wider than 128:
// flash_wide.cuh), version 1 in fp32 and where rows are not aligned to 16 bytes (flash_attention.cuh).
#pragma once

#include "flash_wide.cuh"

namespace minillama::kernels {

void flash_attention(DType dtype, Strided q, Strided k, Strided v, AttentionMask mask, unsigned* seen, void* out,
                     float* lse, float* rows_, AttentionShape shape, void* stream_) {
  if (shape.batch * shape.heads * shape.queries == 0) return;
  const auto stream = static_cast<cudaStream_t>(stream_);
  auto* rows = reinterpret_cast<float2*>(rows_);
  const bool fits = fits_tensor_cores({q, k, v}, {out}, shape.width);
  if (mask.data) pack_mask(mask, seen, shape, stream);
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    auto* to = static_cast<T*>(out);
    if constexpr (sizeof(T) == 2) {
      if (shape.width > kNarrow) return flash_wide(q, k, v, mask.data ? seen : nullptr, to, lse, rows, shape, stream);
      if (fits)
        return with_padded_width(shape.width, [&](auto width) {
          constexpr int D = decltype(width)::value;
          const dim3 grid = tile_grid(shape.queries, kQueries, shape.heads, shape.batch);
          if (mask.data)
            LAUNCH((flash_attention_v2<T, D, true>), grid, 32 * kWarps, 0, stream)(q, k, v, seen, to, lse, rows, shape);
          else
            LAUNCH((flash_attention_v2<T, D, false>), grid, 32 * kWarps, 0, stream)(q, k, v, seen, to, lse, rows, shape);
        });
    }
    with_width<sizeof(T) == 2 ? kNarrow : kMaxHeadWidth>(shape.width, [&](auto width) {
      constexpr int D = decltype(width)::value;
      const dim3 grid = tile_grid(shape.queries, kTile<D>, shape.heads, shape.batch);
      LAUNCH((flash_attention_v1<T, D>), grid, kTileThreads<D>, 0, stream)(
          q, k, v, mask.data ? seen : nullptr, to, lse, rows, shape);
    });
  });
  check_launch("flash_attention");
}

}  // namespace minillama::kernels
