// Uniforms of the noise contract, out[b, e] = (r + 1/2) 2^-32 of its random words r, in float64.
// Plain parameters and launch declarations; no torch here.
#pragma once

#include "../step/params.h"

namespace cmsolvers {

struct UniformParams {
  StepParams place;       // whose noise; of the rest only `total` and `count` are read
  double* out = nullptr;  // [B, count], contiguous
};

void launch_uniform_cpu(const UniformParams& params);
void launch_uniform_cuda(const UniformParams& params, int device, void* stream);

}  // namespace cmsolvers
