// Weights of a model as matrices: tensors to pointers, checked once.

#include "bind_matrix.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "checks.h"

namespace minillama {

Form form_of(const at::Tensor& tensor, const char* name) {
  check_floating(tensor, name);
  const auto dtype = tensor.scalar_type();
  return dtype == at::kFloat ? Form::f32 : dtype == at::kBFloat16 ? Form::bf16 : Form::f16;
}

static void describe_plain(const std::vector<at::Tensor>& parts, Matrix& w) {
  TORCH_CHECK(parts.size() == 1, "a plain matrix has 1 part, given ", parts.size());
  check_shape(parts[0], "weight", {w.rows, w.columns});
  w.form = form_of(parts[0], "weight");
  w.values = parts[0].const_data_ptr();
}

static void describe_nf4(const std::vector<at::Tensor>& parts, int64_t block_size, bool rounded, Matrix& w) {
  const bool twice = parts.size() == 4;
  TORCH_CHECK(twice || parts.size() == 2, "a matrix in NF4 has 2 parts, or 4 with double quantization, given ", parts.size());
  const std::optional<at::Tensor> none, scale = twice ? std::optional(parts[2]) : none;
  check_nf4(parts[0], parts[1], scale, twice ? std::optional(parts[3]) : none, w.rows, w.columns, block_size);
  w.form = rounded ? Form::nf4_int8 : Form::nf4;
  w.nf4 = {parts[0].const_data_ptr<uint8_t>(), nullptr, nullptr, nullptr, nullptr, w.rows, w.columns, block_size};
  if (twice) {
    w.nf4.absmax_codes = parts[1].const_data_ptr<uint8_t>();
    w.nf4.absmax_scale = parts[2].const_data_ptr<float>();
    w.nf4.absmax_offset = parts[3].const_data_ptr<float>();
  } else {
    w.nf4.absmax = parts[1].const_data_ptr<float>();
  }
  TORCH_CHECK(!rounded || nf4_int8_fits(w.nf4), "activations in int8 need columns and a block_size that are multiples of 64, "
              "the weight has ", w.columns, " and ", block_size, ": multiply with activations in fp32");
}

static void describe_int8(const std::vector<at::Tensor>& parts, double threshold, Matrix& w) {
  TORCH_CHECK(parts.size() == 2, "a matrix in int8 has 2 parts, given ", parts.size());
  check_dtype(parts[0], "codes", at::kChar);
  check_shape(parts[0], "codes", {w.rows, w.columns});
  check_dtype(parts[1], "absmax", at::kFloat);
  check_shape(parts[1], "absmax", {w.rows});
  w.form = Form::int8;
  w.values = parts[0].const_data_ptr();
  w.absmax = parts[1].const_data_ptr<float>();
  w.threshold = static_cast<float>(threshold);
}

static std::optional<Block> block_of(const std::string& form) {
  if (form == "q4_0") return Block::q4_0;
  if (form == "q8_0") return Block::q8_0;
  if (form == "q6_k") return Block::q6_k;
  return {};
}

static void describe_blocks(const std::vector<at::Tensor>& parts, Block block, bool rounded, Matrix& w) {
  const BlockLayout layout = layout_of(block);
  TORCH_CHECK(parts.size() == 1, "a matrix in blocks has 1 part, given ", parts.size());
  TORCH_CHECK(w.columns % layout.numbers == 0, "the weight has ", w.columns, " columns, wanted blocks of ", layout.numbers);
  check_dtype(parts[0], "blocks", at::kByte);
  check_shape(parts[0], "blocks", {w.rows, w.columns / layout.numbers * layout.bytes});
  w.form = rounded ? Form::blocks_int8 : Form::blocks;
  w.values = parts[0].const_data_ptr();
  w.block = block;
}

WeightMatrix::WeightMatrix(const std::string& form, std::vector<at::Tensor> given, int64_t rows, int64_t columns,
                           double setting)
    : parts(std::move(given)) {
  matrix.rows = rows;
  matrix.columns = columns;
  for (const at::Tensor& part : parts) {
    check_device(part, "a part of the weight", at::kCPU);
    TORCH_CHECK(part.is_contiguous(), "a part of the weight of shape ", part.sizes(), " is not contiguous");
  }
  const auto block = block_of(form);
  TORCH_CHECK(form == "plain" || form == "nf4" || form == "nf4_int8" || form == "int8" || block, "form ", form,
              " is not known: use plain, nf4, nf4_int8, int8, q4_0, q8_0 or q6_k");
  if (form == "plain") describe_plain(parts, matrix);
  if (form == "nf4" || form == "nf4_int8") describe_nf4(parts, static_cast<int64_t>(setting), form == "nf4_int8", matrix);
  if (form == "int8") describe_int8(parts, setting, matrix);
  if (block) describe_blocks(parts, *block, setting == 8, matrix);
}

at::Tensor WeightMatrix::read() const {
  const at::Tensor out = at::empty({matrix.rows, matrix.columns}, at::TensorOptions().dtype(at::kFloat));
  auto* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, matrix.rows, std::max<int64_t>(1, kWeightsPerTask / std::max<int64_t>(1, matrix.columns)),
                   [&](int64_t first, int64_t end) {
                     for (int64_t r = first; r < end; ++r) read_row(matrix, r, to + r * matrix.columns);
                   });
  return out;
}

at::Tensor WeightMatrix::product(const at::Tensor& x) const {
  check_device(x, "x", at::kCPU);
  check_dtype(x, "x", at::kFloat);
  const bool any = matrix.form == Form::blocks_int8;  // number of rows
  TORCH_CHECK(x.dim() == 2 && x.size(0) >= 1 && (any || x.size(0) <= kMostRows) && x.size(1) == matrix.columns &&
              x.is_contiguous(),
              "x has shape ", x.sizes(), ", wanted 1 to ", kMostRows, " contiguous rows of ", matrix.columns);
  const at::Tensor y = at::empty({x.size(0), matrix.rows}, x.options());
  Activations activations;
  prepare(matrix, x.const_data_ptr<float>(), x.size(0), activations);
  at::parallel_for(0, matrix.rows, std::max<int64_t>(1, kWeightsPerTask / std::max<int64_t>(1, matrix.columns)),
                   [&](int64_t first, int64_t end) {
                     multiply_rows(matrix, activations, first, end, y.mutable_data_ptr<float>());
                   });
  return y;
}

}  // namespace minillama
