// One entry a compiled instruction set.
#pragma once

#include "../step/params.h"

namespace cmsolvers {

// Positions begin .. end - 1 of the step. `stream`: store past the caches.
using RunRange = void (*)(const StepParams& params, int64_t begin, int64_t end, bool stream);

RunRange run_portable();
RunRange run_avx2();    // nullptr where it was not compiled
RunRange run_avx512();  // nullptr where it was not compiled

}  // namespace cmsolvers
