// The kernels of the weighted step's operators, whose schemas cmsolvers/ops/registration.py
// defines.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "../python/prepare.h"

namespace cmsolvers {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Doubles = c10::ArrayRef<double>;

at::Tensor weighted_step(const at::Tensor& x, at::TensorList inputs, Doubles numbers,
                         at::TensorList tensors, at::IntArrayRef places, int64_t rule,
                         at::IntArrayRef noise, const OptionalTensor& key, Doubles clamp) {
  at::Tensor out = at::empty_like(x);
  launch(prepare(out, std::nullopt, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp,
                 0));
  return out;
}

std::tuple<at::Tensor, at::Tensor> weighted_step_two(const at::Tensor& x, at::TensorList inputs,
                                                     Doubles numbers, at::TensorList tensors,
                                                     at::IntArrayRef places, int64_t rule,
                                                     at::IntArrayRef noise,
                                                     const OptionalTensor& key, Doubles clamp,
                                                     int64_t second, at::ScalarType second_dtype) {
  at::Tensor out = at::empty_like(x);
  at::Tensor other = at::empty_like(x, x.options().dtype(second_dtype));
  launch(
      prepare(out, other, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp, second));
  return {out, other};
}

void weighted_step_out(const OptionalTensor& out, const OptionalTensor& second_out,
                       const at::Tensor& x, at::TensorList inputs, Doubles numbers,
                       at::TensorList tensors, at::IntArrayRef places, int64_t rule,
                       at::IntArrayRef noise, const OptionalTensor& key, Doubles clamp,
                       int64_t second) {
  launch(prepare(out, second_out, x, inputs, {numbers, tensors, places, rule}, noise, key, clamp,
                 second));
  if (out.has_value()) mark_written(*out);
  if (second_out.has_value()) mark_written(*second_out);
}

}  // namespace

TORCH_LIBRARY_IMPL(cmsolvers, CPU, m) {
  m.impl("weighted_step", &weighted_step);
  m.impl("weighted_step_two", &weighted_step_two);
  m.impl("weighted_step_out", &weighted_step_out);
}

#if defined(CMSOLVERS_WITH_CUDA)
TORCH_LIBRARY_IMPL(cmsolvers, CUDA, m) {
  m.impl("weighted_step", &weighted_step);
  m.impl("weighted_step_two", &weighted_step_two);
  m.impl("weighted_step_out", &weighted_step_out);
}
#endif

}  // namespace cmsolvers
