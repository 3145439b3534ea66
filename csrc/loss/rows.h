// What the operator consistency_rows and its fast call share.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace cmsolvers {

// Checked; see cmsolvers/ops/pair_rows.py.
std::tuple<at::Tensor, at::Tensor> consistency_rows(const at::Tensor& sigma,
                                                    const at::Tensor& sigma_next, double sigma_data,
                                                    double sigma_min);

}  // namespace cmsolvers
