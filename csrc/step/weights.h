// From the arguments of a step to the weights of one sample, in float64. cmsolvers/ops/rules.py has
// the same formulas with the same operations in the same order, so that a level gives the same bits
// as a number and as an entry of a tensor: nothing here may be contracted or reordered (see
// ../contract/math.h).
#pragma once

#include "../contract/half.h"
#include "params.h"

namespace cmsolvers {
namespace CMS_ISA {

#if defined(__CUDA_ARCH__)
CMS_HD double square_root(double v) {
  return __dsqrt_rn(v);
}
CMS_HD double magnitude(double v) {
  return fabs(v);
}
#else
CMS_HD double square_root(double v) {
  return __builtin_sqrt(v);
}
CMS_HD double magnitude(double v) {
  return __builtin_fabs(v);
}
#endif

CMS_HD double read_argument(const Argument& argument, int64_t sample) {
  const int64_t at = sample * argument.stride;
  if (argument.type == DType::f32) return static_cast<const float*>(argument.data)[at];
  if (argument.type == DType::f64) return static_cast<const double*>(argument.data)[at];
  const uint16_t word = static_cast<const uint16_t*>(argument.data)[at];
  return argument.type == DType::f16 ? half_value(word) : bfloat16_value(word);
}

// Arguments in their places (see Rule) become the weights in theirs.
CMS_HD void apply_rule(Rule rule, double (&w)[kWeights]) {
  if (rule == Rule::weights) return;
  double x = 0.0, first = 0.0, other = 0.0, z = 0.0, second = 0.0;
  if (rule == Rule::folded) {
    w[kX] = w[kX] + w[kInput] * w[kSkip];
    w[kInput] = w[kInput] * w[kOut];
    w[kSkip] = 0.0;
    w[kOut] = 1.0;
    return;
  } else if (rule == Rule::pf_ode) {
    const double sigma = w[0], next = w[1];
    x = next / sigma;
    first = (sigma - next) / sigma;
  } else if (rule == Rule::heun) {
    const double sigma = w[0], next = w[1];
    const double half = 0.5 * (next - sigma);
    x = next / sigma;
    first = half * (1.0 / next - 2.0 / sigma);
    other = -half / next;
  } else if (rule == Rule::consistency) {
    const double sigma = w[0], data = w[1];
    // The boundary is sigma_min, and the level itself where that is sigma_min rounded.
    const bool end = sigma == w[3] || sigma == w[4] || sigma == w[5];
    const double shifted = sigma - (end ? sigma : w[2]), variance = data * data;
    x = variance / (shifted * shifted + variance);
    first = shifted * data / square_root(sigma * sigma + variance);
  } else if (rule == Rule::edm_input) {
    x = second = 1.0 / square_root(w[0] * w[0] + w[1] * w[1]);
  } else if (rule == Rule::edm_output) {
    const double sigma = w[0], data = w[1];
    const double variance = data * data, spread = sigma * sigma + variance;
    x = variance / spread;
    first = sigma * data / square_root(spread);
  } else if (rule == Rule::euler_maruyama) {
    x = 1.0;
    first = w[1];
    z = w[0] * square_root(magnitude(w[1]));
  }
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 0; j < kWeights; ++j) w[j] = 0.0;
  w[kX] = x;
  w[kInput] = first;
  w[kInput + 1] = other;
  w[kZ] = z;
  w[kOut] = 1.0;
  w[kS0] = second;
}

// The weights of one sample; where no argument is a tensor they stand in p.numbers.
CMS_HD void weights_of(const StepParams& p, int64_t sample, double (&w)[kWeights]) {
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 0; j < kWeights; ++j) w[j] = p.numbers[j];
  if (!p.has_tensors) return;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int j = 0; j < kWeights; ++j)
    if (p.arguments[j].data != nullptr) w[j] = read_argument(p.arguments[j], sample);
  apply_rule(p.rule, w);
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
