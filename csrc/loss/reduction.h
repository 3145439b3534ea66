// A loss from the values of its samples.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace cmsolvers {

// (loss [], terms [B]) in `type`, float64 or float32: terms are value * weight, the loss is their
// sum times `scale`, differentiable in the value. Nothing where a term is not finite. All are
// contiguous float64 [B] on the CPU, the weight may be undefined.
std::optional<std::tuple<at::Tensor, at::Tensor>> reduced(const at::Tensor& value,
                                                          const at::Tensor& weight, double scale,
                                                          at::ScalarType type);

}  // namespace cmsolvers
