// What the operator noise_forms and its fast call share.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "params.h"

namespace cmsolvers {

// Whether weights are [n, 2, batch] or [n, 2, 1].
bool fits_forms(const at::Tensor& weights, int64_t batch);

// Launches on checked tensors; x and outs are dense in one layout, and p.place says whose noise it
// is.
void launch_forms(NoiseFormsParams& p, const at::Tensor& x, const at::Tensor& weights,
                  const std::vector<at::Tensor>& outs);

}  // namespace cmsolvers
