// A mask of attention, as tensors come: checked, and spread over the rows that share it.
#pragma once

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>

#include "checks.h"

namespace minillama {

// (B, T, S), its keys side by side, of a bool mask of that shape or with 1s in it, which then has strides of 0.
static at::Tensor spread_mask(const at::Tensor& mask, int64_t B, int64_t T, int64_t S, c10::DeviceType device) {
  check_dtype(mask, "mask", at::kBool);
  check_device(mask, "mask", device);
  TORCH_CHECK(mask.dim() == 3 && at::is_expandable_to(mask.sizes(), {B, T, S}), "mask has shape ", mask.sizes(),
              ", wanted (", B, ", ", T, ", ", S, "), or 1s in it");
  at::Tensor spread = mask.size(2) == S ? mask.expand({B, T, S}) : mask.expand({mask.size(0), mask.size(1), S});
  if (S > 1 && spread.stride(2) != 1) spread = spread.contiguous();
  return spread.expand({B, T, S});
}

}  // namespace minillama
