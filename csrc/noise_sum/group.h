// The terms of one sample, and what a CUDA thread or the portable kernel does with them for a group
// of four elements. Every kernel adds in the order of the terms, in float32, with one rounding per
// term, so the sums are equal to the bit.
#pragma once

#include "../step/group.h"
#include "params.h"

namespace cmsolvers {
namespace CMS_ISA {

struct NoiseTerm {
  uint32_t draw;
  float weight;
};

CMS_HD NoiseTerm noise_term(const NoiseSumParams& p, int64_t sample, int k) {
  if (p.table == nullptr) return {p.draws[k], p.weights[k]};
  const double* entry = p.table + 2 * (sample * p.n + k);
  return {static_cast<uint32_t>(entry[0]), static_cast<float>(entry[1])};
}

// The sums of elements 4 group .. 4 group + 3 of a sample.
CMS_HD void noise_sum4(const NoiseSumParams& p, int64_t sample, uint32_t group, float (&sum)[4]) {
  const SampleKey key = key_of(p.place, sample);
  for (int j = 0; j < 4; ++j) sum[j] = 0.0f;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int k = 0; k < p.n; ++k) {
    const NoiseTerm term = noise_term(p, sample, k);
    if (term.weight == 0.0f) continue;
    float z[4];
    normal4(key, term.draw, group, z);
    for (int j = 0; j < 4; ++j) sum[j] = multiply_add(term.weight, z[j], sum[j]);
  }
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
