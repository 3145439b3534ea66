// Sums of noise for AVX2, FMA and F16C.
#define CMS_ISA avx2
#include "noise_sum_table.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"

#include "../noise_sum/cpu_kernel.h"

namespace cmsolvers {
RunNoiseSum noise_sum_avx2() {
  return &avx2::run_noise_sum;
}
}  // namespace cmsolvers
#else
namespace cmsolvers {
RunNoiseSum noise_sum_avx2() {
  return nullptr;
}
}  // namespace cmsolvers
#endif
