// Sums of noise for AVX-512 F, DQ, BW and VL.
#define CMS_ISA avx512
#include "noise_sum_table.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// GCC 12 takes the undefined operands of its own intrinsics for a mistake (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "lanes_avx512.h"

#include "../noise_sum/cpu_kernel.h"

namespace cmsolvers {
RunNoiseSum noise_sum_avx512() {
  return &avx512::run_noise_sum;
}
}  // namespace cmsolvers
#else
namespace cmsolvers {
RunNoiseSum noise_sum_avx512() {
  return nullptr;
}
}  // namespace cmsolvers
#endif
