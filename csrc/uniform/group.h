// A group of four uniforms, as the portable kernel and a CUDA thread make it.
#pragma once

#include "../step/group.h"
#include "params.h"

namespace cmsolvers {
namespace CMS_ISA {

// Group `index` of all samples' groups, of which each sample has `groups`. Exact: 33 bits.
CMS_HD void uniform4(const UniformParams& p, int64_t index, int64_t groups) {
  const int64_t sample = index / groups;
  const int64_t group = index - sample * groups;
  const SampleKey key = key_of(p.place, sample);
  uint32_t r[4] = {static_cast<uint32_t>(group), draw_of(p.place, sample), key.c2, key.c3};
  philox(r, key.k0, key.k1);
  const int64_t left = p.place.count - 4 * group;
  double* out = p.out + sample * p.place.count + 4 * group;
  for (int j = 0; j < 4; ++j)
    if (j < left) out[j] = (static_cast<double>(r[j]) + 0.5) * 0x1p-32;
}

CMS_HD int64_t groups_of(const UniformParams& p) {
  return (p.place.count + 3) / 4;
}

}  // namespace CMS_ISA
}  // namespace cmsolvers
