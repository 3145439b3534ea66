// What one CUDA thread does in a sum of noise. Host code can call it too.
#pragma once

#include "../step/thread.h"
#include "group.h"

namespace cmsolvers {
namespace cuda {

// The units first, first + stride, ... of a plan.
template <class State, bool kPermuted>
CMS_HD void noise_sum_thread(const NoiseSumParams& p, const Plan& plan, int64_t first,
                             int64_t stride) {
  using A = Wide<State>;
  for (int64_t index = first; index < plan.units; index += stride) {
    const Unit unit = kPermuted ? find_permuted_unit(plan, index) : find_unit<true>(plan, index);
    float sum[kGroup];
    noise_sum4(p, unit.sample, static_cast<uint32_t>(unit.element / kGroup), sum);
    if (unit.element % kGroup != 0)
      sum[0] = pick(sum, static_cast<uint32_t>(unit.element % kGroup));
    A wide[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) wide[j] = A(sum[j]);
    write_group<State>(p.place.out, unit.position, unit.step, unit.valid, !kPermuted && plan.vector,
                       wide);
  }
}

}  // namespace cuda
}  // namespace cmsolvers
