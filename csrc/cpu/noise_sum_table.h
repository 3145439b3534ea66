// One entry a compiled instruction set.
#pragma once

#include "../noise_sum/params.h"

namespace cmsolvers {

// Positions begin .. end - 1 of the sum.
using RunNoiseSum = void (*)(const NoiseSumParams& params, int64_t begin, int64_t end);

RunNoiseSum noise_sum_portable();
RunNoiseSum noise_sum_avx2();    // nullptr where it was not compiled
RunNoiseSum noise_sum_avx512();  // nullptr where it was not compiled

}  // namespace cmsolvers
