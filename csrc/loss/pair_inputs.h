// All that a consistency pair needs whose states are not stored: see `consistency_inputs` in
// cmsolvers/ops/pair_rows.py.
#pragma once

#include <cmath>

#include "group.h"

namespace cmsolvers {

struct PairInputsParams {
  RowsParams levels;           // its noise and residual are not read
  double noise_factor = 0.0;   // c_noise is so many times the logarithm; 0: it is not wanted
  double* noise = nullptr;     // [2, 2, batch]
  double* residual = nullptr;  // [4, batch], for both inputs of the network in place of the states
  float* told[2] = {};         // [batch] each, c_noise
};

void launch_pair_inputs_cpu(const PairInputsParams& params);
void launch_pair_inputs_cuda(const PairInputsParams& params, int device, void* stream);

namespace CMS_ISA {

CMS_HD void pair_inputs(const PairInputsParams& p, int64_t sample) {
  const RowsParams& of = p.levels;
  for (int second = 0; second < 2; ++second) {
    const double level =
        second ? of.sigma_next[sample * of.next_stride] : of.sigma[sample * of.stride];
    double input[kWeights] = {level, of.sigma_data};
    double output[kWeights] = {level,      of.sigma_data, of.sigma_min,
                               of.held[0], of.held[1],    of.held[2]};
    apply_rule(Rule::edm_input, input);
    apply_rule(Rule::consistency, output);
    const double c_in = input[kX];
    const bool data = second && level == 0.0;  // x' is x0, the target itself
    const double skip = (data ? 1.0 : output[kX]) / c_in, out = data ? 0.0 : output[kInput];
    p.noise[2 * second * of.batch + sample] = c_in;
    p.noise[(2 * second + 1) * of.batch + sample] = multiply(c_in, level);
    p.residual[2 * second * of.batch + sample] = second ? -skip : skip;
    p.residual[(2 * second + 1) * of.batch + sample] = second ? -out : out;
    if (p.noise_factor != 0.0)
      p.told[second][sample] = static_cast<float>(multiply(p.noise_factor, ::log(level)));
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
