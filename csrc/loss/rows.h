// Weights of consistency pairs, for the operator and for the fast calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace cmsolvers {

// Checked; see cmsolvers/ops/pair_rows.py.
std::tuple<at::Tensor, at::Tensor> consistency_rows(const at::Tensor& sigma,
                                                    const at::Tensor& sigma_next, double sigma_data,
                                                    double sigma_min);

// noise, residual, and where the factor is not 0 what the network is told at both levels; see
// consistency_inputs there. Levels are float64 [B] on one device.
struct PairInputs {
  at::Tensor noise, residual;
  std::array<at::Tensor, 2> told;
};

PairInputs pair_inputs(const at::Tensor& sigma, const at::Tensor& sigma_next, double sigma_data,
                       double sigma_min, double noise_factor);

}  // namespace cmsolvers
