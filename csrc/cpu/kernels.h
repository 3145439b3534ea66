// The CPU kernels of all operators, one table for each compiled instruction set.
#pragma once

#include "../ema/params.h"
#include "../loss/params.h"
#include "../noise_sum/params.h"
#include "../step/params.h"

namespace cmsolvers {

struct CpuKernels {
  // Positions begin .. end - 1 of the step. `stream`: store past the caches.
  void (*step)(const StepParams& params, int64_t begin, int64_t end, bool stream);
  // Positions begin .. end - 1 of the sum.
  void (*noise_sum)(const NoiseSumParams& params, int64_t begin, int64_t end);
  // Positions begin .. end - 1 of the forms.
  void (*noise_forms)(const NoiseFormsParams& params, int64_t begin, int64_t end);
  // Chunks begin .. end - 1 of the sums, and of the gradients.
  void (*distance)(const DistanceParams& params, int64_t begin, int64_t end);
  void (*distance_backward)(const DistanceParams& params, int64_t begin, int64_t end);
  // Positions begin .. end - 1 in the row of all numbers.
  void (*ema)(const EmaBatch& batch, int64_t begin, int64_t end);
};

const CpuKernels* portable_kernels();
const CpuKernels* avx2_kernels();    // nullptr where they were not compiled
const CpuKernels* avx512_kernels();  // nullptr where they were not compiled

}  // namespace cmsolvers
