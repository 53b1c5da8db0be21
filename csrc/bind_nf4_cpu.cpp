// NF4 from numbers and back as operators: tensors to pointers, blocks to threads.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "cpu/nf4_absmax.h"
#include "cpu/nf4_quantize.h"

namespace minillama {

constexpr int64_t kNumbersPerTask = 32768;  // some 10 microseconds, about what waking a thread costs

// Runs task(first, end) on shares of the blocks, each of them at least kNumbersPerTask numbers.
template <typename Task>
static void share_blocks(int64_t blocks, int64_t block_size, const Task& task) {
  at::parallel_for(0, blocks, std::max<int64_t>(1, kNumbersPerTask / block_size), task);
}

// visit(pointer) with the numbers of a floating tensor.
template <typename Visit>
static void with_numbers(const at::Tensor& x, const Visit& visit) {
  if (x.scalar_type() == at::kFloat) visit(static_cast<float*>(x.data_ptr()));
  if (x.scalar_type() == at::kHalf) visit(static_cast<c10::Half*>(x.data_ptr()));
  if (x.scalar_type() == at::kBFloat16) visit(static_cast<c10::BFloat16*>(x.data_ptr()));
}

static std::tuple<at::Tensor, at::Tensor> quantize(const at::Tensor& x, int64_t block_size) {
  check_floating(x, "x");
  TORCH_CHECK(block_size >= 2 && block_size % 2 == 0 && block_size <= int64_t{1} << 32, "block_size ", block_size,
              " is not allowed: use an even number up to 2^32");
  const at::Tensor numbers = x.contiguous();
  const int64_t n = numbers.numel(), blocks = (n + block_size - 1) / block_size;
  const at::Tensor codes = at::empty({(n + 1) / 2}, x.options().dtype(at::kByte));
  const at::Tensor absmax = at::empty({blocks}, x.options().dtype(at::kFloat));
  auto* to = codes.mutable_data_ptr<uint8_t>();
  auto* of_blocks = absmax.mutable_data_ptr<float>();
  with_numbers(numbers, [&](const auto* from) {
    share_blocks(blocks, block_size, [&](int64_t begin, int64_t end) {
      nf4_quantize(from, n, block_size, begin, end, to, of_blocks);
    });
  });
  return {codes, absmax};
}

static at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& absmax, const std::optional<at::Tensor>& scale,
                             const std::optional<at::Tensor>& offset, at::IntArrayRef shape, int64_t block_size,
                             at::ScalarType dtype) {
  const at::Tensor out = at::empty(shape, codes.options().dtype(dtype));
  check_floating(out, "the result");
  const int64_t n = out.numel();
  check_nf4(codes, absmax, scale, offset, 1, n, block_size);
  const at::Tensor bytes = codes.contiguous(), stored = absmax.contiguous();
  const at::Tensor scales = scale ? scale->contiguous() : at::Tensor();
  kernels::NF4 w{bytes.const_data_ptr<uint8_t>(), nullptr, nullptr, nullptr, nullptr, 1, n, block_size};
  if (scale) {
    w.absmax_codes = stored.const_data_ptr<uint8_t>();
    w.absmax_scale = scales.const_data_ptr<float>();
    w.absmax_offset = offset->const_data_ptr<float>();
  } else {
    w.absmax = stored.const_data_ptr<float>();
  }
  std::vector<float> of_blocks(stored.numel());
  with_numbers(out, [&](auto* to) {
    share_blocks(stored.numel(), block_size, [&](int64_t begin, int64_t end) {
      nf4_absmax(w, begin, end, of_blocks.data() + begin);
      nf4_dequantize(w, of_blocks.data(), begin * block_size, std::min(n, end * block_size), to);
    });
  });
  return out;
}

}  // namespace minillama

TORCH_LIBRARY_FRAGMENT(minillama, m) {
  // x, any shape, fp32, bf16 or fp16 -> codes, two in a byte, and absmax of each block of the flattened x
  m.def("nf4_quantize(Tensor x, int block_size) -> (Tensor codes, Tensor absmax)");
  m.def("nf4_dequantize(Tensor codes, Tensor absmax, Tensor? absmax_scale, Tensor? absmax_offset, int[] shape, "
        "int block_size, ScalarType dtype) -> Tensor");
}

TORCH_LIBRARY_IMPL(minillama, CPU, m) {
  m.impl("nf4_quantize", &minillama::quantize);
  m.impl("nf4_dequantize", &minillama::dequantize);
}
