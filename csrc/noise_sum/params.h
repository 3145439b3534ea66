// A weighted sum of normals of many draws, out = sum_k w_k normal(seed, id, stream, draw_k,
// element): what an increment of a Brownian path is. Plain parameters and launch declarations; no
// torch here.
#pragma once

#include "../step/params.h"

namespace cmsolvers {

constexpr int kMaxDraws = 128;

struct NoiseSumParams {
  StepParams place;  // out with its type and layout, and whose noise; the rest is not read

  // Terms: the same for all samples, or table[(b * n + k) * 2 + (0: draw, 1: weight)]. A term of
  // weight zero is not there.
  int n = 0;
  uint32_t draws[kMaxDraws] = {};
  float weights[kMaxDraws] = {};
  const double* table = nullptr;  // on the device of out
};

void launch_noise_sum_cpu(const NoiseSumParams& params);  // out is contiguous
void launch_noise_sum_cuda(const NoiseSumParams& params, int device, void* stream);

}  // namespace cmsolvers
