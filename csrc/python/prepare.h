// From tensors to StepParams: what every entry to the kernels shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

#include "arguments.h"
#include "tensors.h"

namespace cmsolvers {

// A step ready to launch, and the tensors that keep its memory alive.
struct Prepared {
  StepParams params;
  at::Tensor x;
  std::array<at::Tensor, kMaxInputs> inputs;
  std::vector<at::Tensor> kept;  // arguments that had to be copied
  at::Tensor key;
};

// Checks what memory safety needs, brings everything into the layout of `out` (or of `second_out`
// where that alone is wanted), and fills the parameters.
Prepared prepare(const std::optional<at::Tensor>& out, const std::optional<at::Tensor>& second_out,
                 const at::Tensor& x, at::TensorList inputs, const Arguments& arguments,
                 at::IntArrayRef noise, const std::optional<at::Tensor>& key,
                 c10::ArrayRef<double> clamp, int64_t second);

// Whether elements lie in the same order in both; dimensions of one element do not matter.
bool same_order(const at::Tensor& a, const at::Tensor& b);

// The values in the order of `out`, which is dense: the tensor itself, or a copy.
at::Tensor in_layout_of(const at::Tensor& value, const at::Tensor& out);

// How memory positions map to samples and elements, for a dense tensor.
void describe_layout(StepParams& params, const at::Tensor& out);

void launch(const Prepared& step);

}  // namespace cmsolvers
