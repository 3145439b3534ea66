// What the operator form_distance and its fast call share.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <vector>

#include "params.h"

namespace cmsolvers {

// Whether weights are [inputs, batch] or [inputs, 1].
bool fits_terms(const at::Tensor& weights, int64_t inputs, int64_t batch);

// The kernel, checked; no derivative.
at::Tensor form_distance(at::TensorList inputs, const at::Tensor& weights, int64_t size, double c);

// The same with a derivative, for tensors outside of transforms and without tangents.
at::Tensor form_distance_recorded(at::TensorList inputs, const at::Tensor& weights, int64_t size,
                                  double c);

// The kernel of the derivative: gradients of the wanted inputs.
std::vector<at::Tensor> form_distance_backward(const at::Tensor& grad, at::TensorList inputs,
                                               const at::Tensor& weights, const at::Tensor& value,
                                               int64_t size, double c,
                                               std::array<bool, kMaxTerms> wanted);

}  // namespace cmsolvers
